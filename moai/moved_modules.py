"""Moved modules under their former names: old imports work, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED_MODULES", "answer_to_old_names"]

_SCENE_MODULES = (
    "export", "groups", "layout", "noise", "questions", "rendering", "signs",
    "textures", "truth", "vocabulary",
)  # fmt: skip
_PROCESSING_MODULES = (
    "chat_templates", "control_tokens", "image_loading", "image_processing_moai", "processing_moai",
    "processor_arguments", "sample_batching", "sample_encoding", "token_offsets", "tokenization_internlm2",
    "tokenization_training",
)  # fmt: skip

_MODEL_MODULES = (
    "adapters", "cache_names", "configuration_moai", "derived_classes", "generation", "modeling_moai",
    "modeling_outputs", "partial_lora", "pretrained_model", "projector", "quantization", "roles", "rotary",
    "tensor_parallelism",
)  # fmt: skip
_BACKBONE_MODULES = ("backbone_loading", "backbone_processor", "backbones", "internlm2")
_CHECKPOINT_MODULES = ("tensor_folder", "tensor_writing")
_CONVERSION_MODULES = (
    "dispatch", "model_card", "official", "official_config", "official_keys", "official_processor", "position_table",
    "psgtr", "published_verbalizers", "report",
)  # fmt: skip
_COMMAND_MODULES = ("answering", "dataset", "info", "profiling", "question_files", "rendering", "verbalizing")

#: Old name -> present name.
MOVED_MODULES = {
    "moai.data.scenes": "moai.scenes.scenes",
    "moai.data.scene_assets": "moai.scenes.asset_loading",
    "moai.data.scene_settings": "moai.scenes.scenery",
    "moai.scenes.settings": "moai.scenes.scenery",
    **{f"moai.data.scene_{name}": f"moai.scenes.{name}" for name in _SCENE_MODULES},
    **{f"moai.{name}": f"moai.processing.{name}" for name in _PROCESSING_MODULES},
    **{f"moai.{name}": f"moai.models.moai.{name}" for name in _MODEL_MODULES},
    **{f"moai.cli_{name}": f"moai.cli.{name}" for name in _COMMAND_MODULES},
    "moai.cli_ablation": "moai.cli.ablate",
    "moai.cli_settings": "moai.cli.answer_settings",
    "moai.cli_training": "moai.cli.train",
    "moai.checkpointing": "moai.models.moai.gradient_checkpointing",
    "moai.decoder": "moai.models.moai.injection",
    **{f"moai.conversion.{name}": f"moai.models.moai.{name}" for name in _BACKBONE_MODULES},
    **{f"moai.conversion.{name}": f"moai.checkpoints.io.{name}" for name in _CHECKPOINT_MODULES},
    **{f"moai.conversion.{name}": f"moai.checkpoints.convert.{name}" for name in _CONVERSION_MODULES},
    "moai.checkpoints.io.atomic_folder": "verbalizers.core.durable_files",
    "moai.conversion.atomic_folder": "verbalizers.core.durable_files",
    "moai.checkpoint_lookup": "moai.checkpoints.io.lookup",
    "moai.conversion": "moai.checkpoints.convert",
    "moai.hub_download": "moai.checkpoints.io.hub_download",
    "moai.pipeline_moai": "moai.pipeline.pipeline_moai",
    "moai.pipeline_outputs": "moai.pipeline.outputs",
    "moai.pipeline_queries": "moai.pipeline.queries",
    "moai.pipeline_streaming": "moai.pipeline.streaming",
    "moai.question_files": "moai.data.question_files",
    "moai.pipeline_verbalizers": "moai.checkpoints.io.verbalizer_settings",
    "moai.registration": "moai.models.registry",
    "moai.training.settings_reading": "moai.settings",
    "moai.evaluation.answer_metrics": "moai.evaluation.metrics",
    "moai.training.train_checkpoints": "moai.training.checkpoints",
    "moai.training.train_run": "moai.training.trainer",
    "moai.training.train_step": "moai.training.moai_task",
    "moai.training.watching": "moai.training.metrics_logging",
}


def answer_to_old_names() -> None:
    """Let `import` find moved modules under their old names; safe to call twice."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules())


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked first: an old file that an installation left behind must not be a second copy of a module.

    Finder and loader that answer with the module itself: a class is the same class under both names.
    """

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
