"""Pixels for the vision tower, as Emu was trained with them."""

from __future__ import annotations

from ...processing.square_images import SquareImageProcessor

__all__ = ["EmuImageProcessor"]


class EmuImageProcessor(SquareImageProcessor):
    """See :class:`.SquareImageProcessor`; 224x224 pixels where nothing else is said."""
