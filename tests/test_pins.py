"""What users hold on to, pinned (tests/pins.py): it may change only on purpose, by writing the pins anew."""

import importlib

import pytest
import torch
from pins import (
    REPO_ROOT,
    collect_manifest,
    collect_names,
    describe_checkpoint,
    describe_moai_commands,
    describe_module,
    describe_tensors,
    list_checkpoints,
    list_command_modules,
    list_tiny_models,
    read_pin,
)

STATE_DICTS = read_pin("state_dicts")
COMMANDS = read_pin("commands")
MODEL_CLASSES = {
    "checkpoints/moai-nano": "moai:MoAIForConditionalGeneration",
    "checkpoints/verbalizers/psgtr-nano": "verbalizers.psgtr:PSGTRForSceneGraph",
}


def find(dotted: str):
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", list_tiny_models())
def test_state_dict_has_its_pinned_names_when_built(name: str) -> None:
    from builders import build_tiny_model

    assert describe_tensors(build_tiny_model(**list_tiny_models()[name]).state_dict()) == STATE_DICTS[name]


def test_tensors_are_told_apart_when_described() -> None:
    """The pin can fail: a name, a shape, a dtype or a place that differs is seen."""
    one = {"layers.0.w": torch.zeros(2), "layers.1.w": torch.zeros(2)}
    others = [
        {"layers.0.w": torch.zeros(2), "layers.1.v": torch.zeros(2)},
        {"layers.0.w": torch.zeros(2), "layers.1.w": torch.zeros(3)},
        {"layers.0.w": torch.zeros(2), "layers.1.w": torch.zeros(2).half()},
        {"layers.0.w": torch.zeros(2), "layers.2.w": torch.zeros(2)},
        {"layers.0.w": torch.zeros(2)},
    ]
    assert all(describe_tensors(other) != describe_tensors(one) for other in others)


def test_bundled_checkpoints_have_their_pinned_tensors_when_read() -> None:
    assert set(list_checkpoints()) == {name for name in STATE_DICTS if name.startswith("checkpoints/")}
    for name in list_checkpoints():
        assert describe_checkpoint(REPO_ROOT / name) == STATE_DICTS[name], name


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_bundled_checkpoint_fits_its_class_when_loaded(name: str) -> None:
    _, info = find(MODEL_CLASSES[name]).from_pretrained(REPO_ROOT / name, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info


def test_moai_has_its_pinned_commands_and_options_when_asked() -> None:
    pinned = {name: lines for name, lines in COMMANDS.items() if not name.startswith("python -m ")}
    assert describe_moai_commands() == pinned


@pytest.mark.parametrize("name", list_command_modules())
def test_module_has_its_pinned_options_when_run(name: str) -> None:
    assert describe_module(name) == COMMANDS[f"python -m {name}"]


def test_every_pinned_command_is_there_when_listed() -> None:
    assert {f"python -m {name}" for name in list_command_modules()} | set(describe_moai_commands()) == set(COMMANDS)


def test_packages_have_their_pinned_names_when_imported() -> None:
    assert collect_names() == read_pin("public_names")
    for package, names in collect_names().items():
        loaded = importlib.import_module(package)
        assert [name for name in names if not hasattr(loaded, name)] == []


def test_cache_manifest_is_as_pinned_when_written() -> None:
    pytest.importorskip("pyarrow")
    assert collect_manifest() == read_pin("cache_manifest")
