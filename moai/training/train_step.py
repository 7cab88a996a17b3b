"""One micro-batch: forward pass, loss on answer tokens, and who spoke."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NUM_ROUTING_SUMS", "TrainingStep", "count_targets", "routing_sums", "target_window"]

#: Per mixer layer and stream: weight of each of three experts, entropy, tokens; all summed over tokens.
NUM_ROUTING_SUMS = 5
_IGNORED = -100


def count_targets(labels: torch.Tensor) -> int:
    """Tokens of ``(B, L)`` labels that carry a loss: each is predicted from the position before it."""
    return int((labels[:, 1:] != _IGNORED).sum())


def target_window(labels: torch.Tensor) -> int:
    """How many last positions must have logits: from the one before the first answer token to the end.

    Samples are padded on the left, so answers stand together at the end; logits of a whole prompt, pictures included,
    would take most of the memory (vocabulary x 1,300 positions in MoAI-7B) and teach nothing.

    Args:
        labels: ``(B, L)``, -100 = no loss.
    """
    columns = (labels != _IGNORED).any(dim=0).nonzero()
    length = labels.shape[1]
    return length if len(columns) == 0 else min(length, length - int(columns[0]) + 1)


def routing_sums(routing: tuple[Any, ...] | None, num_layers: int, device: torch.device) -> torch.Tensor:
    """Sums over tokens of what the mixers report.

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


class TrainingStep(nn.Module):
    """The model with its loss; its outputs are the loss and numbers without gradient.

    Distributed wrappers look at a forward pass's outputs to learn which parameters a step used. The model's own
    outputs hold auxiliary states that no expert may have read in this step; the loss alone tells the truth.

    Args:
        model: A MoAI, or one with a PEFT adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.num_mixers = len(inner.model.mixers.layer_indices)
        # Read by FSDP's wrapping policy, which sees this module only and refuses names that it does not find in it.
        present = {type(module).__name__ for module in model.modules()}
        self._no_split_modules = sorted(present & set(getattr(inner, "_no_split_modules", ()) or ()))

    def forward(
        self, batch: Mapping[str, torch.Tensor], routing: Mapping[str, Any], window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss.

        Args:
            batch: What the collator returned; ``labels`` ``(B, L)`` with -100 for all but answer tokens. With
                ``picture_index`` and ``auxiliary_index`` several samples share one pass of vision tower and compressor.
            routing: Who chooses experts, see :func:`mixer.resolve_routing`.
            window: From :func:`target_window`.

        Returns:
            Cross entropy summed over answer tokens, a scalar; and :func:`routing_sums`.
        """
        inputs = self._look_once({name: value for name, value in batch.items() if name != "labels"})
        outputs = self.model(
            **inputs, routing=routing, output_routing=True, logits_to_keep=window, use_cache=False, return_dict=True
        )
        targets = batch["labels"][:, -window:][:, 1:]
        logits = outputs.logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum")
        return loss, routing_sums(outputs.routing, self.num_mixers, loss.device)

    def _look_once(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the collator kept once goes through vision tower and compressor once, and is repeated behind them."""
        core = (self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model).model
        if (pictures := inputs.pop("picture_index", None)) is not None:
            features = core.get_image_features(inputs.pop("pixel_values"), return_dict=True).pooler_output
            inputs["image_features"] = features[pictures]
        if (rows := inputs.pop("auxiliary_index", None)) is not None:
            looks = {name: inputs.pop(name) for name in tuple(inputs) if name.startswith("auxiliary_")}
            inputs["auxiliary_states"] = core.get_auxiliary_states(**looks)[rows]
        return inputs
