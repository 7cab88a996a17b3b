"""The verbalizer interface and its registry.

A verbalizer looks at images and answers with findings (see structures.py). Its class is registered under a
kind (what it finds) and a backend (with which library); the first backend registered for a kind is that
kind's default. Packages outside this repository plug in through the entry-point group `moai.verbalizers`,
entries named `<kind>.<backend>`; they are listed without being imported and imported only when they are
built.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

__all__ = [
    "ENTRY_POINT_GROUP",
    "Verbalizer",
    "available_verbalizers",
    "build_verbalizer",
    "fingerprint_checkpoint",
    "register_verbalizer",
]

ENTRY_POINT_GROUP = "moai.verbalizers"
_REGISTRY: dict[tuple[str, str], type[Verbalizer]] = {}
_VerbalizerClass = TypeVar("_VerbalizerClass", bound=type)


class Verbalizer(ABC):
    """One intelligence: images in, findings out.

    Subclasses are usually dataclasses whose fields are their settings (checkpoint, thresholds, device). They
    load their model on first use, not when built, and may be called from any thread.
    """

    kind: ClassVar[str] = ""
    backend: ClassVar[str] = ""

    @abstractmethod
    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Look at a batch of images.

        Args:
            images: uint8 `(H, W, 3)` RGB arrays; sizes may differ.

        Returns:
            One finding per image, in order; for the four built-in kinds Segments, Detections, Relations,
            TextLines.
        """

    def settings(self) -> dict[str, Any]:
        """The dataclass fields (or public attributes) this verbalizer was built with."""
        if dataclasses.is_dataclass(self):
            return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def fingerprint(self) -> str:
        """16 hex digits that change when the class, a setting or a checkpoint's content changes.

        Cached verbalizations are keyed by it. Settings named `checkpoint` are read through
        `fingerprint_checkpoint`, so that a copied folder keeps its fingerprint and a retrained one does not.
        """
        return self._fingerprint_of(self.settings())

    def _fingerprint_of(self, settings: dict[str, Any]) -> str:
        settings = {
            name: fingerprint_checkpoint(value) if name == "checkpoint" and value is not None else value
            for name, value in settings.items()
        }
        identity = [type(self).__module__, type(self).__qualname__, self.kind, self.backend, settings]
        text = json.dumps(identity, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_checkpoint(checkpoint: str | Path) -> str:
    """A hub name as it is; a local folder as a hash of its configuration and weight files' content."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return str(checkpoint)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".safetensors", ".txt", ".onnx"} and path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()[:16]


def register_verbalizer(kind: str, backend: str) -> Callable[[_VerbalizerClass], _VerbalizerClass]:
    """Class decorator that makes `build_verbalizer(kind, backend)` find the class.

    Raises:
        ValueError: the name is taken by another class, a name is not an identifier, or the class is no
            Verbalizer.
    """
    for name, value in (("kind", kind), ("backend", backend)):
        if not value.isidentifier():
            raise ValueError(f"`{name}` must be a Python identifier such as 'depth', got {value!r}. Use underscores.")

    def register(cls: _VerbalizerClass) -> _VerbalizerClass:
        if not (isinstance(cls, type) and issubclass(cls, Verbalizer)):
            raise ValueError(f"expected a subclass of verbalizers.Verbalizer, got {cls!r}. Inherit from Verbalizer.")
        known = _REGISTRY.get((kind, backend))
        # A module that is reloaded registers the same class anew; only a different class is a clash.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"kind {kind!r} with backend {backend!r} is already {known.__module__}.{known.__qualname__}. "
                "Choose another backend name."
            )
        cls.kind, cls.backend = kind, backend
        _REGISTRY[kind, backend] = cls
        return cls

    return register


def _plugins() -> dict[tuple[str, str], EntryPoint]:
    """Out-of-tree verbalizers by (kind, backend), not imported."""
    found = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        kind, _, backend = entry.name.partition(".")
        found[kind, backend or kind] = entry
    return found


def available_verbalizers() -> dict[str, tuple[str, ...]]:
    """Kinds and their backends, the default backend first. Plug-ins are listed without importing them."""
    result: dict[str, list[str]] = {}
    for kind, backend in [*_REGISTRY, *_plugins()]:
        backends = result.setdefault(kind, [])
        if backend not in backends:
            backends.append(backend)
    return {kind: tuple(backends) for kind, backends in result.items()}


def build_verbalizer(kind: str, backend: str | None = None, **settings: Any) -> Verbalizer:
    """Build a verbalizer by name. No model is loaded yet.

    Args:
        kind: what to find; see `available_verbalizers()`.
        backend: with which library; None = the kind's default.
        **settings: the class's fields.

    Raises:
        ValueError: unknown kind or backend, or settings the class does not have.
        ImportError: a plug-in cannot be imported.
    """
    available = available_verbalizers()
    if kind not in available:
        raise ValueError(f"unknown verbalizer kind {kind!r}, expected one of {sorted(available)}. Register it first.")
    backend = backend or available[kind][0]
    if backend not in available[kind]:
        raise ValueError(f"unknown backend {backend!r} for kind {kind!r}, expected one of {list(available[kind])}.")
    if (kind, backend) not in _REGISTRY:
        _load_plugin(kind, backend)
    cls = _REGISTRY[kind, backend]
    if dataclasses.is_dataclass(cls):
        known = {f.name for f in dataclasses.fields(cls) if f.init}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ValueError(f"{kind}/{backend} has no setting {unknown}, expected some of {sorted(known)}.")
    return cls(**settings)


def _load_plugin(kind: str, backend: str) -> None:
    entry = _plugins()[kind, backend]
    try:
        loaded = entry.load()
    except ImportError as error:
        raise ImportError(f"verbalizer plug-in {entry.name!r} ({entry.value}) cannot be imported: {error}") from error
    # An entry may point at the class, or at a module that registers its class when imported.
    if (kind, backend) not in _REGISTRY:
        register_verbalizer(kind, backend)(loaded)
