"""One verbalizer for drawn scenes, another for photographs."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.scenes.scenes import Scenes
from verbalizers import Detections, Relations, Segments, Verbalizer, build_verbalizer, parse_scene, register_verbalizer
from verbalizers.backends import split_by_image
from verbalizers.backends.split_by_image import looks_photographed


class Named(Verbalizer):
    """Finds one box called as it was told, in any image."""

    def __init__(self, name="thing", checkpoint=None):
        self.name, self.checkpoint = name, checkpoint

    def predict(self, images):
        return [Detections([[0, 0, 5, 5]], (self.name,), [0.9], image.shape[:2]) for image in images]


@pytest.fixture(scope="module", autouse=True)
def registered():
    from verbalizers.core import registry

    register_verbalizer("detection", "named")(Named)
    yield
    del registry._REGISTRY["detection", "named"]


@pytest.fixture(scope="module")
def images(repo_root):
    photograph = np.asarray(Image.open(repo_root / "examples" / "astronaut.jpg").convert("RGB"))
    return [Scenes("validation", num_questions=1, length=1)[0].image, photograph]


def test_scenes_look_drawn_and_a_photograph_does_not(images, repo_root):
    assert [looks_photographed(image) for image in images] == [False, True]
    street = np.asarray(Image.open(repo_root / "examples" / "street.jpg").convert("RGB"))
    assert not looks_photographed(street)
    assert not looks_photographed(np.zeros((1, 900, 3), np.uint8))
    grey = [np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2) for image in images]
    assert [looks_photographed(image) for image in grey] == [False, True]
    assert all(looks_photographed(images[1][a:, b:][:300, :300]) for a, b in ((0, 0), (100, 150), (200, 50)))
    drawn = [looks_photographed(sample.image) for sample in Scenes("validation", num_questions=1, length=20)]
    assert not any(drawn)


def save_as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize("quality", [95, 85, 75, 50])
def test_scenes_look_drawn_when_saved_as_jpeg(images, quality):
    for size in (224, 448):
        scenes = Scenes("validation", seed=9, image_size=size, num_questions=1, length=15)
        assert sum(looks_photographed(save_as_jpeg(sample.image, quality)) for sample in scenes) <= 1
    assert looks_photographed(save_as_jpeg(images[1], quality))


def test_example_images_look_drawn(repo_root):
    files = sorted((repo_root / "examples" / "finetune" / "images").glob("*.jpg"))
    assert len(files) == 20
    assert not any(looks_photographed(np.asarray(Image.open(file).convert("RGB"))) for file in files)


def test_an_image_is_measured_once_and_anew_when_its_pixels_change(images, monkeypatch):
    measured = []
    monkeypatch.setattr(split_by_image, "_decided", {})
    monkeypatch.setattr(split_by_image, "_decide", lambda pixels: bool(measured.append(pixels)))
    frame = images[0].copy()
    for _ in range(3):
        looks_photographed(frame)
    assert len(measured) == 1
    frame[0, 0, 0] ^= 1  # a video's buffer: the same array, another image
    looks_photographed(frame)
    assert len(measured) == 2


def test_each_image_is_looked_at_by_one_of_the_two(images):
    both = build_verbalizer(
        "detection", "by_image", drawing={"backend": "named"}, photograph={"backend": "named", "name": "face"}
    )
    assert [found.class_names for found in both.predict([images[1], images[0], images[1]])] == [
        ("face",),
        ("thing",),
        ("face",),
    ]
    graph = build_verbalizer("scene_graph", "by_image", drawing=None, photograph={"backend": "geometric"})
    assert set(graph.uses) == {"segmentation", "detection", "depth"}
    scenes = parse_scene(images, [graph, both])
    assert all(isinstance(scene.relations, Relations) and not scene.failures for scene in scenes)


def test_nothing_is_found_where_nobody_looks(images):
    half = build_verbalizer("detection", "by_image", drawing=None, photograph={"backend": "named"})
    assert [len(found) for found in half.predict(images)] == [0, 1]
    for kind, structure in (("segmentation", Segments), ("scene_graph", Relations)):
        from verbalizers.backends.split_by_image import _NOTHING

        assert isinstance(_NOTHING[kind]((4, 6)), structure)


def test_fingerprint_changes_with_either_part(tmp_path):
    (tmp_path / "config.json").write_text("1")
    settings = {"drawing": {"backend": "named"}, "photograph": {"backend": "named", "checkpoint": str(tmp_path)}}
    first = build_verbalizer("detection", "by_image", **settings).fingerprint()
    assert first == build_verbalizer("detection", "by_image", **settings).fingerprint()
    (tmp_path / "config.json").write_text("2")
    assert first != build_verbalizer("detection", "by_image", **settings).fingerprint()


@pytest.mark.parametrize(
    "settings",
    [
        {"drawing": None, "photograph": None},
        {"drawing": {}, "photograph": None},
        {"drawing": {"backend": "by_image"}, "photograph": None},
    ],
)
def test_settings_without_a_backend_are_refused(settings):
    with pytest.raises(ValueError, match="by_image expected"):
        build_verbalizer("detection", "by_image", **settings)


def test_paths_of_both_travel_with_a_checkpoint(tmp_path):
    (tmp_path / "eyes").mkdir()
    (tmp_path / "model").mkdir()
    entry = {
        "kind": "detection",
        "backend": "by_image",
        "settings": {"drawing": {"backend": "named", "checkpoint": "../eyes"}, "photograph": None},
    }
    (tmp_path / "model" / "verbalizers.json").write_text(json.dumps({"verbalizers": [entry]}))
    read = VerbalizerSettings.load(tmp_path / "model")
    (built,), absent = read.build()
    assert built._parts["drawing"].checkpoint == str(tmp_path / "eyes") and not absent
    read.with_verbalizers([built]).save(tmp_path / "model")
    written = json.loads((tmp_path / "model" / "verbalizers.json").read_text())["verbalizers"][0]
    assert written["settings"]["drawing"]["checkpoint"] == "../eyes"
    (tmp_path / "eyes").rmdir()
    assert "does not exist" in VerbalizerSettings.load(tmp_path / "model").build()[1]["detection"]
