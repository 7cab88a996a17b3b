"""Trained parts of a model, as its class declares them: freezing, counts, learning rates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

__all__ = [
    "ADAPTER",
    "PartCount",
    "adapter_pattern",
    "base_model",
    "count_parts",
    "find_modules",
    "freeze_parts",
    "part_of",
    "print_parts",
    "rest_towers",
]

#: The part of an adapter's own parameters.
ADAPTER = "adapter"


def base_model(model: nn.Module) -> nn.Module:
    """The model inside a PEFT adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def adapter_pattern(model: nn.Module) -> dict[str, str]:
    """The adapter's own parameters as a part, in front of the others; nothing where there is no adapter.

    Args:
        model: Perhaps with a PEFT adapter.
    """
    if not hasattr(model, "peft_config"):
        return {}
    prefix = getattr(model.base_model, "prefix", "prompt_encoder")  # of a tuner; a learned prompt has none
    # With the adapter's name behind it: a checkpoint's own low-rank updates are called lora_A too.
    return {ADAPTER: rf"(?:^|\.){re.escape(prefix)}\w*\.default(?:\.|$)"}


def part_of(name: str, parts: Mapping[str, str]) -> str:
    """Part that a parameter belongs to: the first whose pattern its name matches, else the last.

    Args:
        name: Its full name, with or without PEFT's wrapping.
        parts: Pattern by part, as models declare them in ``trainable_parts``.
    """
    return next((part for part, pattern in parts.items() if re.search(pattern, name)), list(parts)[-1])


def freeze_parts(model: nn.Module, parts: Mapping[str, str], trained: Collection[str]) -> None:
    """Give exactly the trained parts gradients, in float32.

    Args:
        model: Perhaps with a PEFT adapter.
        parts: See :func:`part_of`.
        trained: Names of parts.

    Raises:
        ValueError: Nothing is left to train, or a part is unknown.
    """
    if unknown := sorted(set(trained) - set(parts)):
        raise ValueError(f"expected parts of this model ({', '.join(parts)}), got {', '.join(unknown)}.")
    for name, parameter in model.named_parameters():
        is_trained = part_of(name, parts) in trained and "original_module" not in name.split(".")
        parameter.requires_grad_(is_trained and parameter.is_floating_point())
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"expected parameters of {sorted(trained)} to train, found none in this model.")


def find_modules(model: nn.Module, parts: Mapping[str, str], wanted: Collection[str]) -> list[str]:
    """Names of the modules that hold some parts and nothing else, the outermost ones.

    Args:
        model: Without an adapter.
        parts: See :func:`part_of`.
        wanted: Names of parts.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        inside = [f"{name}.{own}" if name else own for own, _ in module.named_parameters()]
        is_known = any(name == other or name.startswith(f"{other}.") for other in found)
        if inside and not is_known and all(part_of(own, parts) in wanted for own in inside):
            found.append(name)
    return found


def rest_towers(model: nn.Module, parts: Mapping[str, str]) -> None:
    """Put a frozen vision tower in evaluation mode: its dropout and running statistics must not change.

    Args:
        model: In training mode.
        parts: See :func:`part_of`; those whose name begins with ``vision`` are towers.
    """
    towers: dict[str, bool] = {}  # by module: whether it rests
    for name, parameter in model.named_parameters():
        is_resting = part_of(name, parts).startswith("vision") and not parameter.requires_grad
        for place in _places_above(name):
            towers[place] = towers.get(place, True) and is_resting
    for name, module in model.named_modules():
        if towers.get(name) and name:
            module.eval()


def _places_above(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@dataclass(frozen=True)
class PartCount:
    """How much of a part is trained.

    Attributes:
        part: Its name.
        num_parameters: All of them; quantised weights count as the numbers they stand for.
        num_trained: Those with gradients.
    """

    part: str
    num_parameters: int
    num_trained: int


def _count(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # nf4 packs two weights into a byte
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def count_parts(model: nn.Module, parts: Mapping[str, str]) -> list[PartCount]:
    """Count parameters by part; PEFT's untouched copies of modules that it saves whole are left out.

    Args:
        model: Perhaps with a PEFT adapter.
        parts: See :func:`part_of`.
    """
    total: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if "original_module" in name.split("."):
            continue
        part = part_of(name, parts)
        total[part] += _count(parameter)
        trained[part] += _count(parameter) if parameter.requires_grad else 0
    ordered = [part for part in parts if part != ADAPTER] + [ADAPTER]
    return [PartCount(part, total[part], trained[part]) for part in ordered if total[part]]


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
