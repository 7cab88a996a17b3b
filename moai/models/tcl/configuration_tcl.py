"""Configuration of TCL models."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

__all__ = ["TCLConfig"]


@strict
class TCLConfig(PreTrainedConfig):
    r"""Configuration of a TCL (arXiv 2202.10401); the defaults are the published model's.

    Attributes:
        vision_config: Of the image encoder: a ViT, or another tower whose first token is a class token.
        text_config: Of the text encoder: a BERT, whose layers are shared out between text and fusion.
        num_text_layers: Layers that read text alone; those behind them read the image too.
        projection_dim: Width E of the space in which images and texts are compared.
        initial_temperature: Of a new model; it is learned.
    """

    model_type = "tcl"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="vit", init_kwargs={"image_size": 256, "layer_norm_eps": 1e-6}
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_text_layers: int = 6
    projection_dim: int = 256
    initial_temperature: float = 0.07

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.text_config.model_type != "bert":
            raise ValueError(f"`text_config` must be of the family 'bert', got {self.text_config.model_type!r}.")
        if "siglip" in self.vision_config.model_type:
            raise ValueError("`vision_config` must be a tower with a class token (vit, clip_vision_model), got SigLIP.")
        num_layers = self.text_config.num_hidden_layers
        if not 1 <= self.num_text_layers < num_layers:
            raise ValueError(
                f"`num_text_layers` must be 1 to {num_layers - 1} of the text encoder's {num_layers} layers, got "
                f"{self.num_text_layers}."
            )


AutoConfig.register(TCLConfig.model_type, TCLConfig, exist_ok=True)
