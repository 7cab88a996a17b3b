"""Operations and saved activations of one training step, counted on the real model on torch's meta device.

The model is built on torch's ``meta`` device, where tensors have shapes and no numbers, and runs forward and backward
under torch's counters. So partial LoRA, adapters, experts that are idle and gradients that stop at frozen parts count
as they are. Attention counts in full, without the half that a causal kernel saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mixer import Gate, TokenStream, resolve_routing
from mixer.configuration_mixer import NUM_EXPERTS
from moai.models.moai.configuration_moai import MoAIConfig
from moai.models.moai.injection import Mixture, PromptMemory, RoutingLog
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.task_moai import MoAITask
from moai.processing.token_roles import IMAGE_ROLE, LANGUAGE_ROLE, NO_ROLE

from .train_settings import TrainSettings
from .trained_parts import count_parts

__all__ = ["SampleShape", "StepCount", "count_step"]


@dataclass(frozen=True)
class SampleShape:
    """Tokens of a sample; images and maps have as many as the model makes of them.

    Attributes:
        num_prompt_tokens: Words of system prompt and question.
        num_answer_tokens: Words that are learned.
        num_auxiliary_tokens: Words of the verbalization.
    """

    num_prompt_tokens: int = 80
    num_answer_tokens: int = 120
    num_auxiliary_tokens: int = 275


@dataclass(frozen=True)
class StepCount:
    """Counts of one sample's training step.

    Attributes:
        num_parameters: Of the model, adapters included.
        num_trained: With gradients.
        num_linear: Of the decoder's linears, which quantisation shrinks.
        num_copied: Parts that PEFT keeps a second, untouched copy of.
        forward_flops: Floating-point operations of the forward pass; a multiplication with its addition counts two.
        backward_flops: Of the backward pass.
        decoder_flops: Of the decoder's forward pass, mixers included: repeated where activations are recomputed.
        saved_bytes: Activations kept for the backward pass, 16 bits each.
        layer_bytes: Of them, the largest decoder layer's, mixer included.
        outside_bytes: Of them, what is kept outside the decoder's layers.
        num_layers: Decoder layers.
        boundary_bytes: One decoder layer's input.
    """

    num_parameters: int
    num_trained: int
    num_linear: int
    num_copied: int
    forward_flops: int
    backward_flops: int
    decoder_flops: int
    saved_bytes: int
    layer_bytes: int
    outside_bytes: int
    num_layers: int
    boundary_bytes: int


class _SavedBytes:
    """Bytes of the activations that autograd saves, every storage once, without parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._kept: list[torch.Tensor] = []  # holds storages alive, so that their identities stay theirs
        self._seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        identity = tensor.untyped_storage()._cdata
        if identity not in self._seen:
            self._seen.add(identity)
            self._kept.append(tensor)
            self.total += tensor.untyped_storage().nbytes()
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        with saved_tensors_hooks(self.pack, lambda tensor: tensor):
            yield


def _build(config: MoAIConfig, settings: TrainSettings) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = MoAIForConditionalGeneration(config).to(torch.bfloat16)
        model = MoAITask.adapt(model, settings)
    for parameter in model.parameters():  # under autocast activations are 16 bits wide wherever weights are not
        parameter.data = parameter.data.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, Gate):  # its own forward switches autocast off, which this device does not have
            module.forward = partial(_weigh, module)
    return model.train()


def _weigh(
    gate: Gate, tokens: torch.Tensor, available: torch.Tensor | None = None, top_k: int = NUM_EXPERTS
) -> torch.Tensor:
    return nn.functional.linear(tokens.float(), gate.weight.float(), gate.bias.float()).softmax(dim=-1)


def count_step(config: MoAIConfig, settings: TrainSettings, shape: SampleShape) -> StepCount:
    """Count one sample's forward and backward pass.

    Args:
        config: The model.
        settings: What is trained, and the routing.
        shape: How long samples are.

    Returns:
        The counts, exact for these shapes.
    """
    trained = _build(config, settings)
    model = trained.get_base_model() if hasattr(trained, "get_base_model") else trained
    body, counter, saved = model.model, FlopCounterMode(display=False), _SavedBytes(trained)
    tower = [parameter.requires_grad for parameter in body.vision_tower.parameters()]
    layer_bytes = _watch_layers(body.language_model.layers, saved)
    with counter, saved.counting():
        with torch.set_grad_enabled(any(tower)):
            features = [_look(body) for _ in range(2)]  # the image and the painted map
        image, painted = (body.multi_modal_projector(each) for each in features)
        words = torch.empty(1, shape.num_auxiliary_tokens, config.text_config.hidden_size, **_META)
        auxiliary = body.compressor(words, torch.ones(words.shape[:2], device="meta", dtype=torch.long), painted)
        before = counter.get_total_flops()
        hidden = _decode(body, config, settings, shape, image, auxiliary)
        decoder_flops = counter.get_total_flops() - before
        logits = model.lm_head(hidden[:, -shape.num_answer_tokens - 1 :]).float()
        targets = torch.zeros(shape.num_answer_tokens, device="meta", dtype=torch.long)
        loss = nn.functional.cross_entropy(logits[0, :-1], targets)
        forward_flops = counter.get_total_flops()
        saved_bytes = saved.total
        loss.backward()
        backward_flops = counter.get_total_flops() - forward_flops
    parts = count_parts(trained, MoAITask.parts_of(trained))
    return StepCount(
        num_parameters=sum(row.num_parameters for row in parts),
        num_trained=sum(row.num_trained for row in parts),
        num_linear=_count_linear(body.language_model),
        num_copied=sum(p.numel() for n, p in trained.named_parameters() if "original_module" in n.split(".")),
        forward_flops=forward_flops,
        backward_flops=backward_flops,
        decoder_flops=decoder_flops,
        saved_bytes=saved_bytes,
        layer_bytes=max(layer_bytes),
        outside_bytes=saved_bytes - sum(layer_bytes),
        num_layers=len(layer_bytes),
        boundary_bytes=hidden.numel() * hidden.element_size(),
    )


_META = {"device": "meta", "dtype": torch.bfloat16}


def _look(body: nn.Module) -> torch.Tensor:
    """Patch features of one image."""
    vision = body.config.vision_config
    tokens = body.vision_tower(torch.empty(1, 3, vision.image_size, vision.image_size, **_META)).last_hidden_state
    tokens = tokens.repeat(1, 1, body.config.num_vision_features)  # as wide as several hidden states
    return tokens[:, 1:] if body.config.vision_feature_select_strategy == "default" else tokens


def _decode(
    body: nn.Module,
    config: MoAIConfig,
    settings: TrainSettings,
    shape: SampleShape,
    image: torch.Tensor,
    auxiliary: torch.Tensor,
) -> torch.Tensor:
    """The decoder over an image, a prompt and an answer: ``(1, L, D)``."""
    words = torch.empty(1, shape.num_prompt_tokens + shape.num_answer_tokens, image.shape[2], **_META)
    embeds = torch.cat([image, words], dim=1)
    roles = [IMAGE_ROLE] * image.shape[1] + [LANGUAGE_ROLE] * shape.num_prompt_tokens
    # Where tokens stand is looked up in numbers, so this one tensor has them.
    real_roles = torch.tensor([roles + [0] * shape.num_answer_tokens])
    mixer = config.mixer_config
    choice = {"mode": settings.routing_mode, "top_k": settings.top_k}
    if settings.routing_mode == "random_expert":
        choice["seed"] = 0
    routing = resolve_routing(choice, mixer)
    image_stream, language_stream = (TokenStream.from_roles(real_roles == role) for role in (IMAGE_ROLE, LANGUAGE_ROLE))
    mixture = Mixture(body.mixers, auxiliary, image_stream, language_stream, routing, RoutingLog())
    if mixer.mixes_answers:
        mixture.answers = TokenStream.from_roles(real_roles == NO_ROLE)
        mixture.memory = PromptMemory(routing, torch.ones(1, 1, dtype=torch.bool))
    length = embeds.shape[1]
    options = {"image_positions": torch.ones(1, length, device="meta", dtype=torch.bool)} if config.plora_rank else {}
    # A ready mask: making one would look at numbers.
    mask = torch.ones(1, 1, length, length, device="meta", dtype=torch.bool)
    outputs = body.language_model(
        inputs_embeds=embeds, attention_mask=mask, mixture=mixture, use_cache=False, return_dict=True, **options
    )
    return outputs.last_hidden_state


def _watch_layers(layers: nn.ModuleList, saved: _SavedBytes) -> list[int]:
    """Bytes that each layer adds, filled in during the forward pass."""
    added = [0] * len(layers)
    for index, layer in enumerate(layers):

        def before(module: nn.Module, inputs: object, index: int = index) -> None:
            added[index] -= saved.total

        def after(module: nn.Module, inputs: object, outputs: object, index: int = index) -> None:
            added[index] += saved.total

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
    return added


def _count_linear(decoder: nn.Module) -> int:
    """Numbers in the decoder's pretrained matrices."""
    return sum(
        module.weight.numel()
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    )
