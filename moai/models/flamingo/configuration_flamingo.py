"""Configuration of Flamingo models."""

from __future__ import annotations

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..context_length import count_positions

#: OpenFlamingo-9B's parts.
_CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}
_MPT_7B = {"vocab_size": 50280, "d_model": 4096, "n_heads": 32, "n_layers": 32}


def every_nth_layer(depth: int, every: int) -> list[int]:
    """Layers that OpenFlamingo's ``cross_attn_every_n_layers`` means: layer i where ``(i + 1) % every == 0``.

    Args:
        depth: Layers of the decoder.
        every: Distance.
    """
    return list(range(every - 1, depth, every))


@strict
class FlamingoConfig(PreTrainedConfig):
    r"""Configuration of a Flamingo (arXiv 2204.14198; OpenFlamingo: arXiv 2308.01390).

    Attributes:
        vision_config: Of the vision tower; default CLIP ViT-L/14.
        text_config: Of the decoder: Llama and its like, MPT, GPT-NeoX; default MPT-7B.
        cross_attention_layers: Decoder layers that have a gated cross-attention block in front of them; None = every
            fourth, see :func:`every_nth_layer`.
        image_token_id: Id of ``<image>``, one per image; it belongs to its image already.
        end_of_chunk_token_id: Id of ``<|endofchunk|>``, which ends what belongs to an image, and answers.
        only_attend_immediate_media: A token sees the last image before it only; False = all images before it.
        resampler_depth: Layers of the Perceiver resampler.
        resampler_num_heads: Its heads.
        resampler_head_dim: Their width.
        resampler_mult: Its feed-forward layers are this many times as wide as the vision tower.
        num_latents: Tokens that an image becomes.
        max_num_media: Rows of learned embeddings of an image's place in the text; None = none (OpenFlamingo).
        max_num_frames: Rows of learned embeddings of a frame's place in a video; None = none (OpenFlamingo).
        cross_attention_num_heads: Heads of the gated blocks.
        cross_attention_head_dim: Their width.
        cross_attention_mult: Their feed-forward layers are this many times as wide as the decoder.
        hidden_act: Of all new feed-forward layers: ``gelu`` in OpenFlamingo, ``relu2`` (squared) in the paper.
        vision_feature_select_strategy: ``default`` drops the tower's class token, ``full`` is for towers without.
        tie_word_embeddings: Share the word embedding with the output head; None = as the decoder does.
        domain: The only images that the weights know; None = no such limit is known.
    """

    model_type = "flamingo"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model", init_kwargs=_CLIP_LARGE),
        "text_config": SubConfigSpec(AutoConfig, model_type="mpt", init_kwargs=_MPT_7B),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    cross_attention_layers: list[int] | None = None
    image_token_id: int = 50278
    end_of_chunk_token_id: int = 50277
    only_attend_immediate_media: bool = True
    resampler_depth: int = 6
    resampler_num_heads: int = 8
    resampler_head_dim: int = 64
    resampler_mult: int = 4
    num_latents: int = 64
    max_num_media: int | None = None
    max_num_frames: int | None = None
    cross_attention_num_heads: int = 8
    cross_attention_head_dim: int = 64
    cross_attention_mult: int = 4
    hidden_act: str = "gelu"
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    tie_word_embeddings: bool | None = None
    domain: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        depth, rows = self.text_config.num_hidden_layers, self.text_config.vocab_size
        if self.cross_attention_layers is None:
            self.cross_attention_layers = every_nth_layer(depth, min(4, depth))
        self.cross_attention_layers = sorted(set(self.cross_attention_layers))
        if not all(0 <= layer < depth for layer in self.cross_attention_layers):
            raise ValueError(
                f"`cross_attention_layers` must be layers of the decoder, 0 to {depth - 1}, got "
                f"{self.cross_attention_layers}."
            )
        for name in ("image_token_id", "end_of_chunk_token_id"):
            if not 0 <= getattr(self, name) < rows:
                raise ValueError(
                    f"`{name}` must be an id below the decoder's vocab_size {rows}, got {getattr(self, name)}. Add the "
                    "token to the tokenizer and enlarge the vocabulary."
                )
        if self.vision_feature_select_strategy == "default" and "siglip" in self.vision_config.model_type:
            raise ValueError(
                f"`vision_feature_select_strategy` must be 'full' for {self.vision_config.model_type!r}, got 'default':"
                " SigLIP has no class token, and the first patch would be dropped."
            )
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    @property
    def max_positions(self) -> int | None:
        """Longest sequence in tokens that the decoder reads, answer included; None = no known bound."""
        return count_positions(self.text_config)


AutoConfig.register(FlamingoConfig.model_type, FlamingoConfig, exist_ok=True)

__all__ = ["FlamingoConfig", "every_nth_layer"]
