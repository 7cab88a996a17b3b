"""Moved modules under their former names: old imports work, with a DeprecationWarning.

As `moai.moved_modules`, which neither imports nor is imported by this package: `import moai` loads no verbalizers.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED_MODULES", "answer_to_old_names"]

_CORE_MODULES = (
    "adapters", "base", "boxes", "checkpoints", "drawing", "durable_files", "geometry", "merging", "profiling", "scene",
    "structures", "validation", "vocabularies", "vocabulary_matching", "words",
)  # fmt: skip
_BACKEND_MODULES = (
    "depth", "detection", "detection_ultralytics", "ocr", "ocr_order", "ocr_paddleocr", "ocr_transformers",
    "scene_graph", "scene_graph_geometric", "segmentation", "text_embeddings",
)  # fmt: skip
_STORE_MODULES = ("building", "recipe", "rows", "shards", "sources", "work", "writing")

#: Old name -> present name.
MOVED_MODULES = {
    **{f"verbalizers.{name}": f"verbalizers.core.{name}" for name in _CORE_MODULES},
    **{f"verbalizers.{name}": f"verbalizers.backends.{name}" for name in _BACKEND_MODULES},
    **{f"verbalizers.cache_{name}": f"verbalizers.store.{name}" for name in _STORE_MODULES},
    "verbalizers.cache": "verbalizers.store.cache",
    "verbalizers.cache_local": "verbalizers.store.local_engine",
    "verbalizers.cache_ray": "verbalizers.store.ray_engine",
}


def answer_to_old_names() -> None:
    """Let `import` find moved modules under their old names; safe to call twice."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules())


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder and loader that answer with the module itself: a class is the same class under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED_MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        present = MOVED_MODULES[spec.name]
        warnings.warn(f"`{spec.name}` is now `{present}`.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(present)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state  # the import system has put the old name's in its place
