"""Run by test_trainer_sharding.py in two processes: FSDP2 on the CPU, its state put together and spread again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from builders import build_tiny_inputs, build_tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training_builders import build_recipe

from moai.models.moai.task_moai import MoAITask
from moai.training.checkpoints import collect_state, restore_state
from moai.training.optimizers import build_optimizers
from moai.training.result_writing import gather_result
from moai.training.train_settings import load_settings


def build(is_sharded: bool) -> tuple[torch.nn.Module, MoAITask, torch.optim.Optimizer]:
    """A model with an adapter, whole or in pieces as accelerate's wrapping policy cuts it."""
    settings = load_settings(build_recipe("m", Path("out"), 1, train__lora_dropout=0.0))
    model = build_tiny_model()
    torch.manual_seed(0)
    model = MoAITask.adapt(model, settings)
    step = MoAITask(settings, model.train(), SimpleNamespace(lengths=[1] * 8), list)
    if is_sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        names = {*step._no_split_modules, "LlamaDecoderLayer", "CLIPEncoderLayer"}
        for module in reversed(list(step.modules())):
            if type(module).__name__ in names:
                fully_shard(module, mesh=mesh)
        fully_shard(step, mesh=mesh)
    (optimizer,) = build_optimizers(model, settings.optimization, step.part_of, step.decays)
    return model, step, optimizer


def learn(step: MoAITask, optimizer: torch.optim.Optimizer, steps: range, config) -> None:
    """Steps on one batch each, the same on all ranks; the mean over ranks is a single process's gradient."""
    for number in steps:
        batch = build_tiny_inputs(config, (8, 6), (6, 4), seed=number + 1)
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
        batch["labels"][:, -3:] = batch["input_ids"][:, -3:]
        batch["mm_token_type_ids"][:, -3:] = 0
        options = {"routing": {"mode": "random_expert", "seed": number}}
        loss, _ = step({"samples": batch, "options": options, "window": 4})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    """Compare whole and sharded training, and a sharded run that was interrupted."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    whole, whole_step, whole_optimizer = build(False)
    config = whole.get_base_model().config
    learn(whole_step, whole_optimizer, range(4), config)
    expected, expected_moments = collect_state(whole, whole_optimizer)

    first, first_step, first_optimizer = build(True)
    assert any(isinstance(parameter, DTensor) for parameter in first.parameters())
    learn(first_step, first_optimizer, range(2), config)
    kept = collect_state(first, first_optimizer)
    second, second_step, second_optimizer = build(True)
    restore_state(second, second_optimizer, *kept)
    for _, step, optimizer in ((first, first_step, first_optimizer), (second, second_step, second_optimizer)):
        learn(step, optimizer, range(2, 4), config)
    weights, moments = collect_state(first, first_optimizer)
    again, again_moments = collect_state(second, second_optimizer)
    for name, value in weights.items():
        assert torch.equal(value, again[name]), name
        assert torch.allclose(value, expected[name], atol=1e-5), name
    assert moments.keys() == again_moments.keys() == expected_moments.keys()
    assert all(torch.equal(moments[name], again_moments[name]) for name in moments)
    result, plain = gather_result(first), gather_result(whole)
    assert {name: value.shape for name, value in result.items()} == {n: v.shape for n, v in plain.items()}
    dist.barrier()
    if dist.get_rank() == 0:
        print("sharded training is whole training")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
