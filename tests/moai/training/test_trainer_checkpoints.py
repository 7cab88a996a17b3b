"""Checkpoints: whole or not at all, and clear words where one is not."""

import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from moai.training.checkpoints import (
    CheckpointError,
    collect_state,
    find_newest_checkpoint,
    read_checkpoint,
    restore_state,
    write_checkpoint,
)


def build(seed: int = 0, width: int = 5) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    model[2].requires_grad_(False)
    idle = nn.Linear(3, 3)  # never used: no moments
    model.add_module("idle", idle)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)


def learn(model: nn.Module, optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        model[2](model[1](model[0](inputs))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.AdamW, **options) -> Path:
    return write_checkpoint(folder, step, *collect_state(model, optimizer), {"note": step}, **options)


def test_training_goes_on_bit_by_bit_when_restored(tmp_path: Path) -> None:
    whole = build()
    learn(*whole, range(6))
    first = build()
    learn(*first, range(3))
    path = save(tmp_path, 3, *first)
    second = build(seed=1)
    for name, value in second[0].state_dict().items():
        if name.startswith("2."):
            value.copy_(first[0].state_dict()[name])  # what is frozen comes from the base model
    weights, moments, state = read_checkpoint(path)
    assert state["step"] == 3 and state["note"] == 3
    restore_state(*second, weights, moments)
    learn(*second, range(3, 6))
    for (name, value), other in zip(second[0].state_dict().items(), whole[0].state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    names = {key.rsplit(".", 1)[0] for key in moments}
    assert names == {"0.weight", "0.bias", "1.weight", "1.bias"} and "1.running_mean" in weights


def test_newest_whole_checkpoint_is_found_when_newer_ones_are_broken(tmp_path: Path) -> None:
    model, optimizer = build()
    assert find_newest_checkpoint(tmp_path) == (None, {})
    paths = [save(tmp_path, step, model, optimizer, keep=9) for step in (1, 2, 3, 4, 5)]
    truncated = paths[4] / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-10])
    rotten = paths[3] / "optimizer.safetensors"
    content = bytearray(rotten.read_bytes())
    content[-1] ^= 1
    rotten.write_bytes(content)
    (paths[2] / "state.json").write_text("{", encoding="utf-8")
    (paths[1] / "model.safetensors").unlink()
    (tmp_path / ".step-00000006.77").mkdir()  # killed while writing
    found, broken = find_newest_checkpoint(tmp_path)
    assert found == paths[0]
    assert list(broken) == [path.name for path in reversed(paths[1:])]
    assert "bytes, expected" in broken["step-00000005"] and "checksum" in broken["step-00000004"]
    (paths[0] / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"only broken ones \(step-00000005: .*Remove them"):
        find_newest_checkpoint(tmp_path)


def test_old_checkpoints_go_when_enough_newer_ones_are_there(tmp_path: Path) -> None:
    model, optimizer = build()
    leftover = tmp_path / ".step-00000001.99"
    leftover.mkdir()
    for step in (1, 2, 10):
        save(tmp_path, step, model, optimizer, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]


def test_earlier_checkpoint_stays_when_the_disk_is_full(tmp_path: Path) -> None:
    model, optimizer = build()
    learn(model, optimizer, range(1))
    first = save(tmp_path, 1, model, optimizer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # no file may be longer, as on a disk without room
    try:
        with pytest.raises(CheckpointError, match=r"step 2 could not be written.*step-00000001 is untouched.*again"):
            save(tmp_path, 2, model, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert find_newest_checkpoint(tmp_path) == (first, {})


def test_checkpoint_is_refused_when_it_is_of_another_model(tmp_path: Path) -> None:
    weights, moments, _ = read_checkpoint(save(tmp_path, 1, *build()))
    with pytest.raises(CheckpointError, match=r"'0\.bias' has shape \(5,\) there and \(6,\) here"):
        restore_state(*build(width=6), weights, moments)
