"""Prismer and PrismerZ: image and experts' maps -> vision encoder -> text decoder -> words."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from ..cache_names import CACHE_NAME, as_keyword, name_cache_for_peft, resolve_cache
from ..forward_arguments import takes_arguments_of
from .adaptor import Adaptor
from .configuration_prismer import EXPERTS, PrismerConfig
from .resampler import ExpertsResampler
from .stems import InstanceEmbedding

__all__ = [
    "EXPERT_INPUTS",
    "FREEZE_MODES",
    "PrismerForConditionalGeneration",
    "PrismerModel",
    "PrismerModelOutput",
    "PrismerOutput",
    "PrismerPreTrainedModel",
]

#: Inputs of the vision encoder beside the pixels, by expert.
EXPERT_INPUTS = {expert: f"{expert}_values" for expert in EXPERTS}
_VISION_LAYERS = r"\bvision_encoder\.layers\.\d+\.(?!adaptor\b)"
_TEXT_LAYERS = r"\btext_decoder\.layers\.\d+\.(?!crossattention\b|adaptor\b)"
#: Freeze mode -> what the names of parameters that rest match. Embeddings, norms, stems, resampler, the decoder's last
#: layer and the head always learn.
FREEZE_MODES = {
    "none": r"(?!)",
    "freeze_vision": _VISION_LAYERS,
    "freeze_lang": _TEXT_LAYERS,
    "freeze_lang_vision": f"{_VISION_LAYERS}|{_TEXT_LAYERS}",
}


def _init_as_torch(module: nn.Module) -> None:
    """Draw convolutions and linear layers as PyTorch does, and with it the original: by their widths."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            init.kaiming_uniform_(layer.weight, a=math.sqrt(5))


@dataclass
class PrismerModelOutput(BaseModelOutputWithPast):
    """Output of :class:`PrismerModel`.

    Attributes:
        last_hidden_state: ``(B, L, D)``.
        cache: Keys and values; ``past_key_values`` is its name before transformers 5.24.
        encoder_hidden_states: ``(B, V, vision width)``, for a next call.
    """

    encoder_hidden_states: torch.Tensor | None = None


@dataclass
class PrismerOutput(CausalLMOutputWithPast):
    """Output of :class:`PrismerForConditionalGeneration`.

    Attributes:
        loss: Mean over the batch of the samples' losses, times their weights.
        logits: ``(B, L, vocabulary)``.
        cache: See :class:`PrismerModelOutput`.
        sample_losses: ``(B,)``, the sum over a sample's tokens, without weights.
        encoder_hidden_states: See :class:`PrismerModelOutput`.
    """

    sample_losses: torch.Tensor | None = None
    encoder_hidden_states: torch.Tensor | None = None


class PrismerPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation common to the Prismer models."""

    config_class = PrismerConfig
    config: PrismerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [CACHE_NAME]
    _no_split_modules = ["PrismerVisionLayer", "PrismerTextLayer", "ResamplerBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True
    #: Parts that are trained or rest as a whole -> what their parameters' names match.
    trainable_parts: ClassVar[dict[str, str]] = {
        "adaptors": r"\badaptor\b",
        "cross_attention": r"\bcrossattention\b",
        "experts": r"\bvision_encoder\.(stems|resampler|instance_embedding)\b",
        "vision_encoder": r"\bvision_encoder\b",
        "decoder": r"\b(text_decoder|lm_head)\b",
    }

    def __init__(self, config: PrismerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for part in (config.vision_config, config.text_config):  # their layers are no models that choose for themselves
            part._attn_implementation = config._attn_implementation

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, *args: Any, **kwargs: Any
    ) -> PrismerPreTrainedModel:
        """Load as every Hugging Face model; see :meth:`transformers.PreTrainedModel.from_pretrained`.

        Args:
            pretrained_model_name_or_path: Folder or hub name.
            *args: As in transformers.
            **kwargs: Likewise.

        Raises:
            ValueError: Fewer bits are asked for.
        """
        if kwargs.pop("load_in_4bit", False) or kwargs.pop("load_in_8bit", False):
            raise ValueError("expected a Prismer in 16 or 32 bits, got load_in_4bit or load_in_8bit. Leave them out.")
        kwargs.setdefault("use_safetensors", True)  # never unpickle
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        from transformers.models.roberta.modeling_roberta import RobertaEmbeddings, RobertaLMHead

        from .vision_encoder import PrismerVisionEncoder

        super()._init_weights(module)
        if isinstance(module, PrismerVisionEncoder):
            init.normal_(module.positional_embedding, std=module.positional_embedding.shape[-1] ** -0.5)
            _init_as_torch(module.stems)
        elif isinstance(module, InstanceEmbedding):
            init.normal_(module.weight, std=module.weight.shape[-1] ** -0.5)
        elif isinstance(module, ExpertsResampler):
            init.normal_(module.latents, std=module.latents.shape[-1] ** -0.5)
            _init_as_torch(module)
        elif isinstance(module, RobertaLMHead):
            init.zeros_(module.bias)
        elif isinstance(module, RobertaEmbeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))
            init.zeros_(module.token_type_ids)
        elif isinstance(module, Adaptor):
            init.normal_(module.up_proj.weight, std=1e-3)  # nearly the identity, as the paper says

    def freeze(self, mode: str) -> None:
        """Choose what learns, as the original does.

        Args:
            mode: One of :data:`FREEZE_MODES`: "freeze_lang_vision" for pre-training, "freeze_vision" for fine-tuning.

        Raises:
            ValueError: There is no such mode.
        """
        if mode not in FREEZE_MODES:
            raise ValueError(f"expected a freeze mode of {', '.join(FREEZE_MODES)}, got {mode!r}.")
        for name, parameter in self.named_parameters():
            parameter.requires_grad = re.search(FREEZE_MODES[mode], name) is None


class PrismerModel(PrismerPreTrainedModel):
    """Vision encoder and text decoder without a head.

    Args:
        config: The configuration.
    """

    def __init__(self, config: PrismerConfig) -> None:
        # Only now: transformers' layers need AutoModel, and taking that imports this module.
        from .text_decoder import PrismerTextDecoder
        from .vision_encoder import PrismerVisionEncoder

        super().__init__(config)
        self.vision_encoder = PrismerVisionEncoder(config)
        self.text_decoder = PrismerTextDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.text_decoder.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.text_decoder.embeddings.word_embeddings = value

    def encode_images(self, pixel_values: torch.Tensor | None = None, **maps: torch.Tensor | None) -> torch.Tensor:
        """Encode images and experts' maps.

        Args:
            pixel_values: ``(B, 3, H, W)``.
            **maps: ``depth_values`` and so on ``(B, C, h, w)``, and ``instance_map`` ``(B, 1, h, w)``.

        Returns:
            ``(B, V, vision width)``.

        Raises:
            ValueError: The pixels or a map are missing.
        """
        if pixel_values is None:
            raise ValueError("expected `pixel_values` or `encoder_hidden_states`, got neither. Give an image.")
        instance_map = maps.pop("instance_map", None)
        values = {expert: maps.pop(name, None) for expert, name in EXPERT_INPUTS.items()}
        if maps:
            raise TypeError(f"unknown maps {sorted(maps)}.")
        return self.vision_encoder(pixel_values, values, instance_map)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        depth_values: torch.Tensor | None = None,
        normal_values: torch.Tensor | None = None,
        seg_values: torch.Tensor | None = None,
        edge_values: torch.Tensor | None = None,
        obj_detection_values: torch.Tensor | None = None,
        ocr_detection_values: torch.Tensor | None = None,
        instance_map: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        inputs_embeds: torch.Tensor | None = None,
    ) -> PrismerModelOutput:
        """Read texts about images.

        Args:
            input_ids: ``(B, L)`` int64.
            attention_mask: ``(B, cached + L)``, 0 = padding, on either side.
            pixel_values: ``(B, 3, H, W)``.
            depth_values: ``(B, 1, h, w)`` in [-1, 1]; likewise ``edge_values``, and ``normal_values`` ``(B, 3, h, w)``.
            normal_values: See there.
            seg_values: ``(B, label_size, h, w)``: features of each pixel's label; likewise ``obj_detection_values`` and
                ``ocr_detection_values``.
            edge_values: See there.
            obj_detection_values: See there.
            ocr_detection_values: See there.
            instance_map: ``(B, 1, h, w)`` numbers of the detected objects, 255 = background.
            encoder_hidden_states: ``(B, V, vision width)``, instead of pixels and maps.
            cache: Keys and values so far.
            past_key_values: Its former name.
            use_cache: Return keys and values.
            inputs_embeds: ``(B, L, D)`` of words, instead of ``input_ids``.

        Returns:
            Last hidden states, cache and the vision encoder's tokens.

        Raises:
            ValueError: Pixels or a map are missing.
        """
        if encoder_hidden_states is None:
            encoder_hidden_states = self.encode_images(
                pixel_values,
                depth_values=depth_values,
                normal_values=normal_values,
                seg_values=seg_values,
                edge_values=edge_values,
                obj_detection_values=obj_detection_values,
                ocr_detection_values=ocr_detection_values,
                instance_map=instance_map,
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        cache = resolve_cache(cache, past_key_values)
        if use_cache and cache is None:
            cache = build_cache()
        if cache is not None and not isinstance(cache, EncoderDecoderCache):
            raise ValueError(
                f"expected an EncoderDecoderCache, which holds the vision tokens' keys too, got "
                f"{type(cache).__name__}. Leave `cache_implementation` out."
            )
        hidden_states = self.text_decoder(input_ids, encoder_hidden_states, attention_mask, cache, inputs_embeds)
        return PrismerModelOutput(
            last_hidden_state=hidden_states, **as_keyword(cache), encoder_hidden_states=encoder_hidden_states
        )


class PrismerForConditionalGeneration(PrismerPreTrainedModel, GenerationMixin):
    """Prismer with RoBERTa's head: captions and answers.

    Args:
        config: The configuration.
    """

    _tied_weights_keys = {
        "lm_head.decoder.weight": "model.text_decoder.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config: PrismerConfig) -> None:
        from transformers.models.roberta.modeling_roberta import RobertaLMHead

        super().__init__(config)
        self.model = PrismerModel(config)
        self.lm_head = RobertaLMHead(config.text_config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head's last layer."""
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head's last layer."""
        self.lm_head.decoder = new_embeddings

    def encode_images(self, pixel_values: torch.Tensor | None = None, **maps: torch.Tensor | None) -> torch.Tensor:
        """See :meth:`PrismerModel.encode_images`."""
        return self.model.encode_images(pixel_values, **maps)

    @can_return_tuple
    @takes_arguments_of(PrismerModel.forward)
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        sample_weights: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> PrismerOutput:
        """Read texts about images.

        Args:
            input_ids: ``(B, L)`` int64.
            attention_mask: ``(B, cached + L)``, 0 = padding, on either side.
            labels: ``(B, L)`` int64, -100 = not learned; the token at a place is what the place before it predicts.
            sample_weights: ``(B,)``, weights of the samples in the loss.
            logits_to_keep: Logits of so many last places only; 0 = of all.
            **kwargs: Those of :meth:`PrismerModel.forward`.

        Returns:
            Loss, logits, cache and the vision encoder's tokens.

        Raises:
            ValueError: Pixels or a map are missing, or attentions or hidden states are asked for.
        """
        for name in ("output_attentions", "output_hidden_states"):  # PEFT's prompt learning names them, mostly None
            if kwargs.pop(name, None):
                raise ValueError(f"expected no `{name}`, which Prismer does not hand out. Leave it out.")
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        hidden_states = output.last_hidden_state
        logits = self.lm_head(hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states)
        loss = losses = None
        if labels is not None:
            losses = self.compute_sample_losses(logits, labels)
            loss = (losses if sample_weights is None else losses * sample_weights).mean()
        return PrismerOutput(
            loss=loss,
            sample_losses=losses,
            logits=logits,
            **as_keyword(getattr(output, CACHE_NAME)),
            encoder_hidden_states=output.encoder_hidden_states,
        )

    def compute_sample_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Label-smoothed cross-entropies, summed over a sample's tokens: ``(B, L, vocabulary), (B, L) -> (B,)``."""
        tokens = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            labels[:, 1:].flatten().to(logits.device),
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )
        return tokens.view(len(labels), -1).sum(dim=1)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in transformers."""
        return name_cache_for_peft(self, super().prepare_inputs_for_generation(*args, **kwargs))

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate; see transformers. Images and maps are read once, whatever the number of beams.

        Args:
            *args: As in transformers.
            **kwargs: Likewise, and the arguments of :meth:`forward`.
        """
        names = ["pixel_values", "instance_map", *EXPERT_INPUTS.values()]
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        if kwargs.get("encoder_hidden_states") is None:
            kwargs["encoder_hidden_states"] = self.encode_images(**given)
        generation_config = kwargs.get("generation_config") or self.generation_config
        if kwargs.get("use_cache", generation_config.use_cache) is not False:
            if not {CACHE_NAME, "past_key_values", "cache_implementation"} & set(kwargs):
                kwargs[CACHE_NAME] = build_cache()  # holds keys and values of the vision tokens too
        return super().generate(*args, **kwargs)


def build_cache() -> EncoderDecoderCache:
    """An empty cache of words and vision tokens; it grows by layer."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


AutoModel.register(PrismerConfig, PrismerModel, exist_ok=True)
AutoModelForImageTextToText.register(PrismerConfig, PrismerForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(PrismerConfig, PrismerForConditionalGeneration, exist_ok=True)
