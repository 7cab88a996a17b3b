"""The ultralytics door on its real classes: narrow models built from its YAML files, random weights, no download."""

import copy
import os

import numpy as np
import pytest
import torch
from verbalizer_builders import save_clip_text

from verbalizers import build_verbalizer

pytest.importorskip("ultralytics", reason="needs the extra `detection` (AGPL-3.0)")

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module", autouse=True)
def _ultralytics_settings_elsewhere(tmp_path_factory):
    """ultralytics writes a settings file when it is imported: not into the home of whoever runs the tests."""
    os.environ.setdefault("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
    from verbalizers.backends.detection_ultralytics import import_ultralytics

    import_ultralytics()


def narrow(yaml_name, num_classes=3):
    """The published architecture with its channels divided by sixteen."""
    from ultralytics.nn.tasks import yaml_model_load

    config = copy.deepcopy(yaml_model_load(yaml_name))
    config["nc"] = num_classes
    config["scales"] = {"n": [0.33, 1 / 16, 256]}
    return config


def save_yolo(path, model, names=COLOURS, task="detect"):
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():  # as born, a YOLO finds nothing: make it sure of many things
        if ".cv3." in name and name.endswith("bias") and parameter.shape[0] == len(names):
            torch.nn.init.normal_(parameter, std=1.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
        if type(module).__name__.endswith("ContrastiveHead"):
            torch.nn.init.zeros_(module.bias)
    model.names = dict(enumerate(names))
    model.args = {"task": task, "imgsz": 64}
    model.task = task
    torch.save({"model": model, "train_args": {"task": task, "imgsz": 64}, "epoch": -1}, path)
    return path


@pytest.fixture(scope="module")
def yolo(tmp_path_factory):
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    return save_yolo(
        tmp_path_factory.mktemp("yolo") / "narrow.pt", DetectionModel(narrow("yolov8n.yaml"), verbose=False)
    )


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((48, 60, 3), (64, 40, 3), (48, 60, 3))]


def build(path, **settings):
    loose = {"threshold": 0.0, "device": "cpu", "image_size": 64, "max_detections": 20}
    return build_verbalizer("detection", "ultralytics", checkpoint=path, **{**loose, **settings})


@pytest.mark.parametrize("yaml_name", ["yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml", "yolov10n.yaml"])
def test_yolo_equals_ultralytics_when_run_by_itself(tmp_path, images, yaml_name):
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    path = save_yolo(tmp_path / "narrow.pt", DetectionModel(narrow(yaml_name), verbose=False))
    found = build(path, threshold=0.01).predict(images[:1])[0]
    theirs = YOLO(str(path)).predict(
        images[0][..., ::-1], imgsz=64, conf=0.01, iou=0.7, max_det=20, verbose=False, save=False
    )[0]
    assert len(found) == len(theirs.boxes) > 0
    np.testing.assert_allclose(found.confidence, theirs.boxes.conf.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy, theirs.boxes.xyxy.numpy(), atol=1e-2)
    assert list(found.class_names) == [COLOURS[int(index)] for index in theirs.boxes.cls]


def test_yolo_batch_equals_singles_when_sizes_differ(yolo, images):
    detector = build(yolo)
    for batched, image in zip(detector.predict(images), images, strict=True):
        single = detector.predict([image])[0]
        assert batched.class_names == single.class_names
        assert batched.image_size_hw == image.shape[:2]
        np.testing.assert_allclose(batched.boxes_xyxy, single.boxes_xyxy, atol=1e-2)


def test_yolo_chooses_among_its_names_when_given_a_vocabulary(yolo, images):
    everything = build(yolo).predict(images[:1])[0]
    assert len(set(everything.class_names)) > 1
    one = everything.class_names[0]
    assert set(build(yolo, vocabulary=(one,)).predict(images[:1])[0].class_names) == {one}
    others = build(yolo, covered_by=(one.upper() + "s",)).predict(images[:1])[0]
    assert one not in others.class_names
    assert len(others) > 0
    with pytest.raises(ValueError, match="teapot"):
        build(yolo, vocabulary=("teapot",)).predict(images[:1])


def test_yolo_runs_in_half_precision_when_asked(yolo, images):
    full, half = (build(yolo, dtype=dtype).predict(images[:1])[0] for dtype in ("float32", "float16"))
    np.testing.assert_allclose(half.confidence[:5], full.confidence[:5], atol=0.02)


def test_segmenting_yolo_gives_boxes_when_loaded(tmp_path, images):
    from ultralytics.nn.tasks import SegmentationModel

    torch.manual_seed(0)
    model = SegmentationModel(narrow("yolov8n-seg.yaml"), verbose=False)
    found = build(save_yolo(tmp_path / "seg.pt", model, task="segment")).predict(images)
    assert all(len(detections) > 0 for detections in found)
    assert {name for detections in found for name in detections.class_names} <= set(COLOURS)


class Evil:
    """Pickles itself as a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_load_refuses_when_a_checkpoint_would_run_code(tmp_path):
    torch.save({"model": Evil(tmp_path / "was_here"), "train_args": {}}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="refused"):
        build(tmp_path / "evil.pt").load()
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("name", ["yolov5s.pt", "it's mine.pt", "yolo11n.pt"])
def test_load_reads_the_file_that_is_named_when_ultralytics_knows_another(yolo, tmp_path, monkeypatch, name):
    """ultralytics takes yolov5s.pt for yolov5su.pt, drops quotes, and downloads what it then misses."""
    import shutil

    from ultralytics.utils import downloads

    monkeypatch.setattr(downloads, "safe_download", lambda *a, **k: pytest.fail("something was downloaded"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(yolo, tmp_path / name)
    assert build(name).load().names == dict(enumerate(COLOURS))


def test_load_refuses_when_file_is_no_local_yolo(tmp_path, monkeypatch):
    from ultralytics.utils import downloads

    def fail(*args, **kwargs):
        raise AssertionError("something was downloaded")

    monkeypatch.setattr(downloads, "safe_download", fail)
    with pytest.raises(ValueError, match="Nothing is downloaded"):
        build("yolov8s-worldv2.pt").load()
    (tmp_path / "noise.pt").write_bytes(b"no zip archive")
    with pytest.raises(ValueError, match="refused"):
        build(tmp_path / "noise.pt").load()
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "linear.pt")
    with pytest.raises(ValueError, match="expected a detecting"):
        build(tmp_path / "linear.pt").load()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip_text(tmp_path_factory.mktemp("clip"), projection_dim=512)  # YOLO-World's width


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from ultralytics.nn.tasks import WorldModel

    torch.manual_seed(0)
    config = narrow("yolov8n-worldv2.yaml", num_classes=80)
    names = tuple(f"thing {index}" for index in range(80))
    return save_yolo(tmp_path_factory.mktemp("world") / "world.pt", WorldModel(config, verbose=False), names)


def test_world_finds_new_words_when_given_clip(world, clip, images, tmp_path):
    words = ("teapot", "red fox", "lamp")
    detector = build(world, vocabulary=words, text_checkpoint=str(clip), cache_dir=str(tmp_path))
    found = detector.predict(images)
    assert {name for detections in found for name in detections.class_names} <= set(words)
    assert all(len(detections) for detections in found)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    # The order of the words is no information: the same boxes come with the same names.
    turned = build(world, vocabulary=words[::-1], text_checkpoint=str(clip)).predict(images[:1])[0]
    np.testing.assert_allclose(np.sort(turned.confidence), np.sort(found[0].confidence), atol=1e-5)
    assert sorted(turned.class_names) == sorted(found[0].class_names)


def test_world_equals_ultralytics_when_given_the_same_embeddings(world, clip, images):
    from ultralytics import YOLOWorld

    from verbalizers.backends.detection_ultralytics import encode_with_clip

    words = ("teapot", "red fox")
    theirs = YOLOWorld(str(world))
    theirs.model.txt_feats = encode_with_clip(str(clip), words)[None]
    theirs.model.model[-1].nc, theirs.model.names = len(words), list(words)
    expected = theirs.predict(images[0][..., ::-1], imgsz=64, conf=0.01, max_det=20, verbose=False, save=False)[0]
    found = build(world, vocabulary=words, text_checkpoint=str(clip), threshold=0.01).predict(images[:1])[0]
    assert len(found) == len(expected.boxes) > 0
    np.testing.assert_allclose(found.confidence, expected.boxes.conf.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes.xyxy.numpy(), atol=1e-2)


def test_world_keeps_its_names_when_no_words_are_given(world, images):
    assert all(name.startswith("thing") for name in build(world).predict(images[:1])[0].class_names)


def test_world_says_what_is_missing_when_words_have_no_text_model(world, images, tmp_path):
    with pytest.raises(ValueError, match="text_checkpoint"):
        build(world, vocabulary=("teapot",)).predict(images[:1])
    with pytest.raises(ValueError, match="save_pretrained"):
        build(world, vocabulary=("teapot",), text_checkpoint=str(tmp_path / "nowhere")).predict(images[:1])


def test_yoloe_finds_words_when_given_prompt_embeddings(tmp_path, images, clip):
    from ultralytics.nn.tasks import YOLOEModel

    torch.manual_seed(0)
    path = save_yolo(tmp_path / "yoloe.pt", YOLOEModel(narrow("yoloe-v8n.yaml"), verbose=False))
    rows = np.random.default_rng(0).normal(size=(1, 3, 512)).astype(np.float32)
    np.savez(tmp_path / "words.npz", names=np.array(["teapot", "fox", "lamp"]), embeddings=rows, model=np.array("x"))
    found = build(path, text_embeddings=str(tmp_path / "words.npz")).predict(images[:1])[0]
    assert set(found.class_names) <= {"teapot", "fox", "lamp"} and len(found)
    fewer = build(path, text_embeddings=str(tmp_path / "words.npz"), vocabulary=("fox",)).predict(images[:1])[0]
    assert set(fewer.class_names) == {"fox"}
    with pytest.raises(ValueError, match="zebra"):
        build(path, text_embeddings=str(tmp_path / "words.npz"), vocabulary=("zebra",)).predict(images[:1])
    with pytest.raises(ValueError, match="TorchScript"):
        build(path, text_checkpoint=str(clip), vocabulary=("zebra",)).predict(images[:1])
    np.savez(tmp_path / "objects.npz", names=np.array([Evil(tmp_path / "x")]), embeddings=rows)
    with pytest.raises(ValueError, match="save_prompt_embeddings"):
        build(path, text_embeddings=str(tmp_path / "objects.npz")).predict(images[:1])
    assert not (tmp_path / "x").exists()


def test_yolo_refuses_words_when_it_reads_none(yolo, clip, images):
    with pytest.raises(ValueError, match="names of its own"):
        build(yolo, vocabulary=("teapot",), text_checkpoint=str(clip)).predict(images[:1])


def test_yolo_fingerprint_follows_content_when_file_moves(yolo, tmp_path):
    import shutil

    copied = shutil.copy(yolo, tmp_path / "copy.pt")
    assert build(copied).fingerprint() == build(yolo).fingerprint()
    assert build(copied, device="cuda", offload=True).fingerprint() == build(yolo).fingerprint()
    assert build(copied, image_size=128).fingerprint() != build(yolo).fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 2}, "threshold"),
        ({"nms_threshold": -1}, "nms_threshold"),
        ({"image_size": 8}, "image_size"),
        ({"text_checkpoint": "a", "text_embeddings": "b"}, "got both"),
    ],
)
def test_yolo_refuses_settings_when_wrong(yolo, settings, message):
    with pytest.raises(ValueError, match=message):
        build(yolo, **settings)
