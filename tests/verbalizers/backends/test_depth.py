"""The fifth kind: real depth models with few weights, words about a map written by hand, every way it travels."""

import ast
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import verbalizers
from verbalizers import (
    Detections,
    LabelMap,
    Relations,
    Scene,
    Segments,
    WordSettings,
    available_verbalizers,
    build_verbalizer,
    draw_scene,
    parse_scene,
    verbalize_scene,
)
from verbalizers.backends.depth import MIN_GAP, compare_depths, scale_nearness
from verbalizers.store.rows import pack_scene, unpack_scene

SOURCE = Path(verbalizers.__file__).parent / "backends" / "depth.py"


def ramp(height=40, width=60):
    """A floor: the bottom of the image is nearest."""
    return LabelMap(np.repeat(np.linspace(0, 255, height).astype(np.uint8)[:, None], width, axis=1))


def panoptic(height=40, width=60):
    ids = np.zeros((height, width), np.int32)
    ids[2:6], ids[18:22, :20], ids[34:38, 30:] = 1, 2, 3
    return Segments(ids, (1, 2, 3), ("sky-other-merged", "car", "person"), (1, 1, 1))


def scene_of(depth_map, **fields):
    return Scene((40, 60), findings={"depth": depth_map}, **fields)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    torch = pytest.importorskip("torch")
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
        GLPNConfig,
        GLPNForDepthEstimation,
        GLPNImageProcessor,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("depth")
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        patch_size=14,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder / "anything")
    size = {"height": 56, "width": 56}
    processor = DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14)
    processor.save_pretrained(folder / "anything")
    config = GLPNConfig(
        num_encoder_blocks=4,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        head_in_index=-1,
    )
    GLPNForDepthEstimation(config).save_pretrained(folder / "glpn")
    GLPNImageProcessor().save_pretrained(folder / "glpn")
    return folder


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = [(64, 96), (64, 96), (300, 80)]
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("name", ["anything", "glpn"])
def test_depth_answers_alike_when_alone_and_in_a_batch(checkpoints, images, name):
    verbalizer = build_verbalizer("depth", checkpoint=checkpoints / name, device="cpu")
    together = verbalizer.predict(images)
    # as large as the image, or as what the model told of it: nothing is cut, nothing made up
    sizes = {"anything": [(56, 84), (56, 84), (210, 56)], "glpn": [(64, 96), (64, 96), (288, 77)]}[name]
    assert [found.values.shape for found in together] == sizes
    for image, found in zip(images, together, strict=True):
        alone = verbalizer.predict([image])[0].values.astype(int)
        assert np.abs(alone - found.values).max() <= 8  # float32 sums in another order
        assert found.values.dtype == np.uint16 and found.values.max() == 65535 and found.values.min() == 0
        assert len(np.unique(found.values)) > 256


def test_depth_turns_round_when_output_is_told_otherwise(checkpoints, images):
    near, far = (
        build_verbalizer("depth", checkpoint=checkpoints / "glpn", output=output).predict(images[:1])[0].values
        for output in ("disparity", "metric")
    )
    default = build_verbalizer("depth", checkpoint=checkpoints / "glpn").predict(images[:1])[0].values
    np.testing.assert_array_equal(default, far)  # GLPN tells metres
    order = np.argsort(near.ravel(), kind="stable")
    assert (np.diff(far.ravel()[order].astype(int)) <= 1).all()  # what is nearer here is farther there
    assert np.corrcoef(near.ravel(), far.ravel())[0, 1] < -0.5


def test_depth_reads_the_configuration_when_it_tells_the_output(checkpoints):
    from types import SimpleNamespace

    verbalizer = build_verbalizer("depth", checkpoint=checkpoints / "anything")
    assert verbalizer.load().is_disparity  # "relative"
    assert not verbalizer._is_disparity(SimpleNamespace(model_type="depth_anything", depth_estimation_type="metric"))


def test_depth_asks_what_the_numbers_mean_when_the_model_does_not_say():
    from types import SimpleNamespace

    verbalizer = build_verbalizer("depth", checkpoint="x")
    with pytest.raises(ValueError, match="output='disparity'"):
        verbalizer._is_disparity(SimpleNamespace(model_type="chmv2"))
    with pytest.raises(ValueError, match="`output` must be"):
        build_verbalizer("depth", checkpoint="x", output="metres")


def test_scale_nearness_is_monotone_when_values_are_wild():
    metres = np.array([[0.5, 1, 2, 4, 8, 16, np.inf, np.nan]])
    nearness = scale_nearness(metres, is_disparity=False)[0]
    assert (np.diff(nearness[:6]) < 0).all()
    assert nearness[0] == 1 and (nearness[5:] == 0).all()
    steps = -np.diff(nearness[:6])[1:-1]  # every doubling is one step
    assert steps.max() - steps.min() <= 1e-9
    disparity = scale_nearness(1 / metres[:, :6], is_disparity=True)[0]
    assert (np.diff(disparity) <= 0).all() and disparity[0] == 1
    assert (scale_nearness(np.full((2, 2), 3.0), False) == 0).all()


def test_depth_speaks_of_segments_when_distances_differ():
    words = verbalize_scene(scene_of(ramp(), segments=panoptic()), kinds=["depth"])
    assert words == (
        "The image includes depth relations between objects: car is farther than person, and sky is farther than car."
    )
    everything = verbalize_scene(scene_of(ramp(), segments=panoptic()))
    assert everything.endswith(words) and everything.startswith("The image includes bounding box")


def test_depth_is_silent_when_there_is_nothing_to_compare():
    assert verbalize_scene(scene_of(ramp())) == ""
    flat = LabelMap(np.full((4, 4), 100, np.uint8))
    assert verbalize_scene(scene_of(flat, segments=panoptic()), kinds=["depth"]) == ""


def test_depth_adds_detections_when_they_are_no_segment_again():
    segments = panoptic()
    boxes = np.array([segments.boxes_xyxy[1], [0, 30, 20, 40], [0, 30, 20, 40], [40, 0, 60, 2]])
    detections = Detections(boxes, ("car", "car", "dog", "bird"), (0.9, 0.9, 0.9, 0.1), (40, 60))
    relations = compare_depths(ramp(), scene_of(ramp(), segments=segments, detections=detections))
    assert relations.object_names == ("sky", "car", "person", "car", "dog")
    words = verbalize_scene(scene_of(ramp(), segments=segments, detections=detections), kinds=["depth"])
    assert "sky is farther than car (#1)" in words and "car (#1) is farther than car (#2)" in words
    few = WordSettings(max_relations=1)
    assert verbalize_scene(scene_of(ramp(), segments=segments), kinds=["depth"], settings=few).count(" is ") == 1


def test_depth_falls_back_on_the_scene_graph_when_nothing_else_was_found():
    boxes = [[0, 0, 60, 4], [0, 34, 60, 40]]
    relations = Relations(("cloud", "cat"), (0,), (1,), ("over",), (0.9,), boxes)
    words = verbalize_scene(scene_of(ramp(), relations=relations), kinds=["depth"])
    assert words.endswith("cloud is farther than cat.")


def test_compare_depths_never_contradicts_itself_when_objects_are_many():
    rng = np.random.default_rng(1)
    ids = np.arange(1, 41, dtype=np.int32)[:, None].repeat(60, axis=1)
    depth_map = LabelMap(
        rng.integers(0, 255, (40, 60)).astype(np.uint8) // 8 + rng.integers(0, 220, (40, 1)).astype("u1")
    )
    segments = Segments(ids, range(1, 41), tuple(f"thing {i}" for i in range(40)), np.ones(40))
    relations = compare_depths(depth_map, scene_of(depth_map, segments=segments))
    median = np.median(depth_map.values, axis=1) / 255
    assert 0 < len(relations) < 40
    for s, o, predicate in zip(relations.subject_indices, relations.object_indices, relations.predicates, strict=True):
        difference = median[s] - median[o] if predicate == "nearer than" else median[o] - median[s]
        assert s < o and difference >= MIN_GAP - 1e-9
    assert (np.diff(relations.confidence) <= 0).all()


def test_depth_survives_when_scene_goes_through_json_and_cache():
    scene = scene_of(ramp(), segments=panoptic())
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    again = unpack_scene(*pack_scene(scene))
    assert again == scene and verbalize_scene(again) == verbalize_scene(scene)


@pytest.mark.parametrize("ground", [0, 255])
def test_depth_is_drawn_as_a_framed_inset_when_scene_is_drawn(ground):
    image = Image.new("RGB", (60, 40), (ground,) * 3)
    drawn = np.asarray(draw_scene(scene_of(ramp()), image)).astype(int)
    plain = np.asarray(draw_scene(Scene((40, 60)), image)).astype(int)
    changed = np.abs(drawn - plain).sum(axis=2) > 0
    assert changed.any() and not changed[:20].any() and not changed[:, :30].any()
    inset = drawn[-8:-2, -13:-2].sum(axis=2).mean(axis=1)
    assert (np.diff(inset) > 0).all()  # the near bottom is brighter


def test_parse_scene_carries_depth_when_run_beside_others(checkpoints, images):
    verbalizer = build_verbalizer("depth", checkpoint=checkpoints / "glpn", device="cpu")
    scene = parse_scene(images[:1], [verbalizer])[0]
    assert isinstance(scene.findings["depth"], LabelMap) and not scene.failures
    broken = build_verbalizer("depth", checkpoint=checkpoints / "nowhere")
    scene = parse_scene(images[:1], [broken])[0]
    assert "nowhere" in scene.failures["depth"] and verbalize_scene(scene) == ""


def test_command_line_says_and_draws_depth_when_checkpoint_names_it(checkpoints, tmp_path):
    from typer.testing import CliRunner

    from moai.cli import app

    settings = {
        "verbalizers": [{"kind": "depth", "settings": {"checkpoint": str(checkpoints / "glpn")}}],
        "kinds": ["depth"],
    }
    (tmp_path / "verbalizers.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text("{}")
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(image)
    overlay = tmp_path / "overlay.png"
    arguments = ["verbalize", str(image), "--model", str(tmp_path), "--json", "--overlay", str(overlay)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout.strip().splitlines()[-1])
    scene = Scene.from_dict(row["scene"])
    assert isinstance(scene.findings["depth"], LabelMap) and row["missing"] == {}
    assert (np.asarray(Image.open(overlay)) != np.asarray(Image.open(image))).any()


def test_depth_uses_public_names_only_when_parsed():
    imported = {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("verbalizers")
        for alias in node.names
    }
    assert imported
    for module, name in imported:
        assert name in importlib.import_module(module).__all__, f"{module}.{name} is not public"
    # Nobody else knows the kind: what it can do, any package can.
    package = SOURCE.parents[1]
    name = re.compile(r"verbalizers\.(backends\.)?depth\b")
    knowing = {p.name for p in package.rglob("*.py") if name.search(p.read_text(encoding="utf-8"))}
    assert knowing <= {"normal.py"}


def test_depth_is_listed_when_asked_for():
    assert available_verbalizers()["depth"] == ("transformers",)
