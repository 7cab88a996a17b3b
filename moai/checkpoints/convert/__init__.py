"""Conversion of released checkpoints to this project's format."""

from .dispatch import available_conversions, convert, parse_dtype
from .official import convert_official_checkpoint
from .published_verbalizers import PublishedVerbalizers
from .report import ConversionReport

__all__ = [
    "ConversionReport",
    "PublishedVerbalizers",
    "available_conversions",
    "convert",
    "convert_official_checkpoint",
    "parse_dtype",
]
