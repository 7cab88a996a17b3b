"""Released Emu checkpoints -> a folder for ``moai ask``, its visual decoder too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ...models.emu.backbones import build_processor, load_tokenizer
from ...models.emu.configuration_emu import EmuConfig
from ...models.emu.convert import EmuPlan, build_config, convert_emu_tensors, looks_like_emu, plan_conversion
from ...models.emu.modeling_emu import EmuForConditionalGeneration
from ...models.emu.prompts import SPECIAL_TOKENS
from ..io.key_check import check_keys
from ..io.tensor_folder import TensorFolder, list_names
from .driver import ConversionKind, Converted

LICENCE = "The released weights are under LLaMA's first licence: for research, not for commercial use."
_DECODER_PARTS = ("unet", "vae")
_DECODER_WEIGHTS = "diffusion_pytorch_model"
#: What stands beside them and is not read: nobody checks what is drawn here.
_LEFT_OUT = ("safety_checker", "feature_extractor")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def _convert(
    weights: TensorFolder,
    source: Path,
    dtype: torch.dtype | None,
    *,
    text: str | Path | None = None,
    **config_settings: Any,
) -> Converted:
    """An Emu or Emu-I, whose LoRA is merged into the decoder; see :class:`.ConversionKind`.

    ``source`` may be the folder that holds ``multimodal_encoder/``, ``unet/``, ``vae/`` and ``scheduler/``; ``text``:
    folder or hub name of the decoder's tokenizer, None = that beside the weights; the other settings: see
    :func:`moai.models.emu.convert.build_config`.
    """
    place = weights.folder
    plan = plan_conversion(weights.shapes)
    tokenizer, has_turns, notes = _find_tokenizer(text, place, source, weights, plan)
    if tokenizer is not None:
        names = ("image_start_token_id", "image_end_token_id", "image_token_id")
        ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS[1:]))
        found = dict(zip(names, ids, strict=True)) | {"pad_token_id": tokenizer.pad_token_id}
        config_settings = found | config_settings
    config = build_config(weights.shapes, **config_settings)
    shapes = {name: shape for name, shape in weights.shapes.items() if name in plan.targets}
    check_keys(source, shapes, plan.convert, EmuForConditionalGeneration, config, "Fetch the file again.")
    stored = dtype or weights.widest_dtype
    config.architectures = ["EmuForConditionalGeneration"]
    if plan.unused:
        notes.append(f"left out, as nothing is computed with them: {list_names(list(plan.unused))}")
    if plan.lora:
        notes.append(f"the LoRA of {len(plan.lora)} matrices was added to the decoder's weights")
    if left := [name for name in _LEFT_OUT if (source / name).is_dir()]:
        notes.append(f"{' and '.join(left)} were left out: what is drawn is checked by nobody")
    saved = [_build_generation_config(config, tokenizer)]
    if tokenizer is not None:
        saved.append(build_processor(config, tokenizer, None, has_turns))
    draws = (source / "unet").is_dir()
    if not draws and place == source:
        notes.append("no visual decoder beside the weights: it answers in text only")
    text_config = config.text_config
    return Converted(
        name="Emu-I" if has_turns else "Emu",
        config=config,
        tensors=convert_emu_tensors(weights.read, plan),
        licences=(LICENCE,),
        notes=[LICENCE, *notes],
        sizes={
            "vision": f"{config.vision_config.num_hidden_layers} layers of {config.vision_config.hidden_size}, "
            f"{config.vision_config.image_size} px",
            "causal_former": f"{config.causal_former_config.num_layers} layers, {config.num_image_tokens} embeddings "
            "an image",
            "decoder": f"{text_config.num_hidden_layers} layers of {text_config.hidden_size}, vocabulary "
            f"{text_config.vocab_size}",
        },
        stored=stored,
        dtype=stored,
        saved=saved,
        finish=lambda folder: _convert_visual_decoder(source, folder, config, dtype) if draws else [],
    )


def _find_tokenizer(
    text: str | Path | None, place: Path, source: Path, weights: TensorFolder, plan: EmuPlan
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
    files, output = [], output / "visual_decoder"
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
            for name, tensor in TensorFolder(file)
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


# The released folder keeps the model beside the visual decoder's parts.
KIND = ConversionKind("emu", looks_like_emu, _convert, ("text",), subfolder="multimodal_encoder")
