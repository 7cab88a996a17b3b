"""Pixels for TCL's image encoder."""

from __future__ import annotations

from ...processing.square_images import SquareImageProcessor

__all__ = ["TCLImageProcessor"]


class TCLImageProcessor(SquareImageProcessor):
    """See :class:`.SquareImageProcessor`."""

    size = {"height": 256, "width": 256}
