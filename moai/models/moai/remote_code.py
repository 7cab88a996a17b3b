"""Checkpoints that name their code: with ``trust_remote_code=True`` transformers loads them without ``import moai``.

Nothing of the library is copied: a file of a few lines beside the checkpoint imports the installed package.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

MODULE = "moai_auto"
_CODE = '''"""For transformers' trust_remote_code: the classes of this checkpoint are those of the package moai-vlm."""

try:
    from moai import (
        InternLM2Tokenizer,
        MoAIConfig,
        MoAIForConditionalGeneration,
        MoAIImageProcessor,
        MoAIModel,
        MoAIProcessor,
    )
except ImportError as error:
    raise ImportError(
        "this checkpoint needs the package moai-vlm. Install it from a clone of its repository: pip install FOLDER"
    ) from error

__all__ = [
    "InternLM2Tokenizer",
    "MoAIConfig",
    "MoAIForConditionalGeneration",
    "MoAIImageProcessor",
    "MoAIModel",
    "MoAIProcessor",
]
'''


def write_remote_code(folder: str | os.PathLike[str]) -> None:
    """Write the file that ``auto_map`` entries name into a checkpoint's folder.

    Args:
        folder: Must exist.
    """
    (Path(folder) / f"{MODULE}.py").write_text(_CODE, encoding="utf-8")


class InstalledCode:
    """A class whose code is in an installed package: transformers copies no source file beside its checkpoints."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: transformers would copy the class's file, which cannot run alone.

        Args:
            auto_class: Whatever Auto class loaded it.
        """


__all__ = ["MODULE", "InstalledCode", "write_remote_code"]
