"""Whether a source's tensors make a whole model: every key accounted for, on names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from .tensor_folder import list_names

__all__ = ["check_keys"]


def check_keys(
    source: Path | str,
    shapes: Mapping[str, Sequence[int]],
    convert: Callable[[str, torch.Tensor], Mapping[str, torch.Tensor] | None],
    model_class: type,
    config: PreTrainedConfig,
    advice: str,
    others: Iterable[str] = (),
) -> None:
    """Plan a whole conversion on names and shapes alone, before anything is written.

    Args:
        source: For messages.
        shapes: Of the source's tensors.
        convert: One of them under our names; nothing = it holds nothing of its own, None = nobody knows it.
        model_class: What is to be filled.
        config: Its configuration.
        advice: The next step, a sentence.
        others: Further complaints.

    Raises:
        ValueError: Naming every kind of mismatch: unknown source keys, missing and surplus targets, wrong shapes.
    """
    with torch.device("meta"):
        model = model_class(config)
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ())
        if getattr(config, "tie_word_embeddings", False)
        else set()
    )
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    unknown, planned = [], {}
    for key, shape in shapes.items():
        targets = convert(key, torch.empty(tuple(shape), device="meta"))
        if targets is None:
            unknown.append(key)
        else:
            planned |= {name: (key, tuple(tensor.shape)) for name, tensor in targets.items()}
    problems = {
        "unknown source key(s)": sorted(unknown),
        "target(s) that no source key fills": sorted(set(expected) - set(planned) - tied),
        "source key(s) the model has no place for": sorted(
            f"{planned[name][0]} (-> {name})" for name in set(planned) - set(expected)
        ),
        "key(s) of the wrong shape": sorted(
            f"{key}: {shape} for {name}, expected {expected[name]}"
            for name, (key, shape) in planned.items()
            if name in expected and shape != expected[name]
        ),
        "key(s) that contradict others": sorted(others),
    }
    told = [f"{len(names)} {what}: {list_names(names)}" for what, names in problems.items() if names]
    if told:
        raise ValueError(f"The checkpoint in {source} does not convert. {'; '.join(told)}. {advice}")
