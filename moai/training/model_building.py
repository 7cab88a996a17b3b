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
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VERBALIZERS_FILE, VerbalizerSettings
from moai.data.sample_identity import show_progress
from moai.import_utils import require
from moai.models.moai.adapters import PROJECTOR, default_lora_config
from moai.models.moai.configuration_moai import MoAIConfig
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.new_model import from_backbones
from moai.models.moai.processing_moai import MoAIProcessor
from moai.settings import to_plain
from verbalizers.core.durable_files import atomic_folder

from .run_identity import find_change
from .train_settings import TrainSettings
from .trained_parts import part_of

__all__ = [
    "BuiltModel",
    "base_of",
    "build_model",
    "copy_verbalizer_settings",
    "check_result",
    "find_start",
    "hash_start",
    "is_adapter_folder",
    "load_base",
    "load_whole",
    "prepare_start",
]

#: How a run was started: a line for whoever goes on with it.
COMMAND_FILE = "command.txt"
#: What the base model of a run was made from.
ORIGIN_FILE = "made_from.json"
#: Settings of the model that a base model on disk does not depend on.
_AFTER_THE_BASE = ("quantization", "attn_implementation", "gradient_checkpointing")
_LATENTS = "model.compressor.latents.weight"


def find_start(name_or_path: str) -> str:
    """Absolute folder of a checkpoint or of an earlier stage's output; a hub name stays as it is.

    Args:
        name_or_path: What ``model.path`` says; the output folder of a run stands for its ``final`` folder.

    Raises:
        ValueError: There is no such checkpoint, or the earlier stage has not finished.
    """
    folder = Path(name_or_path).expanduser()
    final = folder / "final"
    if is_adapter_folder(final) or (final / "config.json").is_file():
        folder = final
    run = folder.parent if folder.name == "final" else folder
    if run.is_dir() and not (run / "final").is_dir() and _is_begun(run):
        file = run / COMMAND_FILE
        command = f" with: {file.read_text(encoding='utf-8').strip()}" if file.is_file() else " with its command."
        raise ValueError(
            f"expected the result of an earlier stage in {run / 'final'}, got none: that run has not finished. It goes "
            f"on{command}"
        )
    if is_adapter_folder(folder):
        return str(folder.resolve())
    found = find_checkpoint(str(folder) if folder.is_dir() else name_or_path)
    return str(Path(found).resolve()) if Path(found).is_dir() else found


def _is_begun(run: Path) -> bool:
    """Whether a folder is the output of a run, finished or not."""
    return any((run / name).exists() for name in (COMMAND_FILE, "checkpoints", "log.jsonl"))


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
    if not _needs_new_base(settings):
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
    torch.manual_seed(settings.seed)
    if chosen.path is None:
        dtype = None if chosen.dtype is None else getattr(torch, chosen.dtype)
        model, processor = from_backbones(
            chosen.vision,
            chosen.text,
            compressor=chosen.compressor or None,
            mixer=chosen.mixer or None,
            gguf_file=chosen.gguf_file,
            dtype=dtype,
            **chosen.fields,
        )
    else:
        start = find_start(chosen.path)
        if is_adapter_folder(start):
            raise ValueError(
                f"expected a whole model in `model.path` where parts start anew, got the adapter {start}. Merge it "
                "first (saving.output=merged)."
            )
        model, processor = _renew(start, settings), MoAIProcessor.from_pretrained(start)
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
    sources = {"path": chosen.path and find_start(chosen.path), "vision": chosen.vision, "text": chosen.text}
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


def _needs_new_base(settings: TrainSettings) -> bool:
    chosen = settings.model
    return chosen.path is None or bool(chosen.fresh_parts or chosen.compressor or chosen.mixer)


def _renew(start: str, settings: TrainSettings) -> MoAIForConditionalGeneration:
    """A checkpoint with some parts reinitialized, perhaps in other sizes."""
    chosen = settings.model
    old = load_whole(start, "auto")
    fields, fresh, resized = old.config.to_dict(), set(chosen.fresh_parts), set()
    for name, part, changes in (
        ("compressor", "compressor", chosen.compressor),
        ("mixer", "mixers", chosen.mixer),
    ):
        if changes:
            fields[name] = {**fields[name], **changes}
            (resized if chosen.keeps_fitting else fresh).add(part)
    for parts in (fresh, resized):
        parts |= {"gates"} if "mixers" in parts else set()
    torch.manual_seed(settings.seed)
    model = MoAIForConditionalGeneration(MoAIConfig.from_dict(fields)).to(old.dtype)
    new, kept = model.state_dict(), {}
    for name, value in old.state_dict().items():
        if name == _LATENTS and "compressor" in resized and len(new[name]) < len(value):
            value = value[torch.linspace(0, len(value) - 1, len(new[name])).round().long()]
        if part_of(name) not in fresh and (part_of(name) not in resized or _fits(value, new.get(name))):
            kept[name] = value
    missing = model.load_state_dict(kept, strict=False).missing_keys
    assert all(part_of(name) in fresh | resized for name in missing), missing
    model.generation_config = old.generation_config
    return model


def load_whole(path: str | Path, dtype: torch.dtype | str) -> MoAIForConditionalGeneration:
    """Load a model whose weights are plain numbers, also where it was saved quantised.

    Args:
        path: Checkpoint.
        dtype: Of its weights; "auto" = as they are stored.
    """
    model = MoAIForConditionalGeneration.from_pretrained(path, dtype=dtype)
    if not getattr(model, "is_quantized", False):
        return model
    stored = model.dtype
    return model.dequantize().to(stored)


def _fits(value: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and value.shape == other.shape


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
    if _needs_new_base(settings):
        return str((settings.output_folder / "base").resolve()), None
    start = find_start(settings.model.path or "")
    if not is_adapter_folder(start):
        return start, None
    base = find_adapter_base(start)
    assert base is not None
    if base.revision is not None and not Path(base.name).is_dir():
        return str(download_checkpoint(base.name, base.revision, is_safetensors_only=True)), start
    return find_start(base.name), start


def load_base(path: str, settings: TrainSettings, device: torch.device) -> MoAIForConditionalGeneration:
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
    return MoAIForConditionalGeneration.from_pretrained(path, **options)


@dataclass(frozen=True)
class BuiltModel:
    """What :func:`build_model` returns.

    Attributes:
        model: What is trained: a ``peft.PeftModel`` where the decoder has LoRA.
        processor: Its processor.
        base: Folder or hub name of the base model.
        start: Folder or hub name that training starts from: the base model, or an adapter on it.
    """

    model: nn.Module
    processor: MoAIProcessor
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
    base, adapter = base_of(settings)
    model: nn.Module = load_base(base, settings, device)
    if getattr(model, "is_quantized", False) and settings.train.decoder == "full":
        raise ValueError(
            f"expected a whole decoder to train in full, got {base}, which was saved quantised. Set `train.decoder` to "
            "lora or frozen, or start from the checkpoint that it was made from."
        )
    processor = MoAIProcessor.from_pretrained(adapter or base)
    if settings.train.decoder == "lora":
        require("peft", purpose="`train.decoder: lora`")
        torch.manual_seed(settings.seed)  # adapters start alike on all ranks and after a resume
        model = add_adapter(model, settings) if adapter is None else _load_adapter(model, adapter, settings)
        model.peft_config["default"].base_model_name_or_path = base
    elif adapter is not None:
        if getattr(model, "is_quantized", False):
            raise ValueError(
                "expected a whole model in `model.path` for a quantised, frozen decoder, got an adapter. Use "
                "`train.decoder: lora`, or merge the adapter first (saving.output=merged)."
            )
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    if settings.model.gradient_checkpointing:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner.activation_checkpointing_enable()
    return BuiltModel(model, processor, base, adapter or base)


def _whole_parts(settings: TrainSettings) -> list[str]:
    """Modules that the adapter holds whole."""
    train = settings.train
    wanted = {
        "compressor": train.compressor,
        "mixers": train.mixers or settings.trains_gates,
        PROJECTOR: train.projector,
        "vision_tower": train.vision_tower,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _lora_config(model: nn.Module, settings: TrainSettings) -> Any:
    train = settings.train
    return default_lora_config(
        model,
        train.lora_rank,
        alpha=train.lora_alpha,
        dropout=train.lora_dropout,
        linears=train.lora_linears,
        modules_to_save=_whole_parts(settings) or None,
    )


def add_adapter(model: nn.Module, settings: TrainSettings) -> nn.Module:
    """Put a new LoRA adapter on a model's decoder, the parts that are trained whole beside it.

    Args:
        model: A MoAI.
        settings: The recipe.
    """
    from peft import get_peft_model

    # Trained weights become float32 in `freeze_parts`, whatever PEFT would make of them.
    return get_peft_model(model, _lora_config(model, settings), autocast_adapter_dtype=False)


def _load_adapter(model: nn.Module, adapter: str, settings: TrainSettings) -> nn.Module:
    """Load an earlier stage's adapter."""
    from peft import PeftConfig, PeftModel

    config, wanted = PeftConfig.from_pretrained(adapter), _lora_config(model, settings)
    for field, name in (("r", "train.lora_rank"), ("lora_alpha", "train.lora_alpha")):
        if getattr(config, field) != getattr(wanted, field):
            raise ValueError(
                f"expected `{name}` = {getattr(config, field)}, as the adapter {adapter} has it, got "
                f"{getattr(wanted, field)}. Write that number, or merge the adapter first (saving.output=merged)."
            )
    if config.target_modules != wanted.target_modules:
        raise ValueError(
            f"expected the linears that the adapter {adapter} adapts ({config.target_modules}), got "
            f"{wanted.target_modules}. Set `train.lora_linears` to them."
        )
    lacking = sorted(set(wanted.modules_to_save or ()) - set(config.modules_to_save or ()))
    if lacking:
        raise ValueError(
            f"expected an adapter that holds {', '.join(lacking)}, which are to be trained, got {adapter} without. "
            "Train them in the first stage too, or merge the adapter first (saving.output=merged)."
        )
    config.lora_dropout = settings.train.lora_dropout
    options = {"is_trainable": True, "autocast_adapter_dtype": False}
    return PeftModel.from_pretrained(model, adapter, config=config, **options)
