"""Optional packages: whether each is installed, and the line that installs it.

The one place that names the extras of ``setup.cfg``. Everything else asks
``is_rapidocr_available()`` or calls ``require("rapidocr")`` and gets the exact line to type.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

__all__ = [
    "EXTRA_OF_PACKAGE",
    "check_first_party_packages",
    "is_matplotlib_available",
    "is_onnxruntime_available",
    "is_rapidocr_available",
    "is_timm_available",
    "require",
]

# Import name -> the extra of moai-vlm that installs it.
EXTRA_OF_PACKAGE = {
    "rapidocr": "ocr",
    "onnxruntime": "ocr",
    "ultralytics": "detection",
    "timm": "segmentation",
    "bitsandbytes": "quantization",
    "accelerate": "train",
    "peft": "train",
    "datasets": "train",
    "pyarrow": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "gguf": "train",
    "pydantic": "train",
    "ray": "cluster",
    "diffusers": "generate",
    "fastapi": "serve",
    "uvicorn": "serve",
}

# Installed beside `moai` under names that are not ours alone; each with a file that only ours has.
FIRST_PARTY_PACKAGES = {
    "verbalizers": "core/structures.py",
    "compressor": "configuration_compressor.py",
    "mixer": "configuration_mixer.py",
}

_REINSTALL = "pip install --force-reinstall --no-deps PATH, with the clone or wheel that MoAI came from"


@lru_cache
def _is_package_available(package: str) -> bool:
    """Whether ``package`` can be imported, found out without importing it.

    A folder of that name in the working directory is a namespace package without an origin: it does
    not count as installed.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def is_rapidocr_available() -> bool:
    """Whether ``rapidocr`` (text recognition, extra ``ocr``) is installed."""
    return _is_package_available("rapidocr")


def is_onnxruntime_available() -> bool:
    """Whether ``onnxruntime`` (runs rapidocr's models, extra ``ocr``) is installed."""
    return _is_package_available("onnxruntime")


def is_matplotlib_available() -> bool:
    """Whether ``matplotlib`` (plots, extras ``train`` and ``evaluate``) is installed."""
    return _is_package_available("matplotlib")


def is_timm_available() -> bool:
    """Whether ``timm`` (extra ``segmentation``) is installed."""
    return _is_package_available("timm")


def require(*packages: str, extra: str | None = None, purpose: str | None = None) -> None:
    """Check that optional packages are installed, before they are imported.

    Args:
        *packages: Import names.
        extra: Extra of moai-vlm that installs them; by default the one :data:`EXTRA_OF_PACKAGE` names
            for the first missing package.
        purpose: What needs them, put at the front of the message, for example ``"4-bit loading"``.

    Raises:
        ImportError: Where one is missing, with the line that installs it.
    """
    missing = [package for package in packages if not _is_package_available(package)]
    if not missing:
        return
    extra = extra or EXTRA_OF_PACKAGE.get(missing[0])
    install = f'pip install "moai-vlm[{extra}]"' if extra else f"pip install {' '.join(missing)}"
    names = " and ".join(f"`{package}`" for package in missing)
    verb = "is" if len(missing) == 1 else "are"
    raise ImportError(f"{purpose or 'This'} needs {names}, which {verb} not installed. Install with: {install}")


def check_first_party_packages() -> None:
    """Check that ``verbalizers``, ``compressor`` and ``mixer`` are ours.

    PyPI has strangers of the names ``mixer`` and ``compressor``; whichever was installed last, or stands
    first on ``sys.path``, wins. The check imports nothing: it looks for a file that only ours has.

    Raises:
        ImportError: Where a name resolves to another distribution or to nothing, naming its place and
            the lines that put it right.
    """
    for package, signature_file in FIRST_PARTY_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
        if any((Path(folder) / signature_file).is_file() for folder in folders):
            continue
        if spec is None:
            raise ImportError(
                f"MoAI's own package `{package}` is not installed beside `moai`. Reinstall with: {_REINSTALL}"
            )
        from importlib.metadata import packages_distributions  # slow to import, seldom needed

        place = spec.origin or ", ".join(folders)
        owners = packages_distributions().get(package, [])
        strangers = [owner for owner in owners if owner != "moai-vlm"] or [package]
        raise ImportError(
            f"MoAI's own package `{package}` is hidden by another one of the same name at {place}. "
            f"Put it right with: pip uninstall {' '.join(strangers)}, "
            f"then: {_REINSTALL}"
        )
