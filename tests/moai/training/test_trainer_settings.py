"""Recipes: every field is checked, words of the command line lie over them, those in configs/ are right."""

from pathlib import Path

import pytest
import yaml
from training_builders import REPO_ROOT, build_recipe

from moai.training.train_settings import load_settings

MINIMAL = {"stage": 1, "output_folder": "out", "model": {"path": "m"}, "optimization": {"num_steps": 3}}


def test_settings_have_defaults_when_only_the_needed_is_given() -> None:
    settings = load_settings(MINIMAL)
    assert settings.output_folder == Path("out") and settings.train.decoder == "lora"
    assert settings.routing_mode == "random_expert" and not settings.trains_gates
    second = load_settings(MINIMAL, ["stage=2", "train.gates=false"])
    assert second.routing_mode == "gated" and not second.trains_gates
    assert load_settings(settings) is settings
    assert load_settings(settings.to_dict()) == settings  # what a checkpoint keeps reads back


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.learning_rat=1", r"learning_rat.*Did you mean 'learning_rate'.*Known here: num_steps"),
        ("optimizer.lr=1", r"unknown setting `optimizer`.*optimization"),
        ("stage=3", r"`stage` must be one of 1, 2, got 3"),
        ("train.decoder=half", r"`train\.decoder` must be one of 'lora', 'full', 'frozen'"),
        ("optimization.num_steps=1.5", r"`optimization\.num_steps` must be a whole number, got 1\.5"),
        ("optimization.num_steps=true", "whole number"),
        ("optimization.learning_rate=fast", r"must be a number, got 'fast'"),
        ("optimization.learning_rate=true", "must be a number, got True"),
        ("train.projector=2", "true or false"),
        ("train.lora_linears=q_proj", "must be a list"),
        ("optimization.num_epochs=2", "expected one positive number"),
        ("optimization.num_steps=0", "expected one positive number"),
        ("optimization.batch_size=6", "multiple of `micro_batch_size`"),
        ("optimization.learning_rates={decodr: 1.0}", "learning_rates` may name .*decoder, got"),
        ("model.vision=v", "expected `model.path`, or both"),
        ("model.dtype=int8", "float32, bfloat16, float16"),
        ("model.fresh_parts=[decoder]", "projector, compressor, mixers"),
        ("model={path: m, quantization: nf4}", None),
        ("top_k=4", "`top_k` must be 1 to 3"),
        ("watching.report_to=[mlflow]", "tensorboard, trackio, wandb"),
        ("stage", "expected an override such as"),
        ("stage.deep=1", "expected a group of settings at 'stage'"),
    ],
)
def test_settings_say_what_is_wrong_when_a_field_is(override: str, message: str | None) -> None:
    if message is None:
        assert load_settings(MINIMAL, [override]).model.quantization == "nf4"
        return
    with pytest.raises(ValueError, match=message):
        load_settings(MINIMAL, [override])


def test_modes_are_refused_when_they_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="quantised decoder cannot be trained in full"):
        load_settings(MINIMAL, ["train.decoder=full", "model.quantization=nf4"])
    with pytest.raises(ValueError, match="Use merged"):
        load_settings(MINIMAL, ["train.decoder=full", "saving.output=adapter"])
    parts = [f"train.{part}=false" for part in ("compressor", "mixers", "projector")]
    with pytest.raises(ValueError, match="nothing to train"):
        load_settings(MINIMAL, ["train.decoder=frozen", *parts])


def test_numbers_are_read_when_yaml_takes_them_for_words() -> None:
    assert load_settings(MINIMAL, ["optimization.learning_rate=1e-3"]).optimization.learning_rate == 1e-3


def test_missing_field_is_named_when_absent() -> None:
    with pytest.raises(ValueError, match="expected the setting `output_folder`"):
        load_settings({name: value for name, value in MINIMAL.items() if name != "output_folder"})


def test_file_is_named_when_it_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_settings(tmp_path / "absent.yaml")
    for content, message in (("- 1", "expected a mapping"), ("a: [", "expected YAML")):
        (tmp_path / "wrong.yaml").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_settings(tmp_path / "wrong.yaml")


@pytest.mark.parametrize("path", sorted((REPO_ROOT / "configs").rglob("*_stage[12].yaml")), ids=lambda path: path.stem)
def test_bundled_recipe_is_right_when_read(path: Path) -> None:
    from moai.data.training_data import DataSettings

    settings = load_settings(path)
    assert settings.stage == int(path.stem[-1])
    assert DataSettings.from_dict(settings.data).sources


def test_accelerate_files_are_right_when_accelerate_reads_them() -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args", reason="needs accelerate")
    files = sorted((REPO_ROOT / "configs" / "accelerate").glob("*.yaml"))
    assert {file.stem for file in files} == {"cpu", "one_gpu", "multi_gpu_ddp", "fsdp2", "deepspeed_zero3"}
    for file in files:
        loaded = config_args.load_config_from_file(str(file))
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for name, value in content.items():
            got = getattr(loaded, name)
            assert str(getattr(got, "value", got)) == str(value) or got == value, (file.name, name)


@pytest.mark.parametrize("group", ["data", "validation"])
def test_wrong_data_settings_are_told_before_anything_is_loaded_or_made(tmp_path: Path, group: str) -> None:
    from moai.training.trainer import run_training

    recipe = build_recipe("no-such-model", tmp_path / "run")
    recipe[group] = recipe["data"] | {"num_workers": 2}
    with pytest.raises(ValueError, match=r"unknown setting `data\.num_workers`"):
        run_training(recipe)
    assert not (tmp_path / "run").exists()
