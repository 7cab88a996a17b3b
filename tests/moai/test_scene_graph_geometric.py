"""scene_graph/geometric behind verbalizers.json: in the pipeline, `moai verbalize`, the cache and training."""

import json
import shutil

import cache_verbalizers  # noqa: F401 - registers segmentation/two_halves and others
import numpy as np
import pytest
from pipeline_builders import draw_image, write_tiny_checkpoint
from typer.testing import CliRunner

from moai import Pipeline
from moai.checkpoints.io.lookup import BUNDLED_FOLDER
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.cli import app
from moai.data.findings import FindingsReader
from moai.pipeline.looking import complete_scenes
from verbalizers import Scene, Segments, VerbalizationCache, parse_scene, verbalize_scene
from verbalizers.store.recipe import Recipe

SOURCES = [{"kind": "segmentation", "backend": "two_halves"}, {"kind": "detection", "backend": "mean_colour"}]
GRAPH = {"kind": "scene_graph", "backend": "geometric"}
WORDS = "The image includes relationships between objects: left is beside right."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose scene graph stands before its sources."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), {"verbalizers": [GRAPH, *SOURCES]})


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of two images in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for seed in range(2):
        draw_image(seed).save(tmp_path / "images" / f"{seed}.png")
    return tmp_path / "images"


def verbalize(*arguments):
    result = CliRunner().invoke(app, ["verbalize", *(str(argument) for argument in arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_pipeline_reads_relations_and_keeps_the_graph_when_saved(folder, tmp_path):
    pipeline = Pipeline.from_pretrained(folder)
    images = [draw_image(seed) for seed in range(3)]
    scenes = pipeline.verbalize(images)
    assert [pipeline.verbalize(image) for image in images] == scenes
    output = pipeline(images[0], "What is it?", max_new_tokens=3)
    assert WORDS in output.auxiliary_text and set(output.missing) == {"ocr"}
    pipeline.save_pretrained(tmp_path)
    again = VerbalizerSettings.load(tmp_path).build()[0]
    assert [v.fingerprint() for v in again] == [v.fingerprint() for v in pipeline.verbalizers]


def test_relations_are_found_in_brought_findings_when_a_scene_lacks_them(folder):
    verbalizers = VerbalizerSettings.load(folder).build()[0]
    image = draw_image()
    panoptic_map = np.zeros((image.height, image.width), np.int32)
    panoptic_map[:, : image.width // 3], panoptic_map[:, image.width // 3 :] = 1, 2
    segments = Segments(panoptic_map, (1, 2), ("cat", "dog"), (0.9, 0.9))
    brought = Scene(panoptic_map.shape, segments)
    (scene,) = complete_scenes([(image, brought)], verbalizers, None)
    assert scene.segments == segments and {"cat", "dog"} == set(scene.relations.object_names)
    assert scene.detections is not None


def test_only_relations_are_told_when_only_they_are_asked_for(images, folder):
    assert WORDS in verbalize(images / "0.png", "--model", folder)
    assert verbalize(images / "0.png", "--kinds", "scene_graph", "--model", folder).strip() == WORDS
    row = json.loads(verbalize(images / "0.png", "--kinds", "scene_graph", "--json", "--model", folder))
    assert set(row["scene"]) == {"image_size_hw", "relations"} and row["words"] == WORDS and not row["missing"]


def test_error_says_what_to_do_when_it_looks_alone(images, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "verbalizers.json").write_text('[{"kind": "scene_graph", "backend": "geometric"}]')
    words = ["verbalize", str(images / "0.png"), "--verbalizers", "scene_graph/geometric", "--model", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert "expected segments or detections of the image, got neither" in result.output
    assert "Let a segmentation or detection verbalizer look too" in result.output


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_cache_keeps_what_was_asked_for_when_kinds_are_chosen(images, folder, workers):
    pytest.importorskip("pyarrow")
    verbalizers = VerbalizerSettings.load(folder).build()[0]
    folders = {}
    for kinds in (None, "scene_graph", "scene_graph,segmentation"):
        chosen = [] if kinds is None else ["--kinds", kinds]
        folders[kinds] = verbalize("images", "--out", "cache", "--workers", workers, *chosen, "--model", folder).strip()
    assert len(set(folders.values())) == 3
    fresh = parse_scene([draw_image(0)], verbalizers)[0]
    entries = {kinds: VerbalizationCache(path)["0.png"] for kinds, path in folders.items()}
    assert entries[None].scene == fresh and entries[None].text == verbalize_scene(fresh)
    assert entries["scene_graph"].scene == Scene(fresh.image_size_hw, relations=fresh.relations)
    assert entries["scene_graph"].text == WORDS
    both = entries["scene_graph,segmentation"].scene
    assert both == Scene(fresh.image_size_hw, fresh.segments, relations=fresh.relations)


def test_training_reads_the_same_when_the_cache_lacks_an_image(images, folder):
    pytest.importorskip("pyarrow")
    path = verbalize("images", "--out", "cache", "--workers", 0, "--kinds", "scene_graph", "--model", folder).strip()
    reader = FindingsReader(VerbalizationCache(path), is_looking=True)
    assert reader.settings.kinds == ("scene_graph",) and not reader.makes_maps()
    live = reader.read(None, draw_image(5))
    assert live.text == WORDS and live.scene.segments is None and live.scene.relations is not None


def test_recipe_differs_when_a_source_or_what_is_kept_does(folder):
    graph, segmenter, detector = VerbalizerSettings.load(folder).build()[0]
    recipes = [
        Recipe.from_verbalizers([graph, segmenter, detector]),
        Recipe.from_verbalizers([graph, segmenter]),
        Recipe.from_verbalizers([graph, segmenter, detector], kept_kinds=["scene_graph"]),
        Recipe.from_verbalizers([graph, segmenter, detector], kept_kinds=["scene_graph", "detection"]),
    ]
    assert len({recipe.fingerprint for recipe in recipes}) == 4
    same = Recipe.from_verbalizers(
        [detector, graph, segmenter], kept_kinds=["detection", "segmentation", "scene_graph"]
    )
    assert same.fingerprint == recipes[0].fingerprint and "kept_kinds" not in same.to_manifest(".")


@pytest.mark.slow
@pytest.mark.skipif(not (BUNDLED_FOLDER / "verbalizers").is_dir(), reason="an installation without checkpoints")
def test_scenes_of_cache_and_command_are_equal_when_bundled_verbalizers_look(tmp_path, repo_root):
    for package in ("timm", "pyarrow"):
        pytest.importorskip(package)
    shutil.copytree(BUNDLED_FOLDER / "verbalizers", tmp_path / "verbalizers")
    settings = json.loads((BUNDLED_FOLDER / "moai-nano" / "verbalizers.json").read_text())
    kept = [entry for entry in settings["verbalizers"] if entry["kind"] in ("segmentation", "detection")]
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(BUNDLED_FOLDER / "moai-nano" / "config.json", model)
    (model / "verbalizers.json").write_text(json.dumps({**settings, "verbalizers": [*kept, GRAPH]}))
    images = tmp_path / "images"
    images.mkdir()
    for name in ("street.jpg", "astronaut.jpg"):
        shutil.copy(repo_root / "examples" / name, images)
    path = verbalize(images, "--out", tmp_path / "cache", "--model", model, "--workers", 0).strip()
    cache = VerbalizationCache(path)
    for name in ("street.jpg", "astronaut.jpg"):
        shown = json.loads(verbalize(images / name, "--model", model, "--json"))
        assert cache[name].scene.to_dict() == shown["scene"]
    assert "car (#1) is on road" in cache["street.jpg"].text and "balloon is in sky" in cache["street.jpg"].text
