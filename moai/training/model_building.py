"""Building the model that training starts from: a checkpoint, two backbones, or an earlier stage's result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moai.checkpoints.io.adapter_files import find_adapter_base, is_adapter_folder
from moai.checkpoints.io.contents import hash_checkpoint
from moai.checkpoints.io.hub_download import download_checkpoint
from moai.checkpoints.io.verbalizer_settings import VERBALIZERS_FILE, VerbalizerSettings
from moai.data.sample_identity import show_progress
from moai.models.answering import Answering
from moai.models.registry import ModelSpec, load_named
from moai.settings import to_plain
from verbalizers.core.durable_files import atomic_folder

from .run_identity import find_change
from .start import find_start, find_trained_spec
from .tasks.answers import AnswersTask, add_adapter
from .train_settings import TrainSettings
from .trained_parts import base_model

__all__ = [
    "BuiltModel",
    "base_of",
    "build_model",
    "copy_verbalizer_settings",
    "check_result",
    "find_answering",
    "find_task",
    "hash_start",
    "load_base",
    "prepare_start",
]

#: What the base model of a run was made from.
ORIGIN_FILE = "made_from.json"
#: Settings of the model that a base model on disk does not depend on.
_AFTER_THE_BASE = ("quantization", "attn_implementation", "gradient_checkpointing")


def check_result(folder: Path) -> None:
    """Check that a run does not begin anew beside a result that only its own checkpoints explain.

    Args:
        folder: Output folder.

    Raises:
        ValueError: It holds ``final`` and no checkpoint.
    """
    if (folder / "final").is_dir() and not any((folder / "checkpoints").glob("step-*")):
        raise ValueError(
            f"expected checkpoints beside the result {folder / 'final'}, got none: a new run would replace it. Choose "
            "another `output_folder`, or move the result away."
        )


def prepare_start(settings: TrainSettings) -> None:
    """Write the new base model that a recipe describes, once; to be called by one process before all load it.

    Backbones, other sizes and parts that start anew make a model that lies nowhere yet. An adapter needs a base to
    refer to, so it is written to ``<output_folder>/base``. One that was made otherwise is made anew.

    Args:
        settings: The recipe.

    Raises:
        ValueError: It was made otherwise, and something there was trained from it.
    """
    base = settings.output_folder / "base"
    if not settings.model.is_new:
        return
    chosen, origin = settings.model, _origin_of(settings)
    if (base / "config.json").is_file():
        change = find_change(_read_origin(base / ORIGIN_FILE), origin)
        if change is None:
            return
        name, words = change
        is_used = any((settings.output_folder / "checkpoints").glob("step-*"))
        if is_used or (settings.output_folder / "final").is_dir():
            raise ValueError(
                f"expected the base model that {base} was made as, but `{name}` {words}, and checkpoints beside it "
                "were trained from it. Set it back, or choose another `output_folder`."
            )
        print(f"{base} is made anew: `{name}` {words}", flush=True)
    if chosen.path is not None and is_adapter_folder(start := find_start(chosen.path)):
        raise ValueError(
            f"expected a whole model in `model.path` where parts start anew, got the adapter {start}. Merge it first "
            "(saving.output=merged)."
        )
    torch.manual_seed(settings.seed)
    model, processor = find_task(settings).make_new(settings)
    with atomic_folder(base, force=True) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if chosen.path is not None:
            copy_verbalizer_settings(find_start(chosen.path), folder)
        (folder / ORIGIN_FILE).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def _origin_of(settings: TrainSettings) -> dict[str, Any]:
    """What decides a new base model: settings, seed, and contents of what it is made from."""
    chosen = settings.model
    model = {name: value for name, value in to_plain(chosen).items() if name not in _AFTER_THE_BASE}
    if chosen.path is not None:
        del model["dtype"]  # of weights in memory
    names = {name: getattr(chosen, name, None) for name in ("vision", "text")}
    sources = {"path": chosen.path and find_start(chosen.path), **names}
    files = {name: hash_checkpoint(source, show_weights) for name, source in sources.items() if source is not None}
    said = Path(sources["path"] or "") / VERBALIZERS_FILE
    verbalizers = said.read_text(encoding="utf-8") if said.is_file() else None
    return json.loads(json.dumps({"model": model, "seed": settings.seed, "files": files, "verbalizers": verbalizers}))


def _read_origin(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def show_weights(names: Sequence[str]) -> Iterator[str]:
    """Files of a checkpoint while they are hashed, see :func:`moai.checkpoints.io.contents.hash_checkpoint`."""
    return show_progress(names, "reading weights")


def copy_verbalizer_settings(source: str | Path, target: Path) -> None:
    """Copy ``verbalizers.json`` from one checkpoint folder to another; paths in it count from the target then.

    Args:
        source: Folder of a checkpoint; one without the file is no error.
        target: Folder to write to.
    """
    if (Path(source) / VERBALIZERS_FILE).is_file():
        VerbalizerSettings.load(Path(source).resolve()).save(target)


def base_of(settings: TrainSettings) -> tuple[str, str | None]:
    """Folder of the base model, and of the adapter to go on with."""
    if settings.model.is_new:
        return str((settings.output_folder / "base").resolve()), None
    start = find_start(settings.model.path or "")
    if not is_adapter_folder(start):
        return start, None
    base = find_adapter_base(start)
    assert base is not None
    if base.revision is not None and not Path(base.name).is_dir():
        return str(download_checkpoint(base.name, base.revision, is_safetensors_only=True)), start
    return find_start(base.name), start


def find_task(settings: TrainSettings) -> type[AnswersTask]:
    """The class that trains a recipe's model."""
    return load_named(_spec_of(settings).task)


def find_answering(settings: TrainSettings) -> type[Answering]:
    """The class that loads a recipe's model."""
    return load_named(_spec_of(settings).answering)


def _spec_of(settings: TrainSettings) -> ModelSpec:
    return find_trained_spec(settings.model.path, settings.model.type)[0]


def load_base(path: str, settings: TrainSettings, device: torch.device) -> nn.Module:
    """Load a base model as a recipe wants it in memory.

    Args:
        path: Checkpoint.
        settings: ``model.dtype``, ``model.quantization``, ``model.attn_implementation``.
        device: Where quantised weights go.
    """
    chosen = settings.model
    default = torch.float32 if settings.optimization.precision == "fp32" else torch.bfloat16
    dtype = getattr(torch, chosen.dtype) if chosen.dtype else default
    if settings.optimization.precision == "fp32" and dtype != torch.float32:
        raise ValueError(
            f"`model.dtype: {chosen.dtype}` needs `optimization.precision: bf16`, got fp32: half-precision weights "
            "would meet float32 ones. Change one of the two."
        )
    options: dict[str, Any] = {"dtype": dtype}
    if chosen.attn_implementation:
        options["attn_implementation"] = chosen.attn_implementation
    if chosen.quantization != "none":
        options["load_in_4bit" if chosen.quantization == "nf4" else "load_in_8bit"] = True
        options["device_map"] = {"": device}
    return find_answering(settings).load_model(path, **options)


@dataclass(frozen=True)
class BuiltModel:
    """What :func:`build_model` returns.

    Attributes:
        model: What is trained: a ``peft.PeftModel`` where an adapter is trained.
        processor: Its processor.
        base: Folder or hub name of the base model.
        start: Folder or hub name that training starts from: the base model, or an adapter on it.
    """

    model: nn.Module
    processor: Any
    base: str
    start: str


def hash_start(built: BuiltModel) -> dict[str, str]:
    """Hashes of the files that a run starts from; those of an adapter are called ``adapter/...``.

    Args:
        built: From :func:`build_model`.
    """
    files = hash_checkpoint(built.base, show_weights)
    if built.start != built.base:
        files |= {f"adapter/{name}": value for name, value in hash_checkpoint(built.start, show_weights).items()}
    return files


def build_model(settings: TrainSettings, device: torch.device) -> BuiltModel:
    """Build what is trained; call :func:`prepare_start` in one process before.

    Args:
        settings: The recipe.
        device: This process's device; quantised weights are put there at once.

    Raises:
        ValueError: The start does not fit the recipe.
        ImportError: PEFT or bitsandbytes is needed and not installed.
    """
    task, (base, adapter) = find_task(settings), base_of(settings)
    model = load_base(base, settings, device)
    wanted, is_quantized = task.adapter_config(model, settings), getattr(model, "is_quantized", False)
    if is_quantized and "decoder" in task.whole_parts(settings, task.parts_of(model)):
        raise ValueError(
            f"expected a whole decoder to train in full, got {base}, which is quantised. Train an adapter, or start "
            "from the checkpoint that it was made from."
        )
    processor = find_answering(settings).load_processor(adapter or base)
    if wanted is not None:
        torch.manual_seed(settings.seed)  # adapters start alike on all ranks and after a resume
        model = add_adapter(model, wanted) if adapter is None else _load_adapter(model, adapter, wanted, task)
        model.peft_config["default"].base_model_name_or_path = base
    elif adapter is not None:
        if is_quantized:
            raise ValueError(
                "expected a whole model in `model.path` for a quantised, frozen decoder, got an adapter. Train the "
                "adapter, or merge it first (saving.output=merged)."
            )
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    if settings.model.gradient_checkpointing:
        base_model(model).activation_checkpointing_enable()
    return BuiltModel(model, processor, base, adapter or base)


def _load_adapter(model: nn.Module, adapter: str, wanted: Any, task: type[AnswersTask]) -> nn.Module:
    """Load an earlier stage's adapter."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(adapter)
    if config.is_prompt_learning:
        raise ValueError(
            f"expected an adapter of weights to go on with, got the learned prompt {adapter}, which keeps what came "
            "out of its encoder alone. Start from its base model."
        )
    for field, name in ({"peft_type": "train.adapter.peft_type"} | task.adapter_settings).items():
        had, given = getattr(config, field, None), getattr(wanted, field, None)
        if had != given:
            raise ValueError(
                f"expected `{name}` = {had}, as the adapter {adapter} has it, got {given}. "
                "Write that, or merge the adapter first (saving.output=merged)."
            )
    lacking = sorted(set(wanted.modules_to_save or ()) - set(config.modules_to_save or ()))
    if lacking:
        raise ValueError(
            f"expected an adapter that holds {', '.join(lacking)}, which are to be trained, got {adapter} without. "
            "Train them in the first stage too, or merge the adapter first (saving.output=merged)."
        )
    if hasattr(wanted, "lora_dropout"):
        config.lora_dropout = wanted.lora_dropout
    options = {"is_trainable": True, "autocast_adapter_dtype": False}
    return PeftModel.from_pretrained(model, adapter, config=config, **options)
