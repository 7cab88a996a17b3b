"""`moai ablate` at a thousandth of its size: same code, random weights, few scenes."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from moai.cli import app
from moai.evaluation.ablation import load_results, run_ablation
from moai.evaluation.ablation_config import load_ablation_config
from moai.evaluation.ablation_questions import answer_test, collect_test
from moai.evaluation.ablation_training import LATENTS, _build_model, check_start, load_start
from moai.processing.tokenization_internlm2 import InternLM2Tokenizer
from moai.training.checkpointing import latest_checkpoint
from moai.training.nano import train_nano
from moai.training.nano_models import prompt_ids
from moai.training.scene_shards import ShardSettings, build_shard

LOOP = {"num_steps": 3, "learning_rate": 3e-3, "warmup_steps": 1, "log_every": 1, "checkpoint_every_s": 0.0}
SHARDS = {"num_scenes": 16, "num_questions": 4, "image_size": 32, "curriculum": [[0, 2]]}
RECIPE = {
    "tokenizer": {"vocab_size": 640, "num_scenes": 60},
    "decoder": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "text": {"batch_size": 4, "loop": LOOP, "shards": SHARDS},
    "phrases": {"batch_size": 4, "loop": LOOP, "shards": {**SHARDS, "seed": 2}},
    "questions": {"batch_size": 4, "questions_per_scene": 2, "first_stage_steps": 0, "loop": LOOP, "shards": SHARDS},
    "multimodal": {
        "first_stage_steps": 1,
        "loop": LOOP,
        "shards": SHARDS,
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
        "compressor": {"architecture": "encoder", "num_latents": 4, "num_layers": 1, "num_heads": 2, "head_dim": 16},
        "mixer": {"layers": [0, 1], "num_heads": 2, "rank": 16},
    },
}
ABLATION = {
    "recipe": "nano.yaml",
    "seeds": [0],
    "phrase_steps": 2,
    "training": {
        "first_stage_steps": 2,
        "recall_weight": 0.1,
        "without_auxiliary_share": 0.0,
        "loop": {"num_steps": 4},
        "shards": {"seed": 5},
    },
    "test": {"per_kind": 3, "num_objects": [1, 2], "batch_size": 7, "max_new_tokens": 3},
    "variants": [
        {"name": "full", "label": "all", "table": "Reference"},
        {"name": "no-ocr", "label": "no OCR", "table": "A", "verbalizers": ["segmentation"], "worse_at": ["reading"]},
        {"name": "first", "label": "stage 1", "table": "B", "stages": "first"},
        {"name": "random", "label": "random weights", "table": "C", "stages": "second", "gates": "random"},
        {"name": "latents", "label": "2 latents", "table": "D", "num_latents": 2},
        {"name": "silent", "label": "silent", "table": "E", "weights_of": "full", "verbalizers": []},
        {"name": "start-uniform", "label": "uniform", "table": "F", "weights_of": "start", "gates": "uniform"},
    ],
}


def write_settings(folder: Path, changes: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nano.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump({**ABLATION, **(changes or {})}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """What moai.training.nano leaves after its stage `phrases`."""
    folder = tmp_path_factory.mktemp("start")
    config = load_ablation_config(write_settings(folder))
    train_nano(config.start_recipe, folder / "run", ("tokenizer", "text", "phrases"))
    return folder / "run"


def logged_losses(out: Path, name: str) -> list[float]:
    (folder,) = (out / "work").glob(f"{name}--*")
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_command_runs_every_variant_and_skips_them_when_repeated(start, tmp_path):
    settings, out = write_settings(tmp_path), tmp_path / "out"
    words = ["ablate", "--start", str(start), "--out", str(out), "--config", str(settings)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    files = sorted((out / "results").glob("*.json"))
    assert [path.name for path in files] == sorted(f"{one['name']}--seed-0.json" for one in ABLATION["variants"])
    report = (out / "ablation.md").read_text(encoding="utf-8")
    assert all(one["label"] in report for one in ABLATION["variants"])
    stored = json.loads(files[0].read_text(encoding="utf-8"))
    assert len(stored["right"]) == len(stored["kinds"]) == 6 * 3
    assert not list((out / "work").glob("*--seed-*"))  # weights that nobody needs are gone
    written = [path.stat().st_mtime_ns for path in files]
    again = CliRunner().invoke(app, words, catch_exceptions=False)
    assert again.exit_code == 0
    assert [path.stat().st_mtime_ns for path in files] == written
    other = write_settings(tmp_path / "other", {"phrase_steps": 3})
    refused = CliRunner().invoke(app, [*words[:-1], str(other), "--report"])
    assert refused.exit_code == 1 and "present settings" in " ".join(refused.output.split())


def test_training_goes_on_where_it_stopped_when_interrupted(start, tmp_path):
    config = load_ablation_config(write_settings(tmp_path))
    run_ablation(config, start, tmp_path / "unbroken", ("full",))

    def interrupt(what: str, done: int, total: int, share: float) -> None:
        if "step 2 of" in what:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(config, start, tmp_path / "broken", ("full",), interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "broken" / "results").exists()
    assert len(logged_losses(tmp_path / "broken", "full")) == 2
    results = run_ablation(config, start, tmp_path / "broken", ("full",))
    # `silent` has not run, so both folders still hold the weights and the log.
    assert logged_losses(tmp_path / "broken", "full") == pytest.approx(
        logged_losses(tmp_path / "unbroken", "full"), 1e-3
    )
    assert results.keys() == {("full", 0)} == load_results(config, start, tmp_path / "broken").keys()


def test_run_fails_with_the_way_out_when_the_start_is_incomplete(tmp_path):
    config = load_ablation_config(write_settings(tmp_path))
    with pytest.raises(ValueError, match="--prepare"):
        run_ablation(config, tmp_path, tmp_path / "out")


def test_mixers_alone_are_new_when_the_start_is_a_finished_model(start, tmp_path):
    stages = load_ablation_config(write_settings(tmp_path / "stages"))
    load_start(stages, start).save_pretrained(tmp_path / "model")
    InternLM2Tokenizer.from_pretrained(start / "tokenizer").save_pretrained(tmp_path / "model")
    shards = {"seed": 5, "with_pictures": True}
    training = {**ABLATION["training"], "loop": {"num_steps": 1, "learning_rate": 0.0}, "shards": shards}
    path = write_settings(tmp_path, {"start_stage": "finished", "training": training})
    with pytest.raises(ValueError, match="finished checkpoint"):
        run_ablation(load_ablation_config(path), start, tmp_path / "out")
    assert len(run_ablation(load_ablation_config(path), tmp_path / "model", tmp_path / "out", ("start-uniform",))) == 2
    (folder,) = (tmp_path / "out" / "work").glob("full--*")
    trained = load_file(latest_checkpoint(folder / "checkpoints") / "model.safetensors")
    begun = load_file(tmp_path / "model" / "model.safetensors")
    changed = {name for name, value in begun.items() if not torch.equal(value, trained[name])}
    assert changed
    assert {name for name in changed if not name.startswith(("model.mixers.", "recall."))} == set()


def test_test_is_the_same_for_all_and_unknown_to_training_when_collected(tmp_path):
    config = load_ablation_config(write_settings(tmp_path))
    first, second = (collect_test(config.test, 32, False) for _ in range(2))
    assert [(one.kind, one.question, one.answer) for one in first] == [
        (one.kind, one.question, one.answer) for one in second
    ]
    assert [one.found.to_dict() for one in first] == [one.found.to_dict() for one in second]
    assert all(sum(one.kind == kind for one in first) == 3 for kind in config.test.kinds)
    assert all(one.image is None for one in first)
    assert collect_test(config.test, 32, True)[0].image.shape == (32, 32, 3)


def test_shard_lacks_only_words_when_a_verbalizer_is_left_out(start):
    tokenizer = InternLM2Tokenizer.from_pretrained(start / "tokenizer")
    base = {"num_scenes": 12, "image_size": 32, "sign_probability": 1.0}
    base |= {"listing_share": 0.0, "partial_share": 0.3, "truth_share": 1.0}
    full = build_shard(ShardSettings(**base), 0, tokenizer)
    without = build_shard(ShardSettings(**base, verbalizers=("segmentation", "detection", "scene_graph")), 0, tokenizer)
    assert len(full.kinds) == len(without.kinds) > 0
    for question in range(len(full.kinds)):
        assert np.array_equal(full.question_ids(question), without.question_ids(question))
        assert np.array_equal(full.answer_ids(question), without.answer_ids(question))
    words = [[tokenizer.decode(shard.auxiliary_ids(k)) for k in range(12)] for shard in (full, without)]
    assert any("text descriptions" in text for text in words[0])
    assert not any("text descriptions" in text for text in words[1])
    assert all(theirs in ours for ours, theirs in zip(*words, strict=True))


@pytest.mark.parametrize("with_pictures", [False, True])
def test_answers_are_the_same_when_batched(start, tmp_path, with_pictures):
    config = load_ablation_config(write_settings(tmp_path))
    model, tokenizer = load_start(config, start), InternLM2Tokenizer.from_pretrained(start / "tokenizer")
    asked = collect_test(config.test, 32, with_pictures)[:9]
    rest = prompt_ids(tokenizer), ("segmentation", "ocr"), {"mode": "uniform"}
    together = answer_test(model, tokenizer, rest[0], asked, *rest[1:], 4)
    singly = [answer_test(model, tokenizer, rest[0], [one], *rest[1:], 4)[0] for one in asked]
    assert together == singly and any(together)


def test_answers_depend_on_findings_and_routing_when_asked(start, tmp_path):
    config = load_ablation_config(write_settings(tmp_path))
    model, tokenizer = load_start(config, start), InternLM2Tokenizer.from_pretrained(start / "tokenizer")
    for layer in model.model.mixers.layers:  # loud experts, so that random weights show what they are given
        for expert in layer.language_experts:
            expert.output.up.data.mul_(20)
    asked = collect_test(config.test, 32, False)
    arguments = model, tokenizer, prompt_ids(tokenizer), asked
    first = answer_test(*arguments, config.reference.verbalizers, {"mode": "uniform"}, 4)
    assert answer_test(*arguments, (), {"mode": "uniform"}, 4) != first
    assert answer_test(*arguments, config.reference.verbalizers, torch.tensor([1.0, 0.0, 0.0]), 4) != first


def test_new_latents_come_from_the_start_when_there_are_fewer(start, tmp_path):
    config = load_ablation_config(write_settings(tmp_path))
    tokenizer = InternLM2Tokenizer.from_pretrained(start / "tokenizer")
    checkpoint = check_start(start, "phrases")
    model, is_other = _build_model(config.recipe, config.find("latents"), tokenizer, checkpoint, 0)
    whole, is_same = _build_model(config.recipe, config.reference, tokenizer, checkpoint, 0)
    assert is_other and not is_same
    torch.testing.assert_close(model.state_dict()[LATENTS], whole.state_dict()[LATENTS][[1, 3]])


def test_only_new_parts_differ_when_the_seed_does(start, tmp_path):
    config = load_ablation_config(write_settings(tmp_path))
    tokenizer = InternLM2Tokenizer.from_pretrained(start / "tokenizer")
    checkpoint = check_start(start, "phrases")
    first, second = (_build_model(config.recipe, config.reference, tokenizer, checkpoint, k)[0] for k in (0, 1))
    differing = {
        name for name, value in first.state_dict().items() if not torch.equal(value, second.state_dict()[name])
    }
    assert any(name.startswith("model.mixers.") for name in differing)
    assert all(name.startswith(("model.mixers.", "model.vision_tower.", "model.multi_modal")) for name in differing)
