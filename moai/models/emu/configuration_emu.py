"""Configuration of Emu models."""

from __future__ import annotations

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..context_length import count_positions

#: Released Emu's parts: EVA-CLIP ViT-g (whose layers are BEiT's), T5-base's decoder, LLaMA-13B.
EVA_CLIP_G = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
    "layer_scale_init_value": 0.0,
    "drop_path_rate": 0.0,
    "use_absolute_position_embeddings": True,
}
T5_BASE_DECODER = {
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "num_heads": 12,
    "dropout_rate": 0.0,
    "feed_forward_proj": "relu",
}
LLAMA_13B = {
    "vocab_size": 32004,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 32000,
}


@strict
class EmuConfig(PreTrainedConfig):
    r"""Configuration of an Emu (arXiv 2307.05222).

    An image stands in a sequence as ``[IMG]``, ``num_image_tokens`` times ``<image>``, ``[/IMG]``.

    Attributes:
        vision_config: Of the vision tower; default EVA-CLIP ViT-g.
        causal_former_config: Of the causal former, a T5; its decoder stack is used. Default T5-base.
        text_config: Of the decoder, Llama and its like; default LLaMA-13B.
        num_image_tokens: Embeddings that an image becomes, one after the other.
        image_start_token_id: Id of ``[IMG]``.
        image_end_token_id: Id of ``[/IMG]``.
        image_token_id: Id of ``<image>``.
        regression_targets: Which next embeddings are learned: ``images`` are those of images, as in the paper;
            ``released`` has that of ``[/IMG]`` after each image too, the pairs that the released code prepares.
        regression_weight: Of their squared error beside the cross-entropy of text; 0 = text alone is learned.
        tie_word_embeddings: Share the word embedding with the output head; None = as the decoder does.
        domain: The only images that the weights know; None = no such limit is known.
    """

    model_type = "emu"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="beit", init_kwargs=EVA_CLIP_G),
        "causal_former_config": SubConfigSpec(AutoConfig, model_type="t5", init_kwargs=T5_BASE_DECODER),
        "text_config": SubConfigSpec(AutoConfig, model_type="llama", init_kwargs=LLAMA_13B),
    }

    vision_config: dict | PreTrainedConfig | None = None
    causal_former_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_image_tokens: int = 32
    image_start_token_id: int = 32001
    image_end_token_id: int = 32002
    image_token_id: int = 32003
    regression_targets: Literal["images", "released"] = "images"
    regression_weight: float = 1.0
    tie_word_embeddings: bool | None = None
    domain: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        former, rows = self.causal_former_config, self.text_config.vocab_size
        former.is_decoder, former.is_encoder_decoder, former.use_cache = True, False, False
        former.tie_word_embeddings = False
        names = ("image_start_token_id", "image_end_token_id", "image_token_id")
        ids = [getattr(self, name) for name in names]
        if not all(0 <= token < rows for token in ids) or len(set(ids)) < len(ids):
            raise ValueError(
                f"{', '.join(names)} must be three ids below the decoder's vocab_size {rows}, got {ids}. Add the "
                "tokens to the tokenizer and enlarge the vocabulary."
            )
        if self.num_image_tokens < 1 or self.regression_weight < 0:
            raise ValueError(
                "`num_image_tokens` must be at least 1 and `regression_weight` at least 0, got "
                f"{self.num_image_tokens} and {self.regression_weight}."
            )
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    @property
    def max_positions(self) -> int | None:
        """Longest sequence in tokens that the decoder reads, answer included; None = no known bound."""
        return count_positions(self.text_config)

    @property
    def num_span_tokens(self) -> int:
        """Tokens of an image in a sequence, its start and end included."""
        return self.num_image_tokens + 2


AutoConfig.register(EmuConfig.model_type, EmuConfig, exist_ok=True)

__all__ = ["EmuConfig"]
