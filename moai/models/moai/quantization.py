"""Quantization to 4 and 8 bits: the decoder's linears are quantized, small modules stay in the compute dtype."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from ..quantization_choice import resolve_quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Matched by transformers from the start of a module's full name or as a suffix. The low-rank factors of experts and
# partial LoRA are bare parameters and need no entry.
COMPUTE_DTYPE_MODULES = (
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.compressor",
    "model.mixers",
    "vision_tower",
    "multi_modal_projector",
    "compressor",
    "mixers",
    "lm_head",
)
#: With ``quantize_all``: the experts' factors are bare parameters, a tied head is the embedding.
ALWAYS_COMPUTE_DTYPE_MODULES = ("model.mixers", "mixers")


def with_default_skip_modules(kwargs: dict[str, Any], has_tied_head: bool = False) -> dict[str, Any]:
    """Fill in the modules that a bitsandbytes configuration must not quantize, where the caller names none.

    Args:
        kwargs: Keyword arguments of ``from_pretrained``. ``quantize_all``: vision tower, projector, compressor and
            head are quantized too.
        has_tied_head: The head is the word embedding, which stays as it is.

    Returns:
        The arguments, ``load_in_4bit=True`` / ``load_in_8bit=True`` turned into a configuration (nf4, double
        quantisation).

    Raises:
        ImportError: If bitsandbytes is not installed; says what to install.
        ValueError: If both 4 and 8 bits are asked for, or one of them beside a ``quantization_config``.
    """
    skipped = list(COMPUTE_DTYPE_MODULES)
    if kwargs.get("quantize_all"):
        skipped = [*ALWAYS_COMPUTE_DTYPE_MODULES, *(["lm_head"] if has_tied_head else [])]
    kwargs = resolve_quantization(kwargs)
    config = kwargs.get("quantization_config")
    if config is None:
        return kwargs
    if isinstance(config, dict):
        config = dict(config)
        if config.get("llm_int8_skip_modules") is None and any(key.startswith("load_in_") for key in config):
            config["llm_int8_skip_modules"] = skipped
    elif getattr(config, "llm_int8_skip_modules", False) is None:
        config = copy(config)  # the caller may load another model with it
        config.llm_int8_skip_modules = skipped
    kwargs["quantization_config"] = config
    return kwargs


def check_stored_quantization(model: PreTrainedModel, wanted: set[int]) -> None:
    """Check that a quantised model has the bits that were asked for: those of a stored one cannot be changed.

    Args:
        model: A quantised model.
        wanted: Bits that were asked for; empty = whatever it has.

    Raises:
        ValueError: It was saved in others.
    """
    config = model.hf_quantizer.quantization_config
    stored = 4 if getattr(config, "load_in_4bit", False) else 8 if getattr(config, "load_in_8bit", False) else None
    if wanted and stored not in wanted:
        raise ValueError(
            f"expected a checkpoint to load in {min(wanted)} bits, got one that was saved in {stored or 'other'}. "
            "Leave the wish out, or load the checkpoint that it was made from."
        )


def make_dtype_uniform(model: PreTrainedModel) -> None:
    """Give every weight that is not quantised the model's dtype.

    transformers leaves half of them as they were saved where a model was saved quantised and another dtype is asked
    for, and the first product of two dtypes fails.

    Args:
        model: A quantised model.
    """
    for parameter in model.parameters():
        # 4-bit weights may be stored as floats; they know what they are.
        if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(model.config.dtype)


__all__ = [
    "ALWAYS_COMPUTE_DTYPE_MODULES",
    "COMPUTE_DTYPE_MODULES",
    "check_stored_quantization",
    "make_dtype_uniform",
    "with_default_skip_modules",
]
