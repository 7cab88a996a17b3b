"""Folders that we write name their base model and their verbalizers so that a moved tree answers the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from builders import build_tiny_config, build_tiny_inputs, build_tiny_model
from pipeline_builders import build_scene, draw_image, write_tiny_checkpoint
from training_builders import build_recipe
from transformers import AutoModelForImageTextToText

from moai import MoAIForConditionalGeneration, Pipeline
from moai.checkpoints.io.lookup import BUNDLED_FOLDER
from moai.checkpoints.io.travelling_names import name_of, resolve_name

peft = pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

QUESTION = "how many dogs?"
DETECTOR = {
    "kind": "detection",
    "backend": "owlv2",
    "settings": {"checkpoint": "../owl", "vocabulary": "coco_panoptic"},
}


def answer(folder: Path) -> str:
    pipeline = Pipeline.from_pretrained(folder, [])
    return pipeline(draw_image(), QUESTION, build_scene(), max_new_tokens=8).answer


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A tree with a start, its verbalizer beside it, and a trained adapter."""
    from moai.training.trainer import run_training

    tree = tmp_path_factory.mktemp("machine") / "tree"
    start = write_tiny_checkpoint(tree / "start", {"verbalizers": [DETECTOR]})
    shutil.copytree(BUNDLED_FOLDER / "verbalizers" / "owlv2-nano", tree / "owl")
    run_training(build_recipe(start, tree / "runs" / "first", optimization__num_steps=2))
    return tree


def test_adapter_answers_the_same_when_its_tree_is_moved(trained: Path, tmp_path: Path) -> None:
    before = answer(trained / "runs" / "first" / "final")
    moved = tmp_path / "elsewhere"
    shutil.copytree(trained, moved)
    hidden = trained.with_name("hidden")
    trained.rename(hidden)
    try:
        final = moved / "runs" / "first" / "final"
        assert answer(final) == before
        config = json.loads((final / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "../../../start"
        settings = json.loads((final / "verbalizers.json").read_text())["verbalizers"][0]["settings"]
        assert settings == {"checkpoint": "../../../owl", "vocabulary": "coco_panoptic"}
        pipeline = Pipeline.from_pretrained(final)
        assert [v.checkpoint for v in pipeline.verbalizers] == [str(moved / "owl")]
    finally:
        hidden.rename(trained)


def test_result_names_no_path_of_the_machine_when_written(trained: Path) -> None:
    for path in (trained / "runs" / "first" / "final").rglob("*"):
        if path.is_file():
            assert str(trained).encode() not in path.read_bytes(), path


@pytest.mark.parametrize("door", [MoAIForConditionalGeneration, AutoModelForImageTextToText])
def test_adapter_loads_and_saves_through_every_door_when_its_base_is_relative(trained, tmp_path, door) -> None:
    final = trained / "runs" / "first" / "final"
    model = door.from_pretrained(final)
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        expected = model(**inputs).logits
    through_peft = peft.PeftModel.from_pretrained(
        MoAIForConditionalGeneration.from_pretrained(trained / "start"), final
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(through_peft(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    target = tmp_path / "deep" / "again"
    model.save_pretrained(target)
    assert {path.name for path in target.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not list(target.glob("model*.safetensors"))
    assert Path(json.loads((target / "adapter_config.json").read_text())["base_model_name_or_path"]).parts[0] == ".."
    with torch.no_grad():
        assert torch.equal(door.from_pretrained(target)(**inputs).logits, expected)
        again = peft.PeftModel.from_pretrained(MoAIForConditionalGeneration.from_pretrained(trained / "start"), target)
        torch.testing.assert_close(again.eval()(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


def test_pipeline_of_an_adapter_saves_an_adapter_that_answers_the_same(trained: Path, tmp_path: Path) -> None:
    final = trained / "runs" / "first" / "final"
    pipeline = Pipeline.from_pretrained(final)
    pipeline.save_pretrained(tmp_path / "copy")
    assert answer(tmp_path / "copy") == answer(final)
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "copy").glob("*.json"))
    assert Pipeline.from_pretrained(tmp_path / "copy").verbalizers[0].checkpoint == str(trained / "owl")


def test_pipeline_leaves_nothing_behind_when_saving_fails(trained: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(trained / "runs" / "first" / "final", [])
    pipeline.processor.save_pretrained = None
    with pytest.raises(TypeError):
        pipeline.save_pretrained(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_adapter_of_a_bundled_model_names_it_when_written_by_hand(tmp_path: Path) -> None:
    folder = BUNDLED_FOLDER / "moai-nano"
    base = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    from moai.models.moai.adapters import default_lora_config

    model = peft.get_peft_model(base, default_lora_config(base, 2))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "moai-nano"}))
    loaded = MoAIForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.adapter_base.name == str(folder)
    loaded.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "adapter_config.json").read_text())["base_model_name_or_path"] == "moai-nano"


@pytest.mark.parametrize("way", ["auto", "load_adapter"])
def test_adapter_that_peft_wrote_is_saved_when_it_was_loaded_otherwise(tmp_path: Path, way: str) -> None:
    start = write_tiny_checkpoint(tmp_path / "start")
    base = MoAIForConditionalGeneration.from_pretrained(start)
    from moai.models.moai.adapters import default_lora_config

    peft.get_peft_model(base, default_lora_config(base, 2)).save_pretrained(
        tmp_path / "made", save_embedding_layers=False
    )
    if way == "auto":
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "made")
    else:
        model = MoAIForConditionalGeneration.from_pretrained(start)
        model.load_adapter(tmp_path / "made")
    model.save_pretrained(tmp_path / "copy")
    assert not list((tmp_path / "copy").glob("model*.safetensors"))
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../start"
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "copy").eval()
        torch.testing.assert_close(again(**inputs).logits, model.eval()(**inputs).logits)


def test_adapter_has_the_verbalizers_of_its_base_when_peft_wrote_it(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "tree") / "runs" / "first" / "final"
    (folder / "verbalizers.json").unlink()
    assert [v.checkpoint for v in Pipeline.from_pretrained(folder).verbalizers] == [str(tmp_path / "tree" / "owl")]
    pipeline = Pipeline.from_pretrained(folder, "detection")
    assert [v.checkpoint for v in pipeline.verbalizers] == [str(tmp_path / "tree" / "owl")]


def test_adapter_is_refused_before_writing_when_its_base_was_never_saved(tmp_path: Path) -> None:
    start = write_tiny_checkpoint(tmp_path / "start")
    base = MoAIForConditionalGeneration.from_pretrained(start)
    from moai.models.moai.adapters import default_lora_config

    peft.get_peft_model(base, default_lora_config(base, 2)).save_pretrained(
        tmp_path / "made", save_embedding_layers=False
    )
    model = MoAIForConditionalGeneration(base.config)
    model.name_or_path = ""
    model.load_adapter(tmp_path / "made")
    with pytest.raises(ValueError, match="nowhere saved"):
        model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_missing_base_is_named_when_an_adapter_is_loaded(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained / "runs" / "first" / "final", tmp_path / "alone")
    with pytest.raises(ValueError, match=r"start.*adapter_config\.json"):
        Pipeline.from_pretrained(copy)
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"base_model_name_or_path.*adapter_config\.json"):
        MoAIForConditionalGeneration.from_pretrained(copy)


@pytest.mark.parametrize("sizes", [{"mixer": {"rank": 16}}, {"text": {"num_hidden_layers": 6}}], ids=str)
def test_other_base_is_named_when_it_does_not_fit_the_adapter(trained: Path, tmp_path: Path, sizes: dict) -> None:
    other = tmp_path / "other"
    build_tiny_model(config=build_tiny_config(**{"text": {"vocab_size": 384}} | sizes)).save_pretrained(other)
    copy = shutil.copytree(trained / "runs" / "first" / "final", tmp_path / "alone")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "../other"}))
    with pytest.raises(ValueError, match=rf"(?s){copy}.*{other}"):
        MoAIForConditionalGeneration.from_pretrained(copy)


@pytest.mark.parametrize("name", ["start/model.safetensors", "runs/first/final/adapter_model.safetensors"])
def test_cut_file_is_named_when_weights_are_read(trained: Path, tmp_path: Path, name: str) -> None:
    tree = shutil.copytree(trained, tmp_path / "tree")
    content = (tree / name).read_bytes()
    (tree / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"(?s){tree / name}.*again"):
        Pipeline.from_pretrained(tree / "runs" / "first" / "final", [])


def test_names_lead_back_to_what_they_name_when_resolved(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    bundled = BUNDLED_FOLDER / "verbalizers" / "owlv2-nano" / "vocabulary.txt"
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    assert name_of(snapshot, tmp_path) == ("owner/name", "0123abc")
    assert name_of(bundled, tmp_path)[0] == "owlv2-nano/vocabulary.txt"
    assert name_of("owner/name", tmp_path) == ("owner/name", None)
    for target, folder in ((tmp_path / "model", tmp_path / "a" / "b"), (tmp_path / "a", tmp_path), (bundled, tmp_path)):
        name, _ = name_of(target, folder)
        assert not Path(name).is_absolute() and resolve_name(name, folder) == str(target)


def test_manifest_of_a_cache_leads_to_the_verbalizer_when_both_are_moved(tmp_path: Path) -> None:
    from verbalizers import build_verbalizer
    from verbalizers.store.recipe import MANIFEST_FILE, Recipe, read_manifest

    tree = tmp_path / "tree"
    shutil.copytree(BUNDLED_FOLDER / "verbalizers" / "owlv2-nano", tree / "owl")
    recipe = Recipe.from_verbalizers(
        [build_verbalizer("detection", "owlv2", checkpoint=str(tree / "owl"), vocabulary=["cat"])]
    )
    (tree / "cache").mkdir()
    manifest = recipe.to_manifest(tree / "cache")
    assert str(tmp_path) not in json.dumps(manifest)
    (tree / "cache" / MANIFEST_FILE).write_text(json.dumps(manifest))
    tree.rename(tmp_path / "moved")
    (entry,) = read_manifest(tmp_path / "moved" / "cache")["verbalizers"]
    assert entry["settings"]["checkpoint"] == str(tmp_path / "moved" / "owl")
