"""Trained parts of a model, as its class declares them: freezing, counts, learning rates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from moai.models.moai.pretrained_model import MoAIPreTrainedModel

from .train_settings import TrainSettings

__all__ = ["PARTS", "PartCount", "count_parts", "freeze_parts", "part_of", "print_parts"]

#: Parts of a MoAI, in the order of the figure (paper, figure 3); what belongs to none is the decoder's.
PARTS = (*MoAIPreTrainedModel.trainable_parts, "decoder LoRA")
_LORA = re.compile(r"(?:^|\.)lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\.")


def part_of(name: str) -> str:
    """Part that a parameter belongs to, one of :data:`PARTS`.

    Args:
        name: Its full name, with or without PEFT's wrapping.
    """
    if _LORA.search(name):
        return "decoder LoRA"
    declared = MoAIPreTrainedModel.trainable_parts.items()
    return next((part for part, pattern in declared if re.search(pattern, name)), "decoder")


def _trained_parts(settings: TrainSettings) -> set[str]:
    train = settings.train
    switches = {
        "vision_tower": train.vision_tower,
        "projector": train.projector,
        "compressor": train.compressor,
        "mixers": train.mixers,
        "gates": settings.trains_gates,
        "decoder": train.decoder == "full",
        "decoder LoRA": train.decoder == "lora",
    }
    return {part for part, is_on in switches.items() if is_on}


def freeze_parts(model: nn.Module, settings: TrainSettings) -> None:
    """Give exactly the trained parts gradients, in float32.

    Args:
        model: A MoAI, or one with a PEFT adapter.
        settings: The recipe.

    Raises:
        ValueError: Nothing is left to train.
    """
    trained = _trained_parts(settings)
    for name, parameter in model.named_parameters():
        is_trained = part_of(name) in trained and "original_module" not in name.split(".")
        parameter.requires_grad_(is_trained and parameter.is_floating_point())
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"expected parameters of {sorted(trained)} to train, found none in this model.")


def set_training_mode(model: nn.Module) -> None:
    """Training mode for all but a frozen vision tower, whose dropout and running statistics must not change.

    Args:
        model: The trained model.
    """
    model.train()
    for name, module in model.named_modules():
        is_tower = name.rsplit(".", 1)[-1] == "vision_tower"
        if is_tower and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


@dataclass(frozen=True)
class PartCount:
    """How much of a part is trained.

    Attributes:
        part: One of :data:`PARTS`.
        num_parameters: All of them; quantised weights count as the numbers they stand for.
        num_trained: Those with gradients.
    """

    part: str
    num_parameters: int
    num_trained: int


def _count(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # nf4 packs two weights into a byte
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def count_parts(model: nn.Module) -> list[PartCount]:
    """Count parameters by part; PEFT's untouched copies of modules that it saves whole are left out.

    Args:
        model: A MoAI, or one with a PEFT adapter.
    """
    total: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if "original_module" in name.split("."):
            continue
        total[part_of(name)] += _count(parameter)
        trained[part_of(name)] += _count(parameter) if parameter.requires_grad else 0
    return [PartCount(part, total[part], trained[part]) for part in PARTS if total[part]]


def print_parts(counts: list[PartCount]) -> None:
    """Print what is trained: module, parameters, share.

    Args:
        counts: From :func:`count_parts`.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What is trained")
    for heading in ("module", "parameters", "trained", "share of the module", "share of all trained"):
        table.add_column(heading, justify="left" if heading == "module" else "right")
    num_trained = sum(row.num_trained for row in counts)
    num_all = sum(row.num_parameters for row in counts)
    for row in counts:
        table.add_row(*_cells(row.part, row.num_parameters, row.num_trained, num_trained))
    table.add_section()
    table.add_row(*_cells("all", num_all, num_trained, num_trained))
    Console().print(table)


def _cells(part: str, total: int, trained: int, all_trained: int) -> Iterator[str]:
    yield from (part, f"{total:,}", f"{trained:,}", f"{trained / max(total, 1):.1%}")
    yield f"{trained / max(all_trained, 1):.1%}"


def rate_part_of(name: str) -> str:
    """Part whose learning rate a parameter has: adapters learn at the decoder's.

    Args:
        name: See :func:`part_of`.
    """
    return part_of(name).split()[0]
