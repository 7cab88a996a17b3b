"""LoRA with PEFT: adapters on the decoder only, compressor and mixers trained in full beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...import_utils import require
from .partial_lora import TARGET_LINEARS

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

TRAINED_IN_FULL = ("compressor", "mixers")
PROJECTOR = "multi_modal_projector"


def decoder_linears_pattern(has_partial_lora: bool, linears: tuple[str, ...] = TARGET_LINEARS) -> str:
    """Regular expression of the full names of the decoder's linears, as PEFT matches them.

    Args:
        has_partial_lora: With partial LoRA the pretrained matrices stand one level deeper, in ``base_layer``.
        linears: Names of the linears to adapt.

    Returns:
        A pattern that matches nothing in vision tower, projector, compressor, mixers or head.
    """
    suffix = r"\.base_layer" if has_partial_lora else ""
    return rf"(?:.*\.)?language_model\.layers\.\d+\.(?:self_attn|mlp)\.(?:{'|'.join(linears)}){suffix}"


def default_lora_config(
    model: PreTrainedModel,
    rank: int = 64,
    *,
    alpha: float | None = None,
    dropout: float = 0.05,
    trains_projector: bool = True,
    linears: tuple[str, ...] = TARGET_LINEARS,
    **fields: Any,
) -> LoraConfig:
    """Configure LoRA for MoAI: the decoder's linears adapted, the new parts trained and saved whole.

    ``get_peft_model(model, default_lora_config(model))`` is all that fine-tuning needs, for a quantised model too
    (QLoRA, arXiv 2305.14314). Partial LoRA updates of the checkpoint stay as they are.

    Args:
        model: A :class:`moai.MoAIForConditionalGeneration` or :class:`moai.MoAIModel`.
        rank: Rank of the adapters.
        alpha: Scale numerator; default ``2 * rank``.
        dropout: Dropout before the adapters.
        trains_projector: Train the projector of image features as well.
        linears: Names of the decoder's linears to adapt.
        **fields: Other fields of ``peft.LoraConfig``; they go before ours.

    Returns:
        The configuration.

    Raises:
        ImportError: If ``peft`` is not installed; says what to install.
        ValueError: If ``rank`` is below 1 or ``linears`` holds a name that no decoder has.
    """
    require("peft")
    from peft import LoraConfig

    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}.")
    unknown = set(linears) - set(TARGET_LINEARS)
    if unknown or not linears:
        raise ValueError(f"`linears` must be names out of {TARGET_LINEARS}, got {tuple(linears)}.")
    defaults = {
        "r": rank,
        "lora_alpha": 2 * rank if alpha is None else alpha,
        "lora_dropout": dropout,
        "target_modules": decoder_linears_pattern(model.config.plora_rank > 0, tuple(linears)),
        "modules_to_save": [*TRAINED_IN_FULL, *([PROJECTOR] if trains_projector else [])],
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**defaults | fields)


__all__ = ["decoder_linears_pattern", "default_lora_config"]
