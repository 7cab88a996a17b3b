"""What binds a run: its settings, the weights it starts from, its data. One that goes on must find the same."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from moai.data.sample_identity import describe_rows, fold_digests, hash_value, show_progress

from .checkpoints import CheckpointError, trained_tensors
from .processes import seed_generators

__all__ = ["check_same_run", "find_change", "flatten_settings", "hash_frozen", "hash_samples"]

#: Settings that a resumed run may change: they leave what is learned as it is, up to rounding.
_FREE_SETTINGS = (
    "output_folder",
    "saving",
    "watching",
    "validation",
    "num_processes",
    "num_workers",
    "model.gradient_checkpointing",
    "model.attn_implementation",
    "optimization.micro_batch_size",
)


def hash_frozen(model: nn.Module, part_of: Callable[[str], str]) -> dict[str, str]:
    """SHA-256 of what training does not change, by part: a checkpoint holds the rest.

    Args:
        model: Before a distributed wrapper is around it.
        part_of: Part that a name of :attr:`model` belongs to.
    """
    trained, digests = trained_tensors(model), defaultdict(hashlib.sha256)
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in show_progress([item for item in named if item[0] not in trained], "reading weights"):
        digests[part_of(name) or "model"].update(name.encode() + hash_value(tensor))
    return {part: digest.hexdigest() for part, digest in digests.items()}


def hash_samples(dataset: Any) -> dict[str, Any]:
    """What a map-style dataset consists of: what its ``identity()`` says, or else the content of every sample.

    Args:
        dataset: With ``__len__`` and ``__getitem__``. Without ``identity()`` each sample is made once; random numbers
            that it draws are the same every time.
    """
    if callable(getattr(dataset, "identity", None)):
        return dict(dataset.identity())
    digests = []
    for index in show_progress(range(len(dataset)), "reading samples"):
        seed_generators(index)
        try:
            digests.append(hash_value(dataset[index]))
        except Exception as error:  # noqa: BLE001 - training tells of it when it needs the sample
            digests.append(hash_value(repr(error)))
    return {"samples": fold_digests(digests)}


def find_change(old: Any, new: Any, name: str = "") -> tuple[str, str] | None:
    """The first difference between JSON-able values: its dotted name, and what has changed in words.

    Args:
        old: Of the run that is continued.
        new: Of the present one.
        name: Dotted name of both in a larger whole.
    """
    if old == new:
        return None
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if {"count", "digests"} == old.keys() == new.keys():
            return name, describe_rows(old, new)
        changes = (find_change(old.get(key), new.get(key), f"{name}.{key}" if name else key) for key in {**new, **old})
        return next((change for change in changes if change is not None), None)
    if old is None or new is None:
        return name, "was not there before" if old is None else "is there no more"
    is_content = any(isinstance(value, str) and (len(value) == 64 or "\n" in value) for value in (old, new))
    return name, "has another content" if is_content else f"was {old!r} and is {new!r}"


def check_same_run(
    old: Mapping[str, Any], new: Mapping[str, Any], checkpoint: Path, fixed_settings: Collection[str] = ()
) -> str:
    """Check that a resumed run has the settings, the start and the data of the run it continues.

    Args:
        old: ``settings`` and the task's identity, as ``state.json`` holds them.
        new: The same of the present run.
        checkpoint: Where the old ones stand.
        fixed_settings: Those that may not change though they may elsewhere, see :class:`moai.training.task.Task`.

    Returns:
        What may be otherwise, and is: a line for the user; "" where there is nothing to tell.

    Raises:
        CheckpointError: Something else is otherwise; the message names it.
    """
    before, now = (_bound_settings(state["settings"], fixed_settings) for state in (old, new))
    changed = [name for name in sorted(set(before) | set(now)) if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        raise CheckpointError(
            f"expected the settings that {checkpoint} was written with, but `{name}` was {before.get(name)!r} and is "
            f"{now.get(name)!r}. Set it back, or choose another `output_folder`."
        )
    told = ""
    for group in [name for name in new if name != "settings"]:
        change = find_change(old.get(group), new[group], group)
        if change is None:
            continue
        name, words = change
        if group == "validation" and old["settings"].get(group) != new["settings"].get(group):
            told = (
                f"validation data are others than before (`{name}`: {words}): earlier losses compare with no later ones"
            )
            continue
        wanted, got = ("data", "other data") if group != "start" else ("model", "another start")
        verb = "was trained on" if wanted == "data" else "was trained from"
        raise CheckpointError(
            f"expected the {wanted} that {checkpoint} {verb}, got {got}: `{name}`: {words}. Restore it, or choose "
            "another `output_folder`."
        )
    return told


def _bound_settings(settings: Mapping[str, Any], fixed: Collection[str]) -> dict[str, Any]:
    free = tuple(f"{name}." for name in _FREE_SETTINGS)
    flat = flatten_settings(settings)
    return {name: value for name, value in flat.items() if name in fixed or not f"{name}.".startswith(free)}


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings with dotted names; lists become text, as trackers want them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
