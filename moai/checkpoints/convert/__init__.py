"""Conversion of released checkpoints to this project's format."""

from .dispatch import available_conversions, convert, parse_dtype
from .published_verbalizers import PublishedVerbalizers
from .report import ConversionReport

__all__ = [
    "ConversionReport",
    "PublishedVerbalizers",
    "available_conversions",
    "convert",
    "parse_dtype",
]
