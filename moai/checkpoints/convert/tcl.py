"""Published TCL checkpoints -> a folder with model and processor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer

from verbalizers.core.durable_files import atomic_folder

from ...models.tcl.configuration_tcl import TCLConfig
from ...models.tcl.convert import (
    build_config,
    convert_tcl_tensor,
    is_training_state,
    looks_like_tcl,
    plan_conversion,
)
from ...models.tcl.image_processing_tcl import TCLImageProcessor
from ...models.tcl.modeling_tcl import TCLModel
from ...models.tcl.processing_tcl import TCLProcessor
from ..io.tensor_folder import TensorFolder, list_names
from ..io.tensor_writing import ShardedWriter
from .model_card import write_card
from .report import ConversionReport

KIND = "tcl"
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_TOKENIZER = "google-bert/bert-base-uncased"


def is_tcl(source: Path) -> bool:
    """Whether a folder or a file has weights of a TCL in the original's layout."""
    if source.is_dir():
        return looks_like_tcl(TensorFolder(source).shapes)
    if not source.is_file() or source.suffix not in SUFFIXES:
        return False
    try:
        return looks_like_tcl(_read_file(source))
    except ValueError:
        return False  # another kind may say more about it


def _read_file(source: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file: plain, or under ``model`` beside the optimizer's, as the original saves them."""
    if source.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(source)
        except SafetensorError as error:
            raise ValueError(f"{source} is no whole safetensors file: {error}. Fetch it again.") from error
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - its own error type lives in a module we do not import on principle
        raise ValueError(
            f"{source} holds more than tensors and is not opened, because that could run its code: {error}. Save its "
            "'model' alone as safetensors on a machine where you trust the file."
        ) from error
    state = loaded.get("model", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"expected {source} to hold tensors by name, or them under 'model', got something else.")
    return dict(state)


def convert_tcl_checkpoint(
    source: Path,
    output: Path,
    *,
    tokenizer: str | Path | None = None,
    num_vision_heads: int | None = None,
    num_text_heads: int | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    origin: str | None = None,
) -> ConversionReport:
    """Convert a published TCL.

    Args:
        source: ``TCL_4M.pth`` or the like (opened with ``weights_only``), ``.safetensors``, or a folder with weights.
        output: Folder to create; it appears only when everything succeeded.
        tokenizer: Folder or hub name; None = that beside the weights, else BERT's (base, uncased).
        num_vision_heads: See :func:`moai.models.tcl.convert.build_config`.
        num_text_heads: Likewise.
        dtype: Store floating tensors in this dtype; None keeps theirs.
        force: Replace an existing output.
        origin: What report and card call the source; None = its path in the report.

    Returns:
        An account of what was read and written.

    Raises:
        ValueError: A key is unknown, missing or of the wrong shape, or there is no tokenizer.
    """
    weights = dict(TensorFolder(source)) if source.is_dir() else _read_file(source)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    config = build_config(shapes, num_vision_heads, num_text_heads)
    with torch.device("meta"):
        model = TCLModel(config)
    if complaints := plan_conversion(shapes, {name: tuple(t.shape) for name, t in model.state_dict().items()}):
        raise ValueError(
            f"The checkpoint {source} does not convert: {list_names(complaints)}. Check that it is the whole file of a "
            "TCL after its pre-training."
        )
    kept = {name: tensor for name, tensor in weights.items() if not is_training_state(name)}
    left = len(weights) - len(kept)
    notes = [f"{left} tensors of momentum copies and queues were left out: only its own training goes on with them"]
    stored = dtype or weights["itm_head.weight"].dtype
    config.dtype, config.architectures = stored, ["TCLModel"]
    processor = _build_processor(source if source.is_dir() else source.parent, config, tokenizer)
    families: Counter[str] = Counter()
    with atomic_folder(output, force=force) as folder:
        writer = ShardedWriter(folder)
        for key, tensor in kept.items():
            for name, values in convert_tcl_tensor(key, tensor).items():
                writer.add(name, values.to(stored).clone())
                families[name.split(".")[0]] += values.numel()
        files = writer.finish()
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_card(folder, origin or source.name, notes, "TCL", ("The source's licence holds for these weights.",))
    vision, text = config.vision_config, config.text_config
    return ConversionReport(
        kind=KIND,
        source=origin or source,
        output=output,
        num_source_tensors=len(weights),
        num_tensors=writer.num_tensors,
        num_parameters=writer.num_parameters,
        num_bytes=writer.num_bytes,
        dtype=str(stored).removeprefix("torch."),
        families=dict(families),
        files=tuple(files),
        sizes={
            "vision": f"{vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.num_attention_heads} heads, "
            f"{vision.image_size} px, patches of {vision.patch_size}",
            "text": f"{config.num_text_layers} + {text.num_hidden_layers - config.num_text_layers} layers of "
            f"{text.hidden_size}, {text.num_attention_heads} heads",
        },
        notes=tuple(notes),
    )


def _build_processor(folder: Path, config: TCLConfig, tokenizer: str | Path | None) -> TCLProcessor:
    if tokenizer is None:
        tokenizer = folder if (folder / "tokenizer.json").is_file() else _TOKENIZER
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected the text encoder's tokenizer from {tokenizer}, got none: {str(error).splitlines()[0]} Copy the "
            f"tokenizer.json and tokenizer_config.json of {_TOKENIZER} into {folder}."
        ) from error
    if len(loaded) > config.text_config.vocab_size:
        raise ValueError(
            f"expected a tokenizer of at most {config.text_config.vocab_size} tokens, got {len(loaded)} in {tokenizer}."
        )
    side = config.vision_config.image_size
    images = TCLImageProcessor(size={"height": side, "width": side})
    return TCLProcessor(images, loaded)
