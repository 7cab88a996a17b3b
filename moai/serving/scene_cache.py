"""Scenes by an image's content, bounded in bytes: a second question about an image runs no verbalizer again."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from verbalizers import Scene

__all__ = ["SceneCache", "count_bytes"]


class SceneCache:
    """The scenes used last, as many as fit. May be used from any thread.

    Args:
        max_bytes: Memory of all scenes together; 0 = nothing is kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._scenes: OrderedDict[Any, tuple[Scene, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._scenes)

    def get(self, key: Any) -> Scene | None:
        """The scene of an image, or None."""
        with self._lock:
            if key not in self._scenes:
                return None
            self._scenes.move_to_end(key)
            return self._scenes[key][0]

    def put(self, key: Any, scene: Scene) -> None:
        """Keep a scene; those unused for longest go. One in which a verbalizer failed is not kept: it may not again."""
        size = count_bytes(scene)
        if scene.failures or size > self.max_bytes:
            return
        with self._lock:
            if key in self._scenes:
                self.num_bytes -= self._scenes.pop(key)[1]
            self._scenes[key] = scene, size
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._scenes.popitem(last=False)[1][1]


def count_bytes(value: Any) -> int:
    """Memory of a scene, or of what stands in one: arrays by their content, Python's objects by a generous guess."""
    if isinstance(value, np.ndarray):
        return value.nbytes + 128
    if dataclasses.is_dataclass(value):
        return 256 + sum(count_bytes(item) for item in vars(value).values())
    if isinstance(value, Mapping):
        return 256 + sum(count_bytes(key) + count_bytes(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return 64 + sum(8 + count_bytes(item) for item in value)
    return 64 + 4 * len(value) if isinstance(value, str) else 64
