"""Whole runs of the trainer in this process: stages, modes, results, resume."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_builders import draw_image
from safetensors.torch import load_file
from training_builders import build_recipe, learned, write_tiny_checkpoint

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')
peft = pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

from moai.data.training_data import DataSettings, build_training_dataset  # noqa: E402
from moai.models.moai.collator_moai import MoAICollator  # noqa: E402
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration  # noqa: E402
from moai.models.moai.routing_report import draw_routing  # noqa: E402
from moai.models.moai.task_moai import MoAITask, compute_loss  # noqa: E402
from moai.training.checkpoints import CheckpointError  # noqa: E402
from moai.training.metrics_logging import read_log  # noqa: E402
from moai.training.tasks.answers import target_window  # noqa: E402
from moai.training.train_settings import load_settings  # noqa: E402
from moai.training.trainer import run_training  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base"))


def batch_of(recipe: dict, folder: Path) -> dict[str, torch.Tensor]:
    processor = AutoProcessor.from_pretrained(folder)
    dataset = build_training_dataset(DataSettings.from_dict(recipe["data"]), MoAICollator(processor))
    return dataset.collator([dataset[0], dataset[5]])


def answer(folder: Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of a result as users load it."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def test_two_stages_teach_what_they_name_when_run_in_order(checkpoint: Path, tmp_path: Path) -> None:
    first = build_recipe(checkpoint, tmp_path / "first")
    result = run_training(first)
    assert result.is_finished and result.num_steps == 4 and result.folder == tmp_path / "first" / "final"
    lines = read_log(tmp_path / "first" / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:  # stage 1: one expert per layer and stream
        assert all(sorted(layer) == [0.0, 0.0, 1.0] for layer in line["routing"]["image"]["layers"])
    assert len({json.dumps(line["routing"]) for line in lines}) > 1

    second = build_recipe(tmp_path / "first", tmp_path / "second", stage=2)
    run_training(second)
    shares = read_log(tmp_path / "second" / "log.jsonl")[0]["routing"]["image"]
    assert all(0 < shares[name] < 1 for name in ("auxiliary", "image", "language")) and shares["entropy"] > 0
    batch = batch_of(second, tmp_path / "second" / "final")
    logits = [answer(folder, batch) for folder in (checkpoint, tmp_path / "first/final", tmp_path / "second/final")]
    assert not torch.allclose(logits[0], logits[1], atol=1e-4) and not torch.allclose(logits[1], logits[2], atol=1e-4)


def read_mixers(file: Path) -> dict[str, torch.Tensor]:
    """The mixers' weights in a file of a model or an adapter."""
    return {name.split("mixers.")[1]: value for name, value in load_file(file).items() if "mixers." in name}


def test_gates_move_in_stage_2_only_when_both_are_run(checkpoint: Path, tmp_path: Path) -> None:
    mixers = {"base": read_mixers(checkpoint / "model.safetensors")}
    for name, start, stage in (("first", checkpoint, 1), ("second", tmp_path / "first", 2)):
        run_training(build_recipe(start, tmp_path / name, stage, optimization__num_steps=2))
        mixers[name] = read_mixers(tmp_path / name / "final" / "adapter_model.safetensors")
    assert mixers["base"].keys() == mixers["first"].keys() == mixers["second"].keys()
    gates = {name for name in mixers["base"] if "_gate." in name}
    assert len(gates) == 2 * 2 * 2  # layers, streams, weight and bias
    for name in gates:
        assert torch.equal(mixers["first"][name], mixers["base"][name]), name
        assert not torch.equal(mixers["second"][name], mixers["first"][name]), name
    assert any(not torch.equal(mixers["first"][name], mixers["base"][name]) for name in mixers["base"].keys() - gates)


def test_merged_model_answers_as_the_adapter_when_written(checkpoint: Path, tmp_path: Path) -> None:
    adapter = build_recipe(checkpoint, tmp_path / "adapter", 2)
    merged = build_recipe(checkpoint, tmp_path / "merged", 2, saving__output="merged")
    for recipe in (adapter, merged):
        run_training(recipe)
    assert (tmp_path / "adapter/final/adapter_model.safetensors").is_file()
    assert (tmp_path / "merged/final/model.safetensors").is_file()
    batch = batch_of(adapter, tmp_path / "adapter/final")
    expected = answer(tmp_path / "adapter/final", batch)
    assert torch.allclose(answer(tmp_path / "merged/final", batch), expected, atol=1e-4)


UNBROKEN = {"saving__every_steps": 0, "watching__every_steps": 3, "optimization__num_steps": 5}
UNBROKEN |= {"train__lora_dropout": 0.2}


@pytest.fixture(scope="module")
def unbroken(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run_training(build_recipe(checkpoint, folder, 1, **UNBROKEN))
    return folder


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_resumed_run_equals_an_unbroken_one_when_stopped_by_a_signal(
    checkpoint: Path, unbroken: Path, tmp_path: Path, stopped_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moai.training import metrics_logging

    record = metrics_logging.MetricsLogger.record

    def stop(self, step, *arguments):
        record(self, step, *arguments)
        if step == stopped_after:
            os.kill(os.getpid(), signal.SIGINT)

    recipe = build_recipe(checkpoint, tmp_path / "broken", 1, **UNBROKEN)
    monkeypatch.setattr(metrics_logging.MetricsLogger, "record", stop)
    broken = run_training(recipe)
    # The wish is heard by all ranks in the sums of the next step.
    assert not broken.is_finished and broken.folder is None and broken.num_steps == stopped_after + 1
    monkeypatch.setattr(metrics_logging.MetricsLogger, "record", record)
    assert run_training(recipe).is_finished
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = [run / "checkpoints" / "step-00000005" / name for run in (unbroken, tmp_path / "broken")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    lines = [[learned(line) for line in read_log(run / "log.jsonl")] for run in (unbroken, tmp_path / "broken")]
    assert lines[0] == lines[1]
    weights = [(run / "final" / "adapter_model.safetensors").read_bytes() for run in (unbroken, tmp_path / "broken")]
    assert weights[0] == weights[1]


def test_run_is_refused_when_settings_or_data_changed(checkpoint: Path, tmp_path: Path) -> None:
    recipe = build_recipe(checkpoint, tmp_path / "run", optimization__num_steps=1)
    run_training(recipe)
    with pytest.raises(CheckpointError, match=r"optimization\.learning_rate"):
        run_training(recipe, ["optimization.learning_rate=5e-4"])
    with pytest.raises(CheckpointError, match="output_folder"):
        run_training(recipe, ["data.sources=[{scenes: {length: 5, num_questions: 2, image_size: 64}}]"])
    assert run_training(recipe, ["watching.every_steps=7"]).is_finished  # nothing is left to do


def test_loss_is_the_same_when_the_batch_is_accumulated_or_recomputed(checkpoint: Path, tmp_path: Path) -> None:
    losses = {}
    for name, options in {
        "at once": {"optimization__micro_batch_size": 4},
        "accumulated": {"optimization__micro_batch_size": 1},
        "checkpointed": {"optimization__micro_batch_size": 4, "model__gradient_checkpointing": True},
    }.items():
        options = {"train__lora_dropout": 0.0, **options}
        run_training(build_recipe(checkpoint, tmp_path / name, 1, **options))
        losses[name] = [line["loss"] for line in read_log(tmp_path / name / "log.jsonl")]
    assert losses["accumulated"] == pytest.approx(losses["at once"], rel=1e-5)
    assert losses["checkpointed"] == pytest.approx(losses["at once"], rel=1e-6)


@pytest.mark.parametrize("mode", ["full", "frozen", "bf16", "tower", "nf4", "frozen nf4", "plora"])
def test_result_loads_when_trained_in_each_mode(checkpoint: Path, tmp_path: Path, mode: str) -> None:
    options = {
        "full": {"train__decoder": "full"},
        "frozen": {"train__decoder": "frozen"},
        "bf16": {"optimization__precision": "bf16", "model__gradient_checkpointing": True},
        "tower": {"train__vision_tower": True, "train__projector": False},
        "nf4": {"model__quantization": "nf4"},
        "frozen nf4": {"model__quantization": "nf4", "train__decoder": "frozen", "optimization__precision": "bf16"},
        "plora": {"model__path": str(write_tiny_checkpoint(tmp_path / "plora", "qwen2", plora_rank=4))}
        if mode == "plora"
        else {},
    }[mode]
    if "nf4" in mode:
        pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "moai-vlm[quantization]"')
    recipe = build_recipe(checkpoint, tmp_path / "run", 2, optimization__num_steps=2, **options)
    result = run_training(recipe)
    batch = batch_of(recipe, result.folder)
    after = answer(result.folder, batch)
    assert torch.isfinite(after).all()
    before = answer(Path(recipe["model"]["path"]), batch)
    assert not torch.allclose(before, after, atol=1e-4)
    is_adapter = (result.folder / "adapter_config.json").is_file()
    assert is_adapter == (mode not in ("full", "frozen", "frozen nf4"))


def test_fresh_parts_begin_anew_when_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    recipe = build_recipe(
        checkpoint, tmp_path / "run", 1, optimization__num_steps=1, model__compressor={"num_latents": 7}
    )
    result = run_training(recipe)
    model = AutoModelForImageTextToText.from_pretrained(result.folder)
    assert model.config.compressor_config.num_latents == 7
    batch = batch_of(recipe, result.folder)
    assert torch.isfinite(answer(result.folder, batch)).all()
    old = AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict()
    new = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "base").state_dict()
    differing = {name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])}
    assert differing and all(name.startswith("model.compressor.") for name in differing)


def test_backbones_become_a_base_and_an_adapter_when_named(checkpoint: Path, tmp_path: Path) -> None:
    from builders import TINY_COMPRESSOR, TINY_MIXER, TINY_TEXT, TINY_VISION
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoProcessor.from_pretrained(checkpoint).tokenizer
    text = LlamaConfig(**TINY_TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 2048})
    LlamaForCausalLM(text).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    CLIPVisionModel(CLIPVisionConfig(**TINY_VISION)).save_pretrained(tmp_path / "vision")
    recipe = build_recipe(checkpoint, tmp_path / "run", optimization__num_steps=2, saving__every_steps=1)
    recipe["model"] = {"vision": str(tmp_path / "vision"), "text": str(tmp_path / "text")}
    recipe["model"] |= {"compressor": TINY_COMPRESSOR, "mixer": TINY_MIXER}
    result = run_training(recipe)
    assert (tmp_path / "run" / "base" / "model.safetensors").is_file()
    assert torch.isfinite(answer(result.folder, batch_of(recipe, result.folder))).all()


def test_second_stage_is_refused_when_it_does_not_fit_the_first(checkpoint: Path, tmp_path: Path) -> None:
    run_training(build_recipe(checkpoint, tmp_path / "first", train__projector=False, optimization__num_steps=1))
    with pytest.raises(ValueError, match=r"train\.lora_rank.*= 4"):
        run_training(build_recipe(tmp_path / "first", tmp_path / "second", 2, train__lora_rank=8))
    with pytest.raises(ValueError, match="multi_modal_projector"):
        run_training(build_recipe(tmp_path / "first", tmp_path / "second", 2))


def test_batches_are_the_same_when_other_processes_prepare_them(checkpoint: Path, tmp_path: Path) -> None:
    for name, workers in (("alone", 0), ("helped", 1), ("both", 2)):
        run_training(build_recipe(checkpoint, tmp_path / name, num_workers=workers, optimization__num_steps=3))
    alone, *others = (
        [learned(line) for line in read_log(tmp_path / run / "log.jsonl")] for run in ("alone", "helped", "both")
    )
    assert others == [alone, alone]


class Drawing:
    """A dataset of a user's own whose samples are drawn from every global generator."""

    lengths = [8] * 6

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))

    def identity(self) -> dict:
        return {}


def test_drawn_samples_are_the_same_when_another_process_draws_them(checkpoint: Path, tmp_path: Path) -> None:
    model, seen = MoAIForConditionalGeneration.from_pretrained(checkpoint), {}
    for workers in (0, 1):
        recipe = load_settings(build_recipe(checkpoint, tmp_path / "run", num_workers=workers))

        def collate(samples: list) -> dict:
            drawn = torch.tensor(samples, dtype=torch.float64)
            return {"drawn": drawn, "labels": torch.zeros(len(samples), 2).long(), "attention_mask": torch.ones(1)}

        task = MoAITask(recipe, model, Drawing(), collate)
        torch.manual_seed(workers)  # what came before does not matter
        seen[workers] = [batch.inputs["samples"]["drawn"] for batch in task.batches(0, 3, 0, 1)]
        late = [batch.inputs["samples"]["drawn"] for batch in task.batches(1, 3, 0, 1)]
        assert all(map(torch.equal, late, seen[workers][-len(late) :])), "a resumed run draws otherwise"
    assert all(map(torch.equal, seen[0], seen[1]))
    assert len({float(value) for batch in seen[0] for value in batch[:, 1]}) == 3 * recipe.optimization.batch_size


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_image_is_a_bad_row_when_training_meets_it(checkpoint: Path, tmp_path: Path, num_workers: int) -> None:
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a dog"}]
    for index in range(4):
        draw_image(index).save(tmp_path / f"{index}.jpg")
    whole = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(whole[: len(whole) // 2])
    rows = [json.dumps({"image": f"{index}.jpg", "conversations": talk}) for index in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    recipe = build_recipe(checkpoint, tmp_path / "run", num_workers=num_workers, saving__every_steps=1)
    recipe["data"] = {"sources": str(tmp_path / "rows.jsonl"), "verbalizations": "none"}
    with pytest.raises(ValueError, match=r"^expected at most 0 bad rows .*rows\.jsonl:4 turn 2: 3\.jpg: .*") as failed:
        run_training(recipe)
    assert "\n" not in str(failed.value)
    recipe["data"]["max_bad_rows"] = 1
    recipe["output_folder"] = str(tmp_path / "patient")
    assert run_training(recipe).is_finished
    (listed,) = set((tmp_path / "patient" / "bad_rows.jsonl").read_text().splitlines())
    assert json.loads(listed)["place"] == "rows.jsonl:4 turn 2"


def test_tracker_is_named_when_it_is_not_installed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moai import import_utils

    monkeypatch.setattr(import_utils, "_is_package_available", lambda package: package not in ("tensorboard", "wandb"))
    for tracker, line in (("tensorboard", r"moai-vlm\[train\]"), ("wandb", "pip install wandb")):
        with pytest.raises(ImportError, match=line):
            run_training(build_recipe(checkpoint, tmp_path / "run", watching__report_to=[tracker]))


def test_tensorboard_receives_the_numbers_when_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason='needs tensorboard: pip install "moai-vlm[train]"')
    recipe = build_recipe(checkpoint, tmp_path / "run", optimization__num_steps=1, watching__report_to=["tensorboard"])
    run_training(recipe)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = {file.parent for file in (tmp_path / "run" / "trackers").rglob("events.out.*")}
    tags = set()
    for folder in folders:
        tags |= set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])
    assert {"loss", "learning_rate", "routing/image/auxiliary", "tokens_per_s"} <= tags


@pytest.mark.parametrize(("tracker", "kept"), [("trackio", "moai.db"), ("wandb", "run-*.wandb")])
def test_tracker_keeps_the_numbers_on_disk_when_offline(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, kept: str
) -> None:
    pytest.importorskip(tracker, reason=f"needs {tracker}: pip install {tracker}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    monkeypatch.setenv("TRACKIO_DIR", str(out / "trackers"))  # read when trackio is imported
    recipe = build_recipe(checkpoint, out, optimization__num_steps=1, watching__report_to=[tracker])
    command = [sys.executable, "-c", f"from moai.training.trainer import run_training; run_training({recipe!r})"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    assert any(file.stat().st_size for file in (out / "trackers").rglob(kept))
    assert {file.name for file in tmp_path.iterdir()} == {"run"}


def test_samples_share_an_image_when_told_without_learning_anything_else(checkpoint: Path, tmp_path: Path) -> None:
    recipe = build_recipe(checkpoint, tmp_path / "run")
    processor = AutoProcessor.from_pretrained(checkpoint)
    dataset = build_training_dataset(DataSettings.from_dict(recipe["data"]), MoAICollator(processor))
    first, second = (np.flatnonzero(dataset.image_indices == number) for number in (0, 1))
    assert len(first) >= 2
    samples = [dataset[int(index)] for index in (first[0], first[1], second[0])]
    assert samples[0].images[0] is samples[1].images[0] and samples[1].images[0] is not samples[2].images[0]
    apart, shared = (dataset.collator.replace(is_sharing=choice)(samples) for choice in (False, True))
    assert shared["image_index"].tolist() == shared["auxiliary_index"].tolist() == [0, 0, 1]
    assert len(shared["pixel_values"]) == len(shared["auxiliary_input_ids"]) == 2 < len(apart["pixel_values"])

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).train()
    looks = []
    model.model.compressor.register_forward_hook(lambda module, given, states: looks.append(len(states)))
    gradients, losses = [], []
    for batch in (apart, shared):
        model.zero_grad()
        loss, sums = compute_loss(model, batch, {"mode": "gated"}, target_window(batch["labels"]))
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert looks == [3, 2]
    torch.testing.assert_close(losses[0], losses[1])
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-5, rtol=1e-3, msg=name)


def test_validation_loss_is_the_models_own_and_changes_nothing_that_is_learned(
    checkpoint: Path, tmp_path: Path
) -> None:
    held_out = {"sources": [{"scenes": {"length": 5, "split": "validation", "num_questions": 1, "image_size": 64}}]}
    watched = build_recipe(checkpoint, tmp_path / "watched", stage=2, train__decoder="full", validation=held_out)
    watched["watching"] |= {"every_steps": 3, "validate_every_steps": 2}
    watched["saving"]["dtype"] = "float32"
    plain = build_recipe(checkpoint, tmp_path / "plain", stage=2, train__decoder="full", saving__dtype="float32")
    folders = [run_training(recipe).folder for recipe in (watched, plain)]
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    lines = read_log(tmp_path / "watched" / "log.jsonl")
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4]
    assert [line["step"] for line in lines] == [2, 3, 4]
    model = AutoModelForImageTextToText.from_pretrained(folders[0], dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folders[0])
    dataset = build_training_dataset(DataSettings.from_dict(held_out), MoAICollator(processor))
    batch = dataset.collator([dataset[index] for index in range(len(dataset))])
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert lines[-1]["validation_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_run_learns_when_samples_share_images(checkpoint: Path, tmp_path: Path) -> None:
    recipe = build_recipe(checkpoint, tmp_path / "run")
    recipe["optimization"] |= {"micro_batch_size": 2, "samples_per_image": 2}
    assert run_training(recipe).is_finished
    with pytest.raises(ValueError, match="multiple of `samples_per_image`, got 2 and 4"):
        run_training(recipe, ["optimization.samples_per_image=4"])


def test_gates_alone_begin_anew_when_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    recipe = build_recipe(checkpoint, tmp_path / "run", 1, optimization__num_steps=1, model__fresh_parts=["gates"])
    run_training(recipe)
    old, new = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "run" / "base"))
    differing = {name for name in old if not torch.equal(old[name], new[name])}
    assert differing and all("_gate." in name for name in differing)


@pytest.mark.parametrize("change", [-1, 3])
def test_compressor_of_another_size_keeps_what_fits_when_asked_to(
    checkpoint: Path, tmp_path: Path, change: int
) -> None:
    old = load_file(checkpoint / "model.safetensors")
    latents = "model.compressor.latents.weight"
    number = len(old[latents]) + change
    changes = {"model__compressor": {"num_latents": number}, "model__keeps_fitting": True}
    run_training(build_recipe(checkpoint, tmp_path / "run", 1, optimization__num_steps=1, **changes))
    new = load_file(tmp_path / "run" / "base" / "model.safetensors")
    assert {name for name in old if not torch.equal(old[name], new[name])} == {latents}
    chosen = torch.linspace(0, len(old[latents]) - 1, number).round().long()
    assert set(chosen.tolist()) <= set(range(len(old[latents]))) and torch.equal(new[latents], old[latents][chosen])


def test_random_weights_mix_anew_at_every_step_when_they_route(checkpoint: Path, tmp_path: Path) -> None:
    run_training(build_recipe(checkpoint, tmp_path / "run", 2, routing="random_weights"))
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert len({json.dumps(line["routing"]["image"]["layers"]) for line in lines}) == len(lines)


def test_random_weights_are_dirichlets_when_drawn() -> None:
    many = torch.stack([draw_routing("random_weights", 3, (seed,), 4) for seed in range(500)])
    assert many.shape == (500, 4, 2, 3) and (many > 0).all()
    torch.testing.assert_close(many.sum(-1), torch.ones(500, 4, 2))
    # A flat Dirichlet distribution over three has the mean 1/3 and the variance 1/18.
    torch.testing.assert_close(many.mean((0, 1, 2)), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(many.var((0, 1, 2)), torch.full((3,), 1 / 18), atol=0.01, rtol=0)
    assert torch.equal(many[3], draw_routing("random_weights", 3, (3,), 4))
    assert draw_routing("gated", 2, (3,), 4) == {"mode": "gated", "top_k": 2}
