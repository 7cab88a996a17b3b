"""Base class of verbalizers on transformers checkpoints: lazy loading, devices, batches of equal size.

torch and transformers are imported inside functions, so that importing `verbalizers` stays light.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from verbalizers.core.validation import check_range
from verbalizers.core.verbalizer import Verbalizer

if TYPE_CHECKING:
    import torch

__all__ = ["CheckpointVerbalizer", "from_pretrained", "on_device_stream", "resolve_device", "resolve_dtype"]

_streams: dict[torch.device, torch.cuda.Stream] = {}
_device_locks: dict[torch.device, threading.Lock] = {}
_registering = threading.Lock()
# transformers patches torch's defaults while it builds a model: two models at once could get each other's.
_building = threading.Lock()


def resolve_device(device: str | None) -> torch.device:
    """None = the current CUDA device where there is one, else the CPU. CUDA devices come with their number."""
    import torch

    resolved = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if resolved.type == "cuda" and resolved.index is None and torch.cuda.is_available():
        resolved = torch.device("cuda", torch.cuda.current_device())
    return resolved


@contextmanager
def on_device_stream(device: torch.device) -> Iterator[None]:
    """Queue CUDA work on the verbalizers' stream of this device; nothing on other devices.

    All verbalizers of a device share one stream: their kernels follow each other, so that two models never need
    their memory at the same instant, while the host side of one (resizing, thresholds, words) runs beside the
    kernels of another, and the language model on the default stream waits for none of it.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    with _registering:
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)
        stream = _streams[device]
    stream.wait_stream(torch.cuda.current_stream(device))  # weights may still be on their way
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
    stream.synchronize()


@contextmanager
def _moved_to_device(modules: Sequence[torch.nn.Module], device: torch.device) -> Iterator[None]:
    """Move modules to a device and, whatever happens there, back to CPU memory. One thread per device at a time."""
    import torch

    with _registering:
        lock = _device_locks.setdefault(device, threading.Lock())
    with lock:
        try:
            for module in modules:
                module.to(device)
            yield
        finally:
            for module in modules:
                module.to("cpu")
            if device.type == "cuda":
                torch.cuda.empty_cache()


def resolve_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """None = bfloat16 or float16 on CUDA, float32 elsewhere.

    Raises:
        ValueError: not the name of a floating torch dtype.
    """
    import torch

    if dtype is None:
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    resolved = getattr(torch, dtype, None)
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(f"`dtype` must be 'float32', 'bfloat16' or 'float16', got {dtype!r}.")
    return resolved


def from_pretrained(loader: Any, checkpoint: str, **options: Any) -> Any:
    """`loader.from_pretrained` with an error that says what to do.

    Raises:
        ValueError: the folder or hub name cannot be loaded.
    """
    try:
        return loader.from_pretrained(checkpoint, **options)
    except OSError as error:
        raise ValueError(
            f"cannot load {loader.__name__} from {checkpoint!r}: {error}\nExpected a folder written by "
            "save_pretrained (config.json, preprocessor_config.json, *.safetensors) or a reachable hub name."
        ) from error


@dataclass(eq=False, kw_only=True)
class CheckpointVerbalizer(Verbalizer):
    """A verbalizer whose model is a transformers checkpoint.

    Attributes:
        checkpoint: local folder or hub name.
        device: "cpu", "cuda", "cuda:1" ...; None = CUDA where there is one.
        dtype: "float32", "bfloat16", "float16"; None = half precision on CUDA, float32 on the CPU.
        batch_size: how many images go through the model at once.
        offload: keep the model in CPU memory and move it to the device only while it runs. Models that do so take
            turns: a GPU needs room for the largest of them, not for all.
    """

    checkpoint: str
    device: str | None = None
    dtype: str | None = None
    batch_size: int = 8
    offload: bool = False
    # Where, and in how large batches, a model runs changes no finding.
    _not_fingerprinted: ClassVar[tuple[str, ...]] = ("device", "batch_size", "offload")
    _loaded: Any = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.checkpoint = str(self.checkpoint)
        check_range(self, "batch_size", low=1, high=None)

    @abstractmethod
    def _load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Load and return whatever `_predict_batch` needs."""

    @abstractmethod
    def _predict_batch(self, loaded: Any, images: list[np.ndarray]) -> list[Any]:
        """Findings for images that all have the same shape; runs under torch.inference_mode."""

    def load(self) -> Any:
        """Load the model now instead of at the first image; safe to call from several threads."""
        with self._lock:
            if self._loaded is None:
                device = resolve_device(self.device)
                home = resolve_device("cpu") if self.offload else device
                with _building:
                    self._loaded = self._load(home, resolve_dtype(self.dtype, device))
            return self._loaded

    def unload(self) -> None:
        """Forget the model and give its memory back; the next image loads it again."""
        with self._lock:
            self._loaded = None

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Run on uint8 `(H, W, 3)` RGB images. See `Verbalizer.predict`.

        Images of equal shape share a batch and are never padded to another's size: padding would change what
        the models see, and a batch would answer differently from its images alone.
        """
        import torch

        loaded = self.load()
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault(image.shape, []).append(index)
        findings: list[Any] = [None] * len(images)
        with self._on_device(loaded), torch.inference_mode():
            for indices in by_shape.values():
                for start in range(0, len(indices), self.batch_size):
                    chunk = indices[start : start + self.batch_size]
                    answers = self._predict_batch(loaded, [images[i] for i in chunk])
                    for index, answer in zip(chunk, answers, strict=True):
                        findings[index] = answer
        return findings

    @contextmanager
    def _on_device(self, loaded: Any) -> Iterator[None]:
        """The device's stream, and with `offload` the models on the device for as long as this lasts."""
        import torch

        device = resolve_device(self.device)
        with on_device_stream(device):
            if not self.offload:
                yield
                return
            with _moved_to_device(
                [part for part in vars(loaded).values() if isinstance(part, torch.nn.Module)], device
            ):
                yield
