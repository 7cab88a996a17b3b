"""Weight averaging of checkpoints that share their start.

    python -m moai.training.averaging runs/nano-stage2/final runs/nano-again/final --out runs/nano-average

Source: Model soups, arXiv 2203.05482.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from moai.checkpoints.io.adapter_files import is_adapter_folder, read_config
from moai.models.answering import load_whole
from moai.models.registry import find_answering
from verbalizers.core.durable_files import atomic_folder

from .model_building import copy_verbalizer_settings

__all__ = ["average_checkpoints", "main"]


def average_checkpoints(folders: Sequence[str | Path], out: str | Path, *, force: bool = False) -> Path:
    """Write the mean of some checkpoints' weights.

    The first one's processor, generation settings, verbalizers, domain, confidence threshold and precision are kept;
    sums are in float32.

    Args:
        folders: Two or more whole models of one shape.
        out: Folder to create.
        force: Replace it where it exists.

    Returns:
        ``out``.

    Raises:
        ValueError: There are fewer than two, one is an adapter, or shapes differ; or ``out`` is not empty.
    """
    folders = [Path(folder) for folder in folders]
    if len(folders) < 2:
        raise ValueError(f"expected two or more checkpoints, got {len(folders)}. Name what is to be averaged.")
    for folder in folders:
        if is_adapter_folder(folder):
            raise ValueError(f"expected whole models, got the adapter {folder}. Merge it first (saving.output=merged).")
    config = read_config(str(folders[0]))
    stored, answering = config.get("dtype") or "float32", find_answering(str(folders[0]), config.get("model_type"))
    model = load_whole(answering.model_class, folders[0], torch.float32)
    total = model.state_dict()
    for folder in folders[1:]:
        _check_shape(model.config, folders[0], folder)
        other = load_whole(answering.model_class, folder, torch.float32).state_dict()
        total = {name: value + other[name] for name, value in total.items()}
    model.load_state_dict({name: value / len(folders) for name, value in total.items()})
    with atomic_folder(out, force=force) as target:
        model.to(getattr(torch, stored)).save_pretrained(target)
        answering.load_processor(str(folders[0])).save_pretrained(target)
        copy_verbalizer_settings(folders[0], target)
    return Path(out)


def _check_shape(config: PreTrainedConfig, first: Path, folder: Path) -> None:
    """Refuse a model whose configuration differs in more than where and how it is stored."""
    ignored = {"quantization_config", "dtype", "_name_or_path", "transformers_version", "architectures"}
    ignored |= {"domain", "confidence_threshold"}
    ours, theirs = (
        {name: value for name, value in one.to_dict().items() if name not in ignored}
        for one in (config, AutoConfig.from_pretrained(folder))
    )
    differing = sorted(name for name in {*ours, *theirs} if _plain(ours.get(name)) != _plain(theirs.get(name)))
    if differing:
        raise ValueError(
            f"expected models of one shape, but {first} and {folder} differ in {differing}. Leave one out."
        )


def _plain(value: object) -> object:
    """A part's settings without the precision it is stored in."""
    return {name: one for name, one in value.items() if name != "dtype"} if isinstance(value, dict) else value


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Average checkpoints that share their start.")
    parser.add_argument("folders", type=Path, nargs="+", metavar="CHECKPOINT", help="whole models of one shape")
    parser.add_argument("--out", required=True, type=Path, help="folder to create")
    parser.add_argument("--force", action="store_true", help="replace it where it exists")
    chosen = parser.parse_args(arguments)
    try:
        out = average_checkpoints(chosen.folders, chosen.out, force=chosen.force)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"the mean of {len(chosen.folders)} checkpoints is in {out}")


if __name__ == "__main__":
    main()
