"""The verbalizer interface: images in, findings out, one per image.

structures.py holds the findings, registry.py the names under which verbalizers are found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from verbalizers.core.structures import Scene

__all__ = ["FindingsReader", "Verbalizer", "add_sources", "fingerprint_checkpoint", "order_by_use"]

# What a checkpoint folder's content is: settings, weights, vocabularies (transformers, ONNX, Paddle).
WEIGHT_SUFFIXES = {".json", ".safetensors", ".txt", ".onnx", ".yml", ".pdmodel", ".pdiparams"}


class Verbalizer(ABC):
    """Base class of verbalizers: images in, findings out, one per image.

    Subclasses are usually dataclasses whose fields are their settings (checkpoint, thresholds, device). They
    load their model on first use, not when built, and may be called from any thread.

    Attributes:
        kind: what it finds; set by `register_verbalizer`.
        backend: with which library; likewise.
        version: raise it when the class finds something else than before with the same settings: fingerprints
            then change, and what was cached is found anew. Where the class lives does not count.
        uses: kinds whose findings about the same images it reads; it runs after their verbalizers.
    """

    kind: ClassVar[str] = ""
    backend: ClassVar[str] = ""
    version: ClassVar[int] = 1
    uses: ClassVar[tuple[str, ...]] = ()
    # Settings of a subclass that change no finding, such as where the model runs.
    _not_fingerprinted: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Run on a batch of images.

        Args:
            images: uint8 `(H, W, 3)` RGB arrays; sizes may differ.

        Returns:
            One finding per image, in order; for the four built-in kinds Segments, Detections, Relations,
            TextLines.
        """

    def predict_with(self, images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> list[Any]:
        """Run on a batch of images with the scenes that other verbalizers found; `parse_scene` calls this.

        A verbalizer that `uses` other kinds overrides it; the rest look at the images alone.

        Args:
            images: as for `predict`.
            scenes: what is known about each image. A kind that it uses may be absent, or have failed.

        Returns:
            As `predict`.
        """
        return self.predict(images)

    def settings(self) -> dict[str, Any]:
        """The dataclass fields (or public attributes) this verbalizer was built with."""
        if dataclasses.is_dataclass(self):
            return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def fingerprint_settings(self) -> dict[str, Any]:
        """The settings that decide what is found: all of them, unless a subclass leaves some out."""
        return {name: value for name, value in self.settings().items() if name not in self._not_fingerprinted}

    def fingerprint(self) -> str:
        """16 hex digits that change when kind, backend, `version`, a setting or a checkpoint's content changes.

        Cached verbalizations are keyed by it. Settings named `checkpoint`, `*_checkpoint` or `*_dir` are read
        through `fingerprint_checkpoint`, so that a copied folder keeps its fingerprint and a retrained one does
        not.
        """
        cls = type(self)
        # A subclass that is not registered only inherits its parent's kind and backend.
        is_registered = "kind" in vars(cls) and "backend" in vars(cls)
        name = [self.kind, self.backend] if is_registered else [cls.__module__, cls.__qualname__]
        settings = {
            key: fingerprint_checkpoint(value)
            if value is not None and (key == "checkpoint" or key.endswith(("_checkpoint", "_dir")))
            else value
            for key, value in self.fingerprint_settings().items()
        }
        text = json.dumps([*name, self.version, settings], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class FindingsReader(Verbalizer):
    """A verbalizer that reads what others found in the same images, and no pixel."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Always raises: pixels alone say nothing to it. `parse_scene` hands it the scenes.

        Raises:
            ValueError: as `predict_with` does for scenes without findings.
        """
        return self.predict_with(images, [Scene(image_size_hw=image.shape[:2]) for image in images])

    @abstractmethod
    def predict_with(self, images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> list[Any]:
        """See `Verbalizer.predict_with`; the images are not read.

        Raises:
            ValueError: a scene lacks what is needed.
        """


def order_by_use(verbalizers: Iterable[Verbalizer]) -> list[list[Verbalizer]]:
    """Groups that may run in parallel: each verbalizer stands in a group behind those of the kinds that it uses.

    Raises:
        ValueError: some use each other's findings.
    """
    waiting, groups = list(verbalizers), []
    while waiting:
        kinds = {verbalizer.kind for verbalizer in waiting}
        ready = [verbalizer for verbalizer in waiting if kinds.isdisjoint(verbalizer.uses)]
        if not ready:
            names = [f"{v.kind}/{v.backend} uses {list(v.uses)}" for v in waiting]
            raise ValueError(f"expected verbalizers that do not wait for each other, got {names}. Drop one of them.")
        groups.append(ready)
        waiting = [verbalizer for verbalizer in waiting if verbalizer not in ready]
    return groups


def add_sources(chosen: Iterable[Verbalizer], available: Iterable[Verbalizer]) -> list[Verbalizer]:
    """The chosen verbalizers and those whose findings they use, in the order of `available`.

    Args:
        chosen: a part of `available`.
        available: at most one per kind.
    """
    available, kinds = list(available), {verbalizer.kind for verbalizer in chosen}
    for group in reversed(order_by_use(available)):
        kinds.update(*(verbalizer.uses for verbalizer in group if verbalizer.kind in kinds))
    return [verbalizer for verbalizer in available if verbalizer.kind in kinds]


def fingerprint_checkpoint(checkpoint: str | Path) -> str:
    """A hub name as it is; a local file, or a folder's configuration and weight files, as a hash of the content."""
    source = Path(checkpoint)
    if not source.exists():
        return str(checkpoint)
    digest = hashlib.sha256()
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        if path.is_file() and (path.suffix in WEIGHT_SUFFIXES or path == source):
            digest.update(path.relative_to(source).name.encode())  # a file alone may be called anything
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()[:16]
