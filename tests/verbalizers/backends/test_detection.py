"""The OWLv2 door on the real transformers class, tiny and randomly initialised, loaded from disk."""

import numpy as np
import pytest
import torch
from verbalizer_builders import save_owlv2

from verbalizers import Detections, build_verbalizer
from verbalizers.backends.detection import select_detections
from verbalizers.core.boxes import is_inside_image

WORDS = ("cat", "traffic light", "dog", "teapot")


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    return save_owlv2(tmp_path_factory.mktemp("owlv2"))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((48, 60, 3), (64, 40, 3), (48, 60, 3))]


def build(folder, **settings):
    return build_verbalizer(
        "detection", checkpoint=folder, **{"vocabulary": WORDS, "threshold": 0.0, "device": "cpu", **settings}
    )


def test_detector_equals_transformers_when_run_by_hand(owlv2, images):
    """The stored text embeddings answer as the whole model does on image and words together."""
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    model, processor = Owlv2ForObjectDetection.from_pretrained(owlv2).eval(), Owlv2Processor.from_pretrained(owlv2)
    with torch.no_grad():
        outputs = model(**processor(text=[list(WORDS)], images=images[0], return_tensors="pt"))
    expected = processor.image_processor.post_process_object_detection(
        outputs, threshold=0.0, target_sizes=[images[0].shape[:2]]
    )[0]
    found = build(owlv2, nms_threshold=None, max_detections=1000).predict(images[:1])[0]
    # Some of a random model's boxes lie in the padding below the image, where there is nothing to find.
    is_inside = torch.from_numpy(is_inside_image(expected["boxes"].numpy(), images[0].shape[:2]))
    assert 0 < is_inside.sum() < len(is_inside)
    expected = {name: values[is_inside] for name, values in expected.items()}
    order = torch.argsort(expected["scores"], descending=True, stable=True)
    np.testing.assert_allclose(found.confidence, expected["scores"][order], atol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy, expected["boxes"][order], atol=1e-3)
    assert list(found.class_names) == [WORDS[label] for label in expected["labels"][order]]


@pytest.mark.parametrize("size", [(48, 60), (300, 200), (97, 97), (400, 10)])
def test_detector_sees_the_same_pixels_as_transformers_when_an_image_is_shrunk(owlv2, size):
    from transformers import Owlv2Processor

    theirs = Owlv2Processor.from_pretrained(owlv2).image_processor
    ours = build(owlv2).load().processor.image_processor
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
    expected, found = (p(images=images, return_tensors="pt").pixel_values for p in (theirs, ours))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert max(size) > theirs.size["height"]


def test_detector_batch_equals_singles_when_sizes_differ(owlv2, images):
    detector = build(owlv2)
    for batched, image in zip(detector.predict(images), images, strict=True):
        single = detector.predict([image])[0]
        assert batched.class_names == single.class_names
        assert batched.image_size_hw == image.shape[:2]
        np.testing.assert_allclose(batched.boxes_xyxy, single.boxes_xyxy, atol=1e-3)


def test_detector_pads_no_huge_square_when_an_image_is_extremely_wide(owlv2, monkeypatch):
    detector = build(owlv2, threshold=0.0)
    processor = detector.load().processor.image_processor
    seen = []
    preprocess = type(processor).preprocess

    def watch(self, images, *rest, **settings):
        seen.extend(max(np.asarray(image).shape) for image in images)
        return preprocess(self, images, *rest, **settings)

    monkeypatch.setattr(type(processor), "preprocess", watch)
    monkeypatch.setattr("verbalizers.backends.detection._LONGEST_SIDE", 64)
    (found,) = detector.predict([np.zeros((8, 200, 3), np.uint8)])
    assert seen == [64] and found.image_size_hw == (8, 200)


def count_text_passes(detector):
    calls = []
    detector.load().model.owlv2.text_model.register_forward_hook(lambda *args: calls.append(1))
    return calls


def test_detector_encodes_words_once_when_images_keep_coming(owlv2, images):
    detector = build(owlv2)
    calls = count_text_passes(detector)
    for _ in range(3):
        detector.predict(images)
    assert len(calls) == 1
    detector.vocabulary = ("cat", "zebra")
    detector.predict(images[:1])
    assert len(calls) == 2


def test_detector_reads_embeddings_from_disk_when_cached(owlv2, images, tmp_path):
    first = build(owlv2, cache_dir=str(tmp_path / "cache"))
    expected = first.predict(images[:1])[0]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]
    second = build(owlv2, cache_dir=str(tmp_path / "cache"))
    calls = count_text_passes(second)
    assert second.predict(images[:1])[0] == expected
    assert not calls
    other = build(owlv2, cache_dir=str(tmp_path / "cache"), vocabulary=("cat", "zebra"))
    other.predict(images[:1])
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_detector_reads_vocabulary_file_when_given_a_path(owlv2, tmp_path):
    (tmp_path / "names.txt").write_text("# mine\ncat\n\ntraffic light\ncat\n", encoding="utf-8")
    assert build(owlv2, vocabulary=tmp_path / "names.txt").vocabulary == ("cat", "traffic light")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary": ()}, "vocabulary"),
        ({"template": "a photo"}, "template"),
        ({"threshold": 2}, "threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"colour": 1}, "no setting"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_detector_refuses_settings_when_wrong(owlv2, images, settings, message):
    with pytest.raises(ValueError, match=message):
        build(owlv2, **settings).predict(images[:1])


def test_select_detections_keeps_surest_when_boxes_repeat():
    boxes = [[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]
    found = Detections(boxes, ("cat", "cat", "dog", "cat"), (0.6, 0.9, 0.8, 0.4), (100, 100))
    kept = select_detections(found, threshold=0.5, nms_threshold=0.7)
    assert kept.class_names == ("cat", "dog")
    assert kept.boxes_xyxy[0].tolist() == boxes[1]
    assert select_detections(found, 0.0, None, None).class_names == ("cat", "dog", "cat", "cat")
    assert len(select_detections(found, 0.0, None, 1)) == 1
