"""`moai compare`: new models of one size, and a sweep over systems that goes on after kill -9."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from forked_processes import ForkedProcess
from safetensors.torch import load_file
from training_builders import REPO_ROOT, write_tiny_checkpoint
from typer.testing import CliRunner

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')

from moai import Pipeline  # noqa: E402
from moai.cli import app  # noqa: E402
from moai.evaluation.new_models import SYSTEMS, NewModelsSettings, write_new_model  # noqa: E402
from moai.evaluation.sweep import load_results, run_sweep, select_jobs  # noqa: E402
from moai.evaluation.sweep_settings import SweepSettings, load_sweep_settings  # noqa: E402
from moai.scenes.scenes import Scenes  # noqa: E402
from moai.settings import load_settings  # noqa: E402

SETTINGS = REPO_ROOT / "configs" / "compare.yaml"
SIZES = {
    "vocab_size": 300,
    "num_scenes": 3,
    "moai": {"compressor": {"num_latents": 4, "num_layers": 1, "num_heads": 2, "head_dim": 8},
             "mixer": {"layers": [1], "num_heads": 2, "rank": 4}},
    "flamingo": {"every": 1, "resampler_depth": 1, "resampler_num_heads": 2, "resampler_head_dim": 8, "num_latents": 3,
                 "cross_attention_num_heads": 2, "cross_attention_head_dim": 8},
    "prismer": {"experts": ["seg", "obj_detection", "ocr_detection"], "label_size": 4, "num_latents": 3,
                "resampler_layers": 1, "resampler_heads": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def sweep() -> SweepSettings:
    return load_sweep_settings(SETTINGS)


def write_small(folder: Path, **changes) -> Path:
    """The repository's comparison with tiny models, few steps and two questions of a kind."""
    content = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    new_models = SIZES | {"backbones": str(write_tiny_checkpoint(folder / "source"))}
    for variant in content["variants"]:
        variant["stages"] = dict.fromkeys(variant["stages"], [])
    stages = {"captions": ["optimization.num_steps=1"], "all": ["optimization.num_steps=6"]}
    content |= {"seeds": [0], "new_models": new_models, "stages": stages} | changes
    content["recipe"]["optimization"] |= {"batch_size": 8, "micro_batch_size": 8, "precision": "fp32"}
    content["recipe"]["saving"]["every_steps"] = 1
    content["recipe"]["data"]["sources"][0]["scenes"] |= {"image_size": 32, "length": 4}
    content["evaluate"] |= {"per_kind": 2, "image_size": 32}
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def starts(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("starts")
    chosen = load_settings(NewModelsSettings, SIZES | {"backbones": str(source)})
    for system in SYSTEMS:
        write_new_model(chosen, system, 0, folder / system)
    return folder


def test_new_models_take_tower_decoder_and_words_of_the_backbones(starts, source, tmp_path):
    tensors = {system: load_file(starts / system / "model.safetensors") for system in SYSTEMS}
    tensors["source"] = load_file(source / "model.safetensors")
    for part in ("vision_tower", "language_model"):  # LLaVA's files keep names of their own in between
        prefix = f"model.{part}."
        known = {name.removeprefix(prefix): value for name, value in tensors["source"].items() if prefix in name}
        assert known
        for system in ("moai", "flamingo", "llava"):
            for end, value in known.items():
                found = [own for name, own in tensors[system].items() if part in name and name.endswith(f".{end}")]
                assert any(own[: len(value)].equal(value) for own in found), (system, end)  # new tokens are the last
    mlp = "layers.1.mlp.fc2.weight"
    of_tower = tensors["source"][f"model.vision_tower.encoder.{mlp}"]
    for system in ("prismer", "prismerz"):
        assert any(own.equal(of_tower) for name, own in tensors[system].items() if name.endswith(mlp))
    chat = {system: (starts / system / "chat_template.jinja").read_text() for system in ("moai", "llava")}
    assert set(chat.values()) == {(source / "chat_template.jinja").read_text()}
    chosen = load_settings(NewModelsSettings, SIZES | {"backbones": str(source)})
    for seed in (0, 1):
        write_new_model(chosen, "prismer", seed, tmp_path / str(seed))
    files = [
        (folder / "model.safetensors").read_bytes() for folder in (starts / "prismer", tmp_path / "0", tmp_path / "1")
    ]
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("system", SYSTEMS)
def test_new_model_answers_when_loaded(starts, system):
    scene = Scenes(split="test", image_size=48, kinds=("existence",))[0]
    pipeline = Pipeline.from_pretrained(starts / system, [])
    (answer,) = pipeline.answer_each([scene.image], ["Is there a dog?"], [scene.truth], max_new_tokens=3)
    assert answer.error is None
    latents = {"moai": 4, "flamingo": 3, "llava": 0, "prismer": 4 + 3, "prismerz": 4}
    assert pipeline.answering.num_latents == latents[system]


def test_settings_ask_all_systems_the_same_with_the_same_steps_and_sizes(sweep):
    names = {variant.name for variant in sweep.variants}
    systems = {"moai", "prismer", "prismerz", "flamingo", "plain"}
    assert names == systems | {"flamingo-words", "words", "p-tuning"} and len(sweep.seeds) >= 2
    recipes = [sweep.recipe_of(variant, "all", 0, "start", Path("out")) for variant in sweep.variants]
    usual = recipes[0]["optimization"]
    for variant, recipe in zip(sweep.variants, recipes, strict=True):
        own = {name for name, value in recipe["optimization"].items() if usual[name] != value}
        has_new_decoder = variant.name.startswith("prismer")
        assert own == ({"num_steps", "learning_rate", "precision"} if has_new_decoder else set())
        assert list(sweep.stages_of(variant)) == (["captions", "all"] if has_new_decoder else ["all"])
    assert len({json.dumps(recipe["data"]["sources"]) for recipe in recipes}) == 1
    for variant, recipe in zip(sweep.variants, recipes, strict=True):  # tested with what it was trained with
        assert recipe["data"].get("verbalizations") == sweep.test_of(variant).verbalizations
        assert tuple(recipe["data"]["kinds"]) == sweep.test_of(variant).verbalizers
    assert {variant.name for variant, _ in select_jobs(sweep, ("p-tuning",))} == {"moai", "plain", "p-tuning"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_models": None}, "new moai: describe `new_models`"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "goes_on_from": "b"}]}, "'b'"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "goes_on_from": "a"}]}, "goes on from none"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "start": "blip"}]}, "start"),
    ],
)
def test_settings_name_the_mistake_when_a_start_is_wrong(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_sweep_settings(write_small(tmp_path, **change))


def test_sweep_asks_for_a_start_when_a_variant_has_none(tmp_path):
    content = {"recipe": {"stage": 2}, "stages": {}, "variants": [{"name": "a", "label": "a", "table": "t"}]}
    with pytest.raises(ValueError, match="--start"):
        run_sweep(load_settings(SweepSettings, content), None, tmp_path)


def test_command_writes_all_rows_when_run(tmp_path):
    stages = {"captions": ["optimization.num_steps=1"], "all": ["optimization.num_steps=2", "saving.every_steps=0"]}
    words = ["compare", "--config", str(write_small(tmp_path, stages=stages)), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    results = load_results(load_sweep_settings(tmp_path / "compare.yaml"), None, tmp_path / "out")
    systems = {"moai", "prismer", "prismerz", "flamingo", "plain"}
    assert {name for name, _ in results} == systems | {"flamingo-words", "words", "p-tuning"}
    found = {name: result for (name, _), result in results.items()}
    assert found["words"].sequence_length > found["plain"].sequence_length + 20
    assert found["p-tuning"].sequence_length == found["plain"].sequence_length + 20
    assert found["p-tuning"].trained_parameters < found["plain"].trained_parameters == found["words"].trained_parameters
    text = (tmp_path / "out" / "siblings.md").read_text(encoding="utf-8")
    assert text.startswith("<!-- moai compare: begin -->") and "### What it takes" in text
    (model,) = (tmp_path / "out" / "work").glob("flamingo--seed-0--*/all")
    assert not (model / "checkpoints").exists()
    answer = Pipeline.from_pretrained(model / "final", [])(
        Scenes(image_size=32)[0].image, "Is there a dog?", max_new_tokens=2
    )
    assert answer.error is None


def start_command(config: Path, *outs: Path) -> ForkedProcess:
    """Start `moai compare` for one folder after the other in a process of its own."""

    def compare() -> None:
        for out in outs:
            app(["compare", "--config", str(config), "--out", str(out)], standalone_mode=False)

    return ForkedProcess(compare, ACCELERATE_USE_CPU="1")


def test_results_are_equal_when_killed_and_run_again(tmp_path):
    config = write_small(tmp_path)
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["variants"] = [one for one in content["variants"] if one["name"] in ("plain", "p-tuning")]
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    process, until = start_command(config, tmp_path / "out"), time.monotonic() + 500
    pattern = "work/p-tuning--*/all/checkpoints/step-*"
    while process.poll() is None and time.monotonic() < until and not list((tmp_path / "out").glob(pattern)):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out" / "results").iterdir()] == ["plain--seed-0.json"]
    process = start_command(config, tmp_path / "out", tmp_path / "whole")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    sweep, times = (
        load_sweep_settings(config),
        dict.fromkeys(("train_seconds", "test_seconds", "seconds_per_question"), 0),
    )
    result, whole = (load_results(sweep, None, tmp_path / out) for out in ("out", "whole"))
    for key in (("plain", 0), ("p-tuning", 0)):
        assert replace(result[key], **times) == replace(whole[key], **times)
        found = f"*/{key[0]}--*/all/final/*.safetensors"
        models = [next((tmp_path / out).glob(found)) for out in ("out", "whole")]
        assert models[0].read_bytes() == models[1].read_bytes()
