"""Configuration of MoAI models."""

from __future__ import annotations

import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from compressor.configuration_compressor import CompressorConfig
from mixer.configuration_mixer import MixerConfig, evenly_spaced_layers

from ..context_length import count_positions
from .remote_code import MODULE, InstalledCode, write_remote_code

DECODER_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
DEFAULT_NUM_MIXERS = 4


#: What transformers' Auto classes load with `trust_remote_code=True`.
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.MoAIConfig",
    "AutoModel": f"{MODULE}.MoAIModel",
    "AutoModelForImageTextToText": f"{MODULE}.MoAIForConditionalGeneration",
    "AutoModelForMultimodalLM": f"{MODULE}.MoAIForConditionalGeneration",
    "AutoProcessor": f"{MODULE}.MoAIProcessor",
    "AutoImageProcessor": f"{MODULE}.MoAIImageProcessor",
}


@strict
class MoAIConfig(InstalledCode, PreTrainedConfig):
    r"""Configuration of a MoAI model (Mixture of All Intelligence, arXiv 2403.07508).

    Attributes:
        vision_config: Configuration of the vision tower; default CLIP ViT-L/14 at 490 px.
        text_config: Configuration of the decoder: Llama (SmolLM2 and converted InternLM2 are Llamas), Mistral,
            Qwen2 or Qwen3.
        compressor: Fields of :class:`compressor.CompressorConfig`; ``hidden_size`` follows the decoder.
        mixer: Fields of :class:`mixer.MixerConfig`; ``hidden_size`` follows the decoder, ``layers`` default to
            four evenly spaced ones, the last included.
        image_token_id: Id of the image placeholder; one stands for each patch.
        num_image_tokens: Patch tokens per image; computed from the vision tower when None.
        vision_feature_layer: Hidden state of the tower to use, -1 = last, before any post-normalisation; a list puts
            those of several side by side.
        vision_feature_select_strategy: ``default`` drops the class token, ``full`` keeps all tokens.
        projector_hidden_act: Activation between the projector's two linears.
        plora_rank: Rank of partial LoRA at image positions (InternLM-XComposer2, arXiv 2401.16420); 0 = none.
        plora_alpha: Scale numerator: updates are multiplied by ``plora_alpha / plora_rank``.
        auxiliary_map_scale: Factor on the panoptic map's 0..255 colours before normalisation. 1 is right;
            1/255 reproduces the almost black maps that released weights were trained with.
        tie_word_embeddings: Share the word embedding with the output head.
        domain: The only images that the weights know ("synthetic Scenes"), of which `moai info` tells; None =
            no such limit is known. Change it when they have learned others.
    """

    model_type = "moai"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="clip_vision_model",
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "patch_size": 14,
                "image_size": 490,
                "projection_dim": 768,
            },
        ),
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="llama",
            init_kwargs={
                "vocab_size": 92545,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-5,
            },
        ),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    compressor: dict | None = None
    mixer: dict | None = None
    image_token_id: int = 92544
    num_image_tokens: int | None = None
    vision_feature_layer: int | list[int] = -1
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    projector_hidden_act: str = "gelu"
    plora_rank: int = 0
    plora_alpha: float = 256.0
    auxiliary_map_scale: float = 1.0
    tie_word_embeddings: bool = False
    domain: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check_text_config()
        if not self.tie_word_embeddings and getattr(self.text_config, "tie_word_embeddings", False):
            self.tie_word_embeddings = True  # only the outer flag counts
        self.compressor = self._fit("compressor", CompressorConfig, self.compressor).to_dict()
        self.mixer = self._fit("mixer", MixerConfig, self._with_mixer_layers()).to_dict()
        self.resolve_vision_features()
        if self.auxiliary_map_scale <= 0:
            raise ValueError(f"`auxiliary_map_scale` must be positive, got {self.auxiliary_map_scale}.")
        if self.plora_rank < 0:
            raise ValueError(f"`plora_rank` must be 0 (none) or more, got {self.plora_rank}.")
        if self.domain is not None and not isinstance(self.domain, str):
            raise ValueError(f"`domain` must be words or None, got {self.domain!r}.")
        if self.num_image_tokens is None:
            self.num_image_tokens = self._count_image_tokens()
        if self.num_image_tokens < 1:
            raise ValueError(f"`num_image_tokens` must be at least 1 token per image, got {self.num_image_tokens}.")

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write ``config.json``, and what lets transformers load the checkpoint with ``trust_remote_code=True``.

        Args:
            save_directory: Folder.
            *args: See :meth:`transformers.PreTrainedConfig.save_pretrained`.
            **kwargs: Likewise.
        """
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)
        write_remote_code(save_directory)

    @property
    def compressor_config(self) -> CompressorConfig:
        """The compressor's settings, checked."""
        return CompressorConfig(**self.compressor)

    @property
    def mixer_config(self) -> MixerConfig:
        """The mixers' settings, checked."""
        return MixerConfig(**self.mixer)

    @property
    def max_positions(self) -> int | None:
        """Longest sequence in tokens that the decoder reads, images and answer included; None = no known bound."""
        return count_positions(self.text_config)

    def _check_text_config(self) -> None:
        family = self.text_config.model_type
        if family not in DECODER_FAMILIES:
            raise ValueError(
                f"`text_config` must be of one of the families {DECODER_FAMILIES}, got {family!r}. "
                "InternLM2 checkpoints become 'llama' through `moai convert`."
            )
        if not 0 <= self.image_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"`image_token_id` must be an id below the decoder's vocab_size {self.text_config.vocab_size}, got "
                f"{self.image_token_id}. Add the placeholder to the tokenizer and enlarge the vocabulary by one."
            )

    def resolve_vision_features(
        self, layer: int | list[int] | None = None, strategy: str | None = None
    ) -> tuple[tuple[int, ...], str]:
        """Say what of the vision tower is used, where a call may override it.

        Args:
            layer: Hidden state or states; None = ``vision_feature_layer``.
            strategy: ``default`` or ``full``; None = ``vision_feature_select_strategy``.

        Returns:
            The hidden states to put side by side, and the strategy.

        Raises:
            ValueError: If the tower has no such hidden state, the projector is not as wide, or the strategy does not
                exist or does not fit the tower.
        """
        family, depth = self.vision_config.model_type, getattr(self.vision_config, "num_hidden_layers", None)
        layer = self.vision_feature_layer if layer is None else layer
        strategy = self.vision_feature_select_strategy if strategy is None else strategy
        if strategy not in ("default", "full"):
            raise ValueError(f"`vision_feature_select_strategy` must be 'default' or 'full', got {strategy!r}.")
        if strategy == "default" and "siglip" in family:
            raise ValueError(
                f"`vision_feature_select_strategy` must be 'full' for {family!r}, got 'default': SigLIP has no class "
                "token, and the first patch would be dropped."
            )
        layers = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
        if not layers or not all(isinstance(index, int) and not isinstance(index, bool) for index in layers):
            raise ValueError(f"`vision_feature_layer` must be a hidden state's number or a list, got {layer!r}.")
        if isinstance(depth, int) and not all(-depth - 1 <= index <= depth for index in layers):
            raise ValueError(
                f"`vision_feature_layer` must be {-depth - 1} to {depth} for a tower of {depth} layers, got {layer}."
            )
        if len(layers) != self.num_vision_features:
            raise ValueError(
                f"`vision_feature_layer` must name as many hidden states as the projector reads, "
                f"{self.num_vision_features}, got {layer}."
            )
        return layers, strategy

    @property
    def num_vision_features(self) -> int:
        """Hidden states of the tower that the projector reads side by side."""
        return 1 if isinstance(self.vision_feature_layer, int) else len(self.vision_feature_layer)

    def _with_mixer_layers(self) -> dict[str, Any]:
        depth = self.text_config.num_hidden_layers
        fields = dict(self.mixer or {})
        if "layers" not in fields:
            fields["layers"] = evenly_spaced_layers(depth, min(DEFAULT_NUM_MIXERS, depth))
        if any(layer >= depth for layer in fields["layers"]):
            raise ValueError(f"`mixer.layers` must be below the decoder's depth {depth}, got {fields['layers']}.")
        return fields

    def _fit(self, name: str, config_class: type, fields: dict[str, Any] | None) -> Any:
        """Build a part's configuration at the decoder's width."""
        fields, width = dict(fields or {}), self.text_config.hidden_size
        if fields.setdefault("hidden_size", width) != width:
            raise ValueError(f"`{name}.hidden_size` must equal the decoder's {width}, got {fields['hidden_size']}.")
        try:
            return config_class(**fields)
        except TypeError as error:
            raise ValueError(f"`{name}` has an unknown field: {error}. See {config_class.__name__}.") from error

    def _count_image_tokens(self) -> int:
        size, patch = (
            getattr(self.vision_config, "image_size", None),
            getattr(self.vision_config, "patch_size", None),
        )
        if not isinstance(size, int) or not isinstance(patch, int):
            raise ValueError(
                "Expected `vision_config` with integer image_size and patch_size to count patch tokens, got "
                f"{size} and {patch}. Give `num_image_tokens` yourself."
            )
        class_token = int(self.vision_feature_select_strategy == "full" and "clip" in self.vision_config.model_type)
        return (size // patch) ** 2 + class_token


AutoConfig.register(MoAIConfig.model_type, MoAIConfig, exist_ok=True)

__all__ = ["DECODER_FAMILIES", "MoAIConfig"]
