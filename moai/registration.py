"""Makes AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor and pipelines know MoAI, when they are there.

Whoever asks an Auto class about a checkpoint has imported the module of transformers that defines it. So `import moai`
imports neither transformers nor the model: with Python's import hooks it waits for these modules, and right after one
of them has run, our module that registers with it at its end is imported. An Auto class that can be used knows MoAI.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register_auto_classes"]

#: Where an Auto class is defined -> which of our modules registers with it.
REGISTERING_MODULES = {
    "transformers.models.auto.configuration_auto": "moai.configuration_moai",
    "transformers.models.auto.modeling_auto": "moai.modeling_moai",
    "transformers.models.auto.tokenization_auto": "moai.tokenization_internlm2",
    "transformers.models.auto.image_processing_auto": "moai.image_processing_moai",
    "transformers.models.auto.processing_auto": "moai.processing_moai",
}


def register_auto_classes() -> None:
    """Register with the Auto classes that are imported now, and with the others as they are; safe to call twice."""
    if not any(isinstance(finder, _AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModuleFinder())
    for theirs, ours in REGISTERING_MODULES.items():
        if theirs in sys.modules:
            importlib.import_module(ours)


class _AutoModuleFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of Auto classes where every other finder does, and has them followed by ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The ordinary specification, with a loader that remembers what to import next."""
        if fullname not in REGISTERING_MODULES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None:
            spec.loader = _FollowedLoader(spec.loader, REGISTERING_MODULES[fullname])
        return spec


class _FollowedLoader(importlib.abc.Loader):
    """Runs a module as its own loader does, then imports another one.

    The other may be half imported, since it is what imports the first: it registers when it comes to its end.
    """

    def __init__(self, loader: importlib.abc.Loader, follower: str) -> None:
        self._loader, self._follower = loader, follower

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # an ordinary module for whoever looks at it
        self._loader.exec_module(module)
        importlib.import_module(self._follower)
