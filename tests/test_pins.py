"""What users hold on to, pinned (tests/pins.py): it may change only on purpose, by writing the pins anew."""

import importlib

import pytest
import torch
from pins import (
    REPO_ROOT,
    collect_commands,
    collect_manifest,
    collect_names,
    collect_state_dicts,
    describe_tensors,
    read_pin,
)

MODEL_CLASSES = {
    "checkpoints/moai-nano": "moai:MoAIForConditionalGeneration",
    "checkpoints/verbalizers/psgtr-nano": "verbalizers.psgtr:PSGTRForSceneGraph",
}


def find(dotted: str):
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


def test_state_dicts_have_their_pinned_names_when_built() -> None:
    assert collect_state_dicts() == read_pin("state_dicts")


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


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_bundled_checkpoint_fits_its_class_when_loaded(name: str) -> None:
    _, info = find(MODEL_CLASSES[name]).from_pretrained(REPO_ROOT / name, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info


def test_commands_have_their_pinned_options_when_asked() -> None:
    assert collect_commands() == read_pin("commands")


def test_packages_have_their_pinned_names_when_imported() -> None:
    assert collect_names() == read_pin("public_names")
    for package, names in collect_names().items():
        loaded = importlib.import_module(package)
        assert [name for name in names if not hasattr(loaded, name)] == []


def test_cache_manifest_is_as_pinned_when_written() -> None:
    pytest.importorskip("pyarrow")
    assert collect_manifest() == read_pin("cache_manifest")
