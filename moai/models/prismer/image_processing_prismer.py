"""Pixels for the vision tower, as Prismer was trained with them."""

from __future__ import annotations

from ...processing.square_images import SquareImageProcessor

__all__ = ["PrismerImageProcessor"]


class PrismerImageProcessor(SquareImageProcessor):
    """See :class:`.SquareImageProcessor`; 224x224 pixels where nothing else is said."""
