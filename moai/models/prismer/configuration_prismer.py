"""Configuration of Prismer and PrismerZ models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

__all__ = ["DENSE_EXPERTS", "EXPERTS", "IMAGE_SIZES", "LABEL_EXPERTS", "PRESETS", "PrismerConfig"]

#: Experts whose maps hold values, and their channels.
DENSE_EXPERTS = {"depth": 1, "normal": 3, "edge": 1}
#: Experts whose maps hold labels; a label becomes its name's features.
LABEL_EXPERTS = ("seg", "obj_detection", "ocr_detection")
#: All experts in the order in which their tokens reach the resampler.
EXPERTS = ("depth", "normal", "seg", "edge", "obj_detection", "ocr_detection")

#: Sides in pixels of the original: pre-training, ImageNet with few shots, COCO and VQA.
IMAGE_SIZES = (224, 384, 480)
_VISION = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TEXT = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
#: Sizes by name: CLIP's vision encoder and RoBERTa's layers. "huge" stands in the original's configuration only.
PRESETS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": (
        _VISION
        | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"patch_size": 16},
        _TEXT | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "large": (
        _VISION
        | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"patch_size": 14},
        _TEXT | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
    "huge": (
        _VISION
        | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
        | {"patch_size": 14},
        _TEXT | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
}


@strict
class PrismerConfig(PreTrainedConfig):
    r"""Configuration of a Prismer (arXiv 2303.02506); without experts it is a PrismerZ.

    Attributes:
        vision_config: Of the vision encoder: sizes of a CLIP vision tower.
        text_config: Of the text decoder: sizes of a RoBERTa.
        experts: Names of the experts whose maps are read, of :data:`EXPERTS`, in the order of their tokens; none = a
            PrismerZ.
        label_size: Channels of a map of labels, i.e. numbers that stand for a name.
        num_latents: Tokens that the resampler makes of all experts' maps.
        resampler_layers: Its depth.
        resampler_heads: Its attention heads.
        num_instance_rows: Rows of the instance embedding.
        draws_instance_rows: Draw the rows of instances at random in evaluation too, as the original does; else an
            instance's number is its row there.
        label_smoothing: Of the loss.
        tie_word_embeddings: Share the word embedding with the output head.
    """

    model_type = "prismer"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="clip_vision_model",
            init_kwargs=PRESETS["base"][0] | {"image_size": 224},
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="roberta", init_kwargs=PRESETS["base"][1]),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    experts: list[str] | tuple[str, ...] = EXPERTS
    label_size: int = 64
    num_latents: int = 64
    resampler_layers: int = 4
    resampler_heads: int = 8
    num_instance_rows: int = 128
    draws_instance_rows: bool = False
    label_smoothing: float = 0.1
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, family in (("vision_config", "clip_vision_model"), ("text_config", "roberta")):
            if getattr(self, name).model_type != family:
                raise ValueError(f"`{name}` must be of the family {family!r}, got {getattr(self, name).model_type!r}.")
        self.experts = list(self.experts)
        if unknown := sorted(set(self.experts) - set(EXPERTS)):
            raise ValueError(f"`experts` must be of {EXPERTS}, got {', '.join(unknown)}.")
        if len(set(self.experts)) != len(self.experts):
            raise ValueError(f"`experts` must be named once each, got {self.experts}.")
        if self.experts and self.vision_config.hidden_size % self.resampler_heads:
            raise ValueError(
                f"`resampler_heads` must divide the vision encoder's width {self.vision_config.hidden_size}, got "
                f"{self.resampler_heads}."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must lie in [0, 1), got {self.label_smoothing}.")
        self.text_config.is_decoder = True

    @classmethod
    def from_preset(
        cls, name: str, experts: Sequence[str] = EXPERTS, image_size: int = 224, **fields: Any
    ) -> PrismerConfig:
        """The configuration of a published size.

        Args:
            name: One of :data:`PRESETS`.
            experts: As the attribute; () = a PrismerZ.
            image_size: One of :data:`IMAGE_SIZES`, or any other.
            **fields: Any other attribute.

        Raises:
            ValueError: There is no such size.
        """
        if name not in PRESETS:
            raise ValueError(f"expected one of the sizes {', '.join(PRESETS)}, got {name!r}.")
        vision, text = PRESETS[name]
        return cls(
            vision_config=vision | {"image_size": image_size}, text_config=dict(text), experts=list(experts), **fields
        )

    def num_channels(self, expert: str) -> int:
        """Channels of an expert's map."""
        return DENSE_EXPERTS.get(expert, self.label_size)

    @property
    def max_positions(self) -> int:
        """Longest sequence in tokens: RoBERTa's positions begin behind the id of padding."""
        return self.text_config.max_position_embeddings - self.text_config.pad_token_id - 1


AutoConfig.register(PrismerConfig.model_type, PrismerConfig, exist_ok=True)
