"""What is trained is exactly what the recipe names; the rest gets no gradient."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import add_labels, build_tiny_config, build_tiny_inputs, build_tiny_model
from training_builders import build_recipe

from moai.models.moai.task_moai import MoAITask, compute_loss, routing_sums
from moai.training.optimizers import build_optimizers
from moai.training.tasks.answers import count_targets, target_window
from moai.training.train_settings import load_settings
from moai.training.trained_parts import count_parts, part_of, print_parts


def settings_of(stage: int, **overrides):
    return load_settings(build_recipe("m", Path("out"), stage, **overrides))


def adapt(model, settings):
    if settings.train.decoder == "lora":
        pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')
    return MoAITask.adapt(model, settings)


def task_of(model, settings) -> MoAITask:
    return MoAITask(settings, model, SimpleNamespace(lengths=[1] * 8), list)


def optimizer_of(task: MoAITask) -> torch.optim.Optimizer:
    (optimizer,) = build_optimizers(task.model, task.settings.optimization, task.part_of, task.decays)
    return optimizer


CASES = {
    "stage 1": (1, {}, {"projector", "compressor", "mixers", "adapter"}),
    "stage 2": (2, {}, {"projector", "compressor", "mixers", "gates", "adapter"}),
    "only gates": (
        2,
        {"train__decoder": "frozen", "train__projector": False, "train__mixers": False, "train__compressor": True},
        {"compressor", "gates"},
    ),
    "full": (2, {"train__decoder": "full"}, {"projector", "compressor", "mixers", "gates", "decoder"}),
    "tower": (1, {"train__vision_tower": True, "train__decoder": "frozen"}, {
        "vision_tower", "projector", "compressor", "mixers",
    }),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_frozen_parameters_get_no_gradient_when_a_step_is_made(case: str) -> None:
    stage, overrides, expected = CASES[case]
    settings = settings_of(stage, **overrides)
    model = build_tiny_model()
    batch = add_labels(build_tiny_inputs(model.config, (8, 6), (6, 4)))
    model = adapt(model, settings)
    task, parts = task_of(model, settings), MoAITask.parts_of(model)
    task.set_training_mode()
    optimizer = optimizer_of(task)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss, _ = compute_loss(model, batch, {"mode": "gated"}, target_window(batch["labels"]))
    loss.backward()
    optimizer.step()
    counts = {row.part: row for row in count_parts(model, parts)}
    assert {part for part, row in counts.items() if row.num_trained} == expected
    moved = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            moved |= {part_of(name, parts)} if not torch.equal(parameter, before[name]) else set()
        else:
            assert parameter.grad is None and torch.equal(parameter, before[name]), name
    assert moved == expected
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(row.num_trained for row in counts.values()) == trained


def test_counts_cover_every_parameter_once_when_adapted(capsys: pytest.CaptureFixture[str]) -> None:
    model = build_tiny_model()
    num_parameters = sum(p.numel() for p in model.parameters())
    settings = settings_of(1)
    adapted = adapt(model, settings)
    counts = count_parts(adapted, MoAITask.parts_of(adapted))
    lora = next(row for row in counts if row.part == "adapter")
    assert sum(row.num_parameters for row in counts) - lora.num_parameters == num_parameters
    print_parts(counts)
    printed = capsys.readouterr().out
    assert "mixers" in printed and f"{sum(row.num_trained for row in counts):,}" in printed


def test_low_rank_updates_of_the_checkpoint_rest_beside_an_adapter() -> None:
    model = adapt(build_tiny_model(config=build_tiny_config(plora_rank=4)), settings_of(1))
    own = [(name, p) for name, p in model.named_parameters() if "lora" in name.lower() and ".default" not in name]
    assert own and not any(parameter.requires_grad for _, parameter in own)
    assert any(parameter.requires_grad for name, parameter in model.named_parameters() if ".lora_A.default" in name)


def test_groups_hold_rates_and_decay_when_built() -> None:
    model = build_tiny_model()
    settings = settings_of(2, train__decoder="full", optimization__learning_rates={"gates": 0.5})
    optimizer = optimizer_of(task_of(adapt(model, settings), settings))
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            seen.append(name)
            is_plain = parameter.dim() < 2 or "embed" in name or "latents" in name
            assert (group["weight_decay"] == 0.0) == is_plain, name
            assert group["peak"] == (0.5 if "_gate." in name else 1e-3), name
    assert sorted(seen) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_frozen_tower_stands_still_when_training() -> None:
    model = build_tiny_model()
    settings = settings_of(1, train__decoder="frozen")
    task_of(adapt(model, settings), settings).set_training_mode()
    assert not any(module.training for module in model.model.vision_tower.modules())
    assert model.model.language_model.training and model.model.mixers.training


def test_loss_is_the_model_s_own_when_summed_over_answers() -> None:
    model = build_tiny_model()
    batch = add_labels(build_tiny_inputs(model.config, (8, 6), (6, 4)))
    loss, routing = compute_loss(model, batch, {"mode": "gated"}, target_window(batch["labels"]))
    assert target_window(batch["labels"]) == 4 and count_targets(batch["labels"]) == 6
    expected = model(**batch, routing="gated").loss
    assert torch.allclose(loss / 6, expected, atol=1e-6)
    tokens = routing[..., 4]
    assert torch.allclose(routing[..., :3].sum(-1), tokens, atol=1e-4) and not routing.requires_grad
    patches, words = model.config.num_image_tokens, int((batch["mm_token_type_ids"] == 2).sum())
    assert (tokens[:, 0] == 2 * patches).all() and (tokens[:, 1] == words).all()
    assert (routing[..., 3] / tokens).max() <= torch.log(torch.tensor(3.0)) + 1e-5


def test_routing_sums_keep_their_shape_when_nothing_was_mixed() -> None:
    assert routing_sums((), 3, torch.device("cpu")).shape == (3, 2, 5)
