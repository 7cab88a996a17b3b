"""Published TCL checkpoints -> a folder with model and processor."""

from __future__ import annotations

from pathlib import Path

import torch

from ...models.tcl.convert import build_config, convert_tcl_tensor, is_training_state, looks_like_tcl
from ...models.tcl.image_processing_tcl import TCLImageProcessor
from ...models.tcl.modeling_tcl import TCLModel
from ...models.tcl.processing_tcl import TCLProcessor
from ..io.key_check import check_keys
from ..io.tensor_folder import TensorFolder
from .driver import ConversionKind, Converted, load_fitting_tokenizer

_TOKENIZER = "google-bert/bert-base-uncased"
_ADVICE = "Check that it is the whole file of a TCL after its pre-training."


def _convert(
    weights: TensorFolder,
    source: Path,
    dtype: torch.dtype | None,
    *,
    tokenizer: str | Path | None = None,
    num_vision_heads: int | None = None,
    num_text_heads: int | None = None,
) -> Converted:
    """A TCL; see :class:`.ConversionKind`.

    ``tokenizer``: None = that beside the weights, else BERT's (base, uncased). Heads: see
    :func:`moai.models.tcl.convert.build_config`.
    """
    shapes = weights.shapes
    config = build_config(shapes, num_vision_heads, num_text_heads)
    kept = {name: shape for name, shape in shapes.items() if not is_training_state(name)}
    check_keys(source, kept, convert_tcl_tensor, TCLModel, config, _ADVICE)
    left = len(shapes) - len(kept)
    stored = dtype or weights.tensors["itm_head.weight"].dtype
    config.architectures = ["TCLModel"]
    loaded = load_fitting_tokenizer(weights.place, tokenizer, _TOKENIZER, config.text_config.vocab_size)
    vision, text = config.vision_config, config.text_config
    side = vision.image_size
    return Converted(
        name="TCL",
        config=config,
        tensors=(pair for name in kept for pair in convert_tcl_tensor(name, weights.read(name)).items()),
        licences=("The source's licence holds for these weights.",),
        notes=[f"{left} tensors of momentum copies and queues were left out: only its own training goes on with them"],
        sizes={
            "vision": f"{vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.num_attention_heads} heads, "
            f"{side} px, patches of {vision.patch_size}",
            "text": f"{config.num_text_layers} + {text.num_hidden_layers - config.num_text_layers} layers of "
            f"{text.hidden_size}, {text.num_attention_heads} heads",
        },
        stored=stored,
        dtype=stored,
        saved=[TCLProcessor(TCLImageProcessor(size={"height": side, "width": side}), loaded)],
    )


KIND = ConversionKind("tcl", looks_like_tcl, _convert)
