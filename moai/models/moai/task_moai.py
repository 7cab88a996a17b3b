"""MoAI's training: routing of the experts and their shares; images and verbalizations that several samples share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mixer import IMAGE_EXPERTS, LANGUAGE_EXPERTS, NUM_EXPERTS
from moai.data.collator import WEIGHTS
from moai.training.start import find_start
from moai.training.tasks.answers import AnswersTask, answer_loss
from moai.training.trained_parts import base_model

from .adapters import PROJECTOR, default_lora_config
from .collator_moai import MoAICollator
from .new_model import from_backbones, renew
from .processing_moai import MoAIProcessor
from .routing_report import draw_routing
from .settings_moai import MoAITrainSettings

__all__ = ["MoAITask", "compute_loss", "mean_routing", "routing_sums"]

#: Per mixer layer and stream: weight of each of three experts, entropy, tokens; all summed over tokens.
NUM_ROUTING_SUMS = 5
STREAMS = ("image", "language")
#: Expert order of each stream (mixer/gating.py).
EXPERT_NAMES = {"image": IMAGE_EXPERTS, "language": LANGUAGE_EXPERTS}


def routing_sums(routing: tuple[Any, ...] | None, num_layers: int, device: torch.device) -> torch.Tensor:
    """Sums of the mixers' gate weights over tokens.

    Args:
        routing: One :class:`mixer.LayerRouting` per mixer layer; None or empty where nothing was mixed.
        num_layers: Number M of mixer layers.
        device: Where the result lies.

    Returns:
        ``(M, 2, 5)`` float32 without gradient; stream order image, language; see :data:`NUM_ROUTING_SUMS`.
    """
    rows = []
    for layer in routing or ():
        for weights, mask in ((layer.image, layer.image_mask), (layer.language, layer.language_mask)):
            weights = weights.detach().float()
            entropy = -(weights * weights.clamp_min(1e-12).log()).sum()
            rows.append(torch.stack([*weights.sum(dim=(0, 1)), entropy, mask.sum().float()]).to(device))
    if not rows:
        return torch.zeros(num_layers, 2, NUM_ROUTING_SUMS, device=device)
    return torch.stack(rows).view(num_layers, 2, NUM_ROUTING_SUMS)


def mean_routing(sums: torch.Tensor) -> dict[str, Any]:
    """Share of each expert and entropy (nats) of the weights, per stream, over layers; and shares by layer.

    Args:
        sums: ``(M, 2, 5)``, see :func:`routing_sums`; a stream without tokens is left out.
    """
    result: dict[str, Any] = {}
    for stream, name in enumerate(STREAMS):
        layers = sums[:, stream].tolist()
        count = sum(row[4] for row in layers)
        if not count:
            continue
        shares = [sum(row[expert] for row in layers) / count for expert in range(NUM_EXPERTS)]
        result[name] = dict(zip(EXPERT_NAMES[name], shares, strict=True))
        result[name]["entropy"] = sum(row[3] for row in layers) / count
        result[name]["layers"] = [[row[k] / row[4] if row[4] else 0.0 for k in range(NUM_EXPERTS)] for row in layers]
    return result


def compute_loss(
    model: nn.Module, samples: Mapping[str, torch.Tensor], routing: Mapping[str, Any] | torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss of a batch.

    Args:
        model: A MoAI, or one with a PEFT adapter.
        samples: What the collator returned; ``labels`` ``(B, L)`` with -100 for all but answer tokens. With
            ``image_index`` and ``auxiliary_index`` several samples share one pass of vision tower and compressor.
        routing: Who chooses experts, see :func:`mixer.resolve_routing`.
        window: From :func:`moai.training.tasks.answers.target_window`.

    Returns:
        Cross entropy summed over answer tokens, a scalar; and :func:`routing_sums`.
    """
    core = base_model(model).model
    inputs = _look_once(core, {name: value for name, value in samples.items() if name not in ("labels", WEIGHTS)})
    outputs = model(
        **inputs, routing=routing, output_routing=True, logits_to_keep=window, use_cache=False, return_dict=True
    )
    loss = answer_loss(outputs.logits, samples["labels"], samples.get(WEIGHTS))
    return loss, routing_sums(outputs.routing, len(core.mixers.layer_indices), loss.device)


def _look_once(core: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Encode images and verbalizations once where several samples share them, and repeat the features."""
    if (images := inputs.pop("image_index", None)) is not None:
        features = core.get_image_features(inputs.pop("pixel_values"), return_dict=True).pooler_output
        inputs["image_features"] = features[images]
    if (rows := inputs.pop("auxiliary_index", None)) is not None:
        looks = {name: inputs.pop(name) for name in tuple(inputs) if name.startswith("auxiliary_")}
        inputs["auxiliary_states"] = core.get_auxiliary_states(**looks)[rows]
    return inputs


class MoAITask(AnswersTask):
    """One stage of MoAI's training (paper, section 3.3)."""

    collator_class = MoAICollator
    adapter_settings = {
        "r": "train.lora_rank",
        "lora_alpha": "train.lora_alpha",
        "target_modules": "train.lora_linears",
    }
    settings: MoAITrainSettings

    @classmethod
    def whole_parts(cls, settings: MoAITrainSettings, parts: Mapping[str, str]) -> set[str]:
        """See :meth:`.AnswersTask.whole_parts`."""
        train = settings.train
        switches = {
            "vision_tower": train.vision_tower,
            "projector": train.projector,
            "compressor": train.compressor,
            "mixers": train.mixers,
            "gates": settings.trains_gates,
            "decoder": train.decoder == "full",
        }
        return {part for part, is_on in switches.items() if is_on}

    @classmethod
    def adapter_config(cls, model: nn.Module, settings: MoAITrainSettings) -> Any:
        """See :meth:`.AnswersTask.adapter_config`; experts and gates of a layer are saved together."""
        train = settings.train
        if train.decoder != "lora":
            return super().adapter_config(model, settings)
        wanted = {
            "compressor": train.compressor,
            "mixers": train.mixers or settings.trains_gates,
            PROJECTOR: train.projector,
            "vision_tower": train.vision_tower,
        }
        return default_lora_config(
            model,
            train.lora_rank,
            alpha=train.lora_alpha,
            dropout=train.lora_dropout,
            linears=train.lora_linears,
            modules_to_save=[name for name, is_wanted in wanted.items() if is_wanted] or None,
        )

    @classmethod
    def make_new(cls, settings: MoAITrainSettings) -> tuple[nn.Module, MoAIProcessor]:
        """Around two backbones; or a checkpoint with parts that are reinitialized, perhaps in other sizes."""
        chosen = settings.model
        if chosen.path is None:
            return from_backbones(
                chosen.vision,
                chosen.text,
                compressor=chosen.compressor or None,
                mixer=chosen.mixer or None,
                gguf_file=chosen.gguf_file,
                dtype=None if chosen.dtype is None else getattr(torch, chosen.dtype),
                **chosen.fields,
            )
        start, sizes = find_start(chosen.path), {"compressor": chosen.compressor, "mixer": chosen.mixer}
        model = renew(start, sizes, chosen.fresh_parts, chosen.keeps_fitting, settings.seed)
        return model, MoAIProcessor.from_pretrained(start)

    @property
    def _num_mixers(self) -> int:
        return len(base_model(self.model).model.mixers.layer_indices)

    def options(self, step: int) -> dict[str, Any]:
        """Routing of a step: all ranks draw alike."""
        settings = self.settings
        seed = (settings.seed, step, 1)
        return {"routing": draw_routing(settings.routing_mode, settings.top_k, seed, self._num_mixers)}

    def validation_options(self, place: int) -> dict[str, Any]:
        """The stage's own routing; one drawn expert for all batches would be one drawn result."""
        settings = self.settings
        if settings.routing_mode == "random_weights":
            return {"routing": draw_routing("random_weights", 3, (settings.seed, place), self._num_mixers)}
        routing = {"mode": settings.routing_mode, "top_k": settings.top_k, "seed": settings.seed + place}
        return {"routing": routing}

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :func:`compute_loss`; the counters are :func:`routing_sums`."""
        loss, routing = compute_loss(self.model, inputs["samples"], **inputs["options"], window=inputs["window"])
        return loss, {"routing": routing}

    def report(self, counters: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Shares of the experts; see :func:`mean_routing`."""
        return {"routing": mean_routing(counters["routing"])}
