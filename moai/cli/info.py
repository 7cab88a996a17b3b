"""``moai info``: what is installed here."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from .errors import reporting_errors
from .options import DebugOption, JsonOption

__all__ = ["collect_info", "info", "print_info"]

_LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "pillow", "sentencepiece")


def collect_info() -> dict[str, Any]:
    """Versions, devices, optional packages with the line that installs what is missing, verbalizers, checkpoints."""
    import torch

    from verbalizers import available_verbalizers

    from .. import __version__
    from ..checkpoints.io.lookup import list_bundled_checkpoints
    from ..import_utils import EXTRA_OF_PACKAGE

    optional, bundled = {}, list_bundled_checkpoints()
    for package, extra in EXTRA_OF_PACKAGE.items():
        version = _find_version(package)
        optional[package] = version or f'not installed: pip install "moai-vlm[{extra}]"'
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "moai-vlm": __version__,
        "python": platform.python_version(),
        "libraries": {name: _find_version(name) for name in _LIBRARIES},
        "devices": ["cpu", *devices],
        "optional packages": optional,
        "verbalizers": {kind: list(backends) for kind, backends in available_verbalizers().items()},
        "bundled checkpoints": {name: str(path) for name, path in bundled.items()},
        "what they know": {name: domain for name, path in bundled.items() if (domain := _read_domain(path))},
    }


def _read_domain(folder: Path) -> str | None:
    """The images that a checkpoint knows, where they are not images in general."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("domain")


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def print_info(report: dict[str, Any], is_json: bool = False) -> None:
    """Show what :func:`collect_info` found."""
    if is_json:
        from .rendering import print_json

        print_json(report)
        return
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"{name}:" + ("" if value else " none"))
            for key, entry in value.items():
                shown = ", ".join(entry) if isinstance(entry, list) else entry
                print(f"  {key:<16}{shown}")
        else:
            print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")


def info(json_output: JsonOption = False, debug: DebugOption = False) -> None:
    """Print versions, verbalizers, optional packages and bundled checkpoints."""
    with reporting_errors(debug):
        print_info(collect_info(), json_output)
