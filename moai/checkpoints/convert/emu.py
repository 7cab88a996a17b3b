"""Released Emu checkpoints -> a folder for ``moai ask``, its visual decoder too."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedTokenizerBase

from verbalizers.core.durable_files import atomic_folder

from ...models.emu.backbones import build_processor, load_tokenizer
from ...models.emu.configuration_emu import EmuConfig
from ...models.emu.convert import EmuPlan, build_config, convert_emu_tensors, looks_like_emu, plan_conversion
from ...models.emu.modeling_emu import EmuForConditionalGeneration
from ...models.emu.prompts import SPECIAL_TOKENS
from ..io.checkpoint_file import find_checkpoint_file, list_tensor_names, read_checkpoint_file
from ..io.tensor_folder import TensorFolder, list_names
from ..io.tensor_writing import ShardedWriter
from .model_card import write_card
from .report import ConversionReport

KIND = "emu"
LICENCE = "The released weights are under LLaMA's first licence: for research, not for commercial use."
#: Where the released folder keeps the model beside the visual decoder's parts.
_MODEL_FOLDER = "multimodal_encoder"
_DECODER_PARTS = ("unet", "vae")
_DECODER_WEIGHTS = "diffusion_pytorch_model"
#: What stands beside them and is not read: nobody checks what is drawn here.
_LEFT_OUT = ("safety_checker", "feature_extractor")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class _Weights:
    """Tensors by name, from one file or from shards."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]
    dtypes: frozenset[torch.dtype]


def _find_weights(source: Path) -> Path:
    return source / _MODEL_FOLDER if (source / _MODEL_FOLDER).is_dir() else source


def is_emu(source: Path) -> bool:
    """Whether a path is a released Emu's file, its folder of shards, or the folder with its visual decoder."""
    try:
        place = _find_weights(source)
        file = find_checkpoint_file(place)
        return looks_like_emu(list_tensor_names(file) if file is not None else TensorFolder(place).tensors)
    except ValueError:
        return False  # what is wrong is told by the kind that it turns out to be


def _open(source: Path) -> _Weights:
    file = find_checkpoint_file(source)
    if file is None:
        folder = TensorFolder(source)
        return _Weights(folder.shapes, folder.read, frozenset(info.dtype for info in folder.tensors.values()))
    tensors = read_checkpoint_file(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return _Weights(shapes, tensors.__getitem__, frozenset(tensor.dtype for tensor in tensors.values()))


def convert_emu_checkpoint(
    source: Path,
    output: Path,
    *,
    text: str | Path | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    origin: str | None = None,
    **config_settings: Any,
) -> ConversionReport:
    """Convert a released Emu or Emu-I; a LoRA is merged into the decoder.

    Args:
        source: Its file, the folder of its shards, or the folder that holds ``multimodal_encoder/``, ``unet/``,
            ``vae/`` and ``scheduler/``.
        output: Folder to create; it appears only when everything succeeded.
        text: Folder or hub name of the decoder's tokenizer; None = that beside the weights.
        dtype: Of the weights written; None = one that holds all parts without loss.
        force: Replace an existing output.
        origin: What report and card call the source; None = its path in the report.
        **config_settings: See :func:`moai.models.emu.convert.build_config`.

    Returns:
        An account of what was read and written.

    Raises:
        ValueError: A key is unknown, missing or of the wrong shape, or the parts do not fit.
    """
    place = _find_weights(source)
    weights = _open(place)
    plan = plan_conversion(weights.shapes)
    tokenizer, has_turns, notes = _find_tokenizer(text, place, source, weights, plan)
    if tokenizer is not None:
        names = ("image_start_token_id", "image_end_token_id", "image_token_id")
        ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS[1:]))
        found = dict(zip(names, ids, strict=True)) | {"pad_token_id": tokenizer.pad_token_id}
        config_settings = found | config_settings
    config = build_config(weights.shapes, **config_settings)
    _check_whole(config, plan, weights)
    stored = dtype or reduce(torch.promote_types, [d for d in weights.dtypes if d.is_floating_point])
    config.dtype, config.architectures = stored, ["EmuForConditionalGeneration"]
    if plan.unused:
        notes.append(f"left out, as nothing is computed with them: {list_names(list(plan.unused))}")
    if plan.lora:
        notes.append(f"the LoRA of {len(plan.lora)} matrices was added to the decoder's weights")
    if left := [name for name in _LEFT_OUT if (source / name).is_dir()]:
        notes.append(f"{' and '.join(left)} were left out: what is drawn is checked by nobody")
    families: Counter[str] = Counter()
    with atomic_folder(output, force=force) as folder:
        writer = ShardedWriter(folder)
        for name, tensor in convert_emu_tensors(weights.read, plan):
            writer.add(name, tensor.to(stored) if tensor.is_floating_point() else tensor)
            families[name.split(".")[1] if name.startswith("model.") else name.split(".")[0]] += tensor.numel()
        files = writer.finish()
        config.save_pretrained(folder)
        _build_generation_config(config, tokenizer).save_pretrained(folder)
        if tokenizer is not None:
            build_processor(config, tokenizer, None, has_turns).save_pretrained(folder)
        if (source / "unet").is_dir():
            files += _convert_visual_decoder(source, folder / "visual_decoder", config, dtype)
        elif place == source:
            notes.append("no visual decoder beside the weights: it answers in text only")
        write_card(folder, origin or source.name, notes, "Emu-I" if has_turns else "Emu", (LICENCE,))
    text_config = config.text_config
    return ConversionReport(
        kind=KIND,
        source=origin or source,
        output=output,
        num_source_tensors=len(weights.shapes),
        num_tensors=writer.num_tensors,
        num_parameters=writer.num_parameters,
        num_bytes=writer.num_bytes,
        dtype=str(stored).removeprefix("torch."),
        families=dict(families),
        files=tuple(files),
        sizes={
            "vision": f"{config.vision_config.num_hidden_layers} layers of {config.vision_config.hidden_size}, "
            f"{config.vision_config.image_size} px",
            "causal_former": f"{config.causal_former_config.num_layers} layers, {config.num_image_tokens} embeddings "
            "an image",
            "decoder": f"{text_config.num_hidden_layers} layers of {text_config.hidden_size}, vocabulary "
            f"{text_config.vocab_size}",
        },
        notes=(LICENCE, *notes),
    )


def _find_tokenizer(
    text: str | Path | None, place: Path, source: Path, weights: _Weights, plan: EmuPlan
) -> tuple[PreTrainedTokenizerBase | None, bool, list[str]]:
    """The tokenizer with Emu's tokens, whether Emu-I's are among them, and what is worth knowing."""
    if text is None:
        folders = [folder if folder.is_dir() else folder.parent for folder in (place, source)]
        text = next((f for f in folders if any((f / name).is_file() for name in _TOKENIZER_FILES)), None)
    if text is None:
        return None, bool(plan.lora), [
            "no tokenizer beside the weights, so no processor was written: convert again with --text and the folder or "
            "hub name of the decoder's (LLaMA's) tokenizer"
        ]  # fmt: skip
    rows = next(
        shape[0]
        for name, shape in weights.shapes.items()
        if name.endswith(".embed_tokens.weight") and "decoder" in name
    )
    tokenizer = load_tokenizer(text)
    if tokenizer is None:
        raise ValueError(f"expected the decoder's tokenizer in {text}, got none. Name its folder or hub name (--text).")
    has_turns = bool(plan.lora) or len(tokenizer) + 2 == rows
    if has_turns:
        tokenizer = load_tokenizer(text, has_turns=True)
    if len(tokenizer) > rows:
        raise ValueError(
            f"expected a tokenizer of at most {rows} tokens, Emu's own included, got {len(tokenizer)} in {text}. Give "
            "that of the decoder that the checkpoint was trained with."
        )
    return tokenizer, has_turns, []


def _check_whole(config: EmuConfig, plan: EmuPlan, weights: _Weights) -> None:
    """Compare names and shapes with the model's.

    Raises:
        ValueError: Naming what is missing, too much or of the wrong shape.
    """
    with torch.device("meta"):
        expected = {n: tuple(t.shape) for n, t in EmuForConditionalGeneration(config).state_dict().items()}
    given = {}
    for name, targets in plan.targets.items():
        first, *rest = weights.shapes[name]
        given |= {target: (first // len(targets), *rest) for target in targets}
    wrong = [
        f"{n}: {given[n]}, expected {expected[n]}"
        for n in sorted(given.keys() & expected.keys())
        if given[n] != expected[n]
    ]
    problems = [
        f"{len(names)} {what}: {list_names(sorted(names))}"
        for what, names in (
            ("missing", expected.keys() - given.keys()),
            ("without place", given.keys() - expected.keys()),
            ("of the wrong shape", wrong),
        )
        if names
    ]
    if problems:
        raise ValueError("the tensors do not make a whole Emu: " + "; ".join(problems) + ". Fetch the file again.")


def _build_generation_config(config: EmuConfig, tokenizer: PreTrainedTokenizerBase | None) -> GenerationConfig:
    text = config.text_config
    silent = [config.image_start_token_id, config.image_end_token_id, config.image_token_id]
    return GenerationConfig(
        bos_token_id=text.bos_token_id if tokenizer is None else tokenizer.bos_token_id,
        eos_token_id=text.eos_token_id if tokenizer is None else tokenizer.eos_token_id,
        pad_token_id=text.pad_token_id if tokenizer is None else tokenizer.pad_token_id,
        suppress_tokens=silent,
    )


def _convert_visual_decoder(source: Path, output: Path, config: EmuConfig, dtype: torch.dtype | None) -> list[str]:
    """Write the visual decoder's parts as safetensors; returns the files of weights."""
    files = []
    for part in _DECODER_PARTS:
        settings = _read_json(source / part / "config.json", part)
        if part == "unet" and settings.get("cross_attention_dim") != config.text_config.hidden_size:
            raise ValueError(
                f"expected a U-Net for embeddings of width {config.text_config.hidden_size}, as the decoder's, got one "
                f"for {settings.get('cross_attention_dim')}. Give the folder of one checkpoint."
            )
        candidates = [source / part / f"{_DECODER_WEIGHTS}{suffix}" for suffix in (".safetensors", ".bin")]
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            raise ValueError(f"expected {candidates[0].name} or {candidates[1].name} in {source / part}, got neither.")
        (output / part).mkdir(parents=True)
        tensors = {
            name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor)
            .contiguous()
            .clone()
            for name, tensor in read_checkpoint_file(file).items()
        }
        save_file(tensors, output / part / f"{_DECODER_WEIGHTS}.safetensors", metadata={"format": "pt"})
        files.append(f"visual_decoder/{part}/{_DECODER_WEIGHTS}.safetensors")
        (output / part / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    name = "scheduler_config.json"
    _read_json(source / "scheduler" / name, "scheduler")
    (output / "scheduler").mkdir()
    shutil.copyfile(source / "scheduler" / name, output / "scheduler" / name)
    return files


def _read_json(file: Path, part: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected the visual decoder's {part} with {file.name} in {file.parent}, got none that can be read "
            f"({error}). Fetch the folder again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {file}, got {type(content).__name__}. Fetch the folder again.")
    return content
