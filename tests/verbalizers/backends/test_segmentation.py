"""The segmentation door on real transformers classes, tiny and randomly initialised, loaded from disk."""

import numpy as np
import pytest
import torch
from verbalizer_builders import NAMES, save_mask2former, save_maskformer, save_oneformer

from verbalizers import Segments, build_verbalizer, pascal_colors, render_segmentation_map, verbalize_segments


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask2former")
    save_mask2former(folder)
    return folder


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((48, 60, 3), (64, 40, 3), (48, 60, 3))]


def build(folder, **settings):
    # Random weights are unsure of everything: low thresholds make them speak.
    loose = {"threshold": 0.0, "mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0, "device": "cpu"}
    return build_verbalizer("segmentation", checkpoint=folder, **{**loose, **settings})


def test_segmenter_names_segments_when_loaded_from_folder(mask2former, images):
    found = build(mask2former).predict(images)
    assert [segments.image_size_hw for segments in found] == [image.shape[:2] for image in images]
    assert sum(len(segments) for segments in found) > 0
    assert {name for segments in found for name in segments.class_names} <= set(NAMES.values())
    assert all((segments.pixel_counts > 0).all() for segments in found)


@pytest.mark.parametrize("thresholds", [(0.0, 0.0, 0.0), (0.0, 0.05, 0.3), (0.1, 0.0, 0.1), (1, 0, 0)])
def test_segmenter_equals_transformers_when_run_by_hand(mask2former, images, thresholds):
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    model = Mask2FormerForUniversalSegmentation.from_pretrained(mask2former).eval()
    processor = Mask2FormerImageProcessor.from_pretrained(mask2former)
    names = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
    settings = dict(zip(names, thresholds, strict=True))
    segmenter, num_segments = build(mask2former, **settings), 0
    for image in images:
        with torch.no_grad():
            outputs = model(**processor(images=[image], return_tensors="pt"))
        expected = processor.post_process_panoptic_segmentation(
            outputs, **settings, label_ids_to_fuse=set(), target_sizes=[image.shape[:2]]
        )[0]
        found = segmenter.predict([image])[0]
        np.testing.assert_array_equal(found.panoptic_map, expected["segmentation"].numpy())
        assert list(found.segment_ids) == [e["id"] for e in expected["segments_info"]]
        assert list(found.class_names) == [NAMES[e["label_id"]] for e in expected["segments_info"]]
        np.testing.assert_array_equal(found.confidence, np.float32([e["score"] for e in expected["segments_info"]]))
        num_segments += len(found)
    assert num_segments or thresholds[0] > 0


def test_segmenter_batch_equals_singles_when_sizes_differ(mask2former, images):
    segmenter = build(mask2former)
    singles = [segmenter.predict([image])[0] for image in images]
    for batched, single in zip(segmenter.predict(images), singles, strict=True):
        assert batched.class_names == single.class_names
        assert (batched.panoptic_map == single.panoptic_map).mean() > 0.999
        np.testing.assert_allclose(batched.confidence, single.confidence, atol=1e-5)


@pytest.mark.parametrize("save", [save_maskformer, save_oneformer])
def test_segmenter_runs_other_architectures_when_checkpoint_says_so(tmp_path, images, save):
    save(tmp_path)
    found = build(tmp_path).predict(images)
    assert all(isinstance(segments, Segments) for segments in found)
    assert [segments.image_size_hw for segments in found] == [image.shape[:2] for image in images]
    assert sum(len(segments) for segments in found) > 0
    assert {name for segments in found for name in segments.class_names} <= set(NAMES.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_segmenter_agrees_with_itself_when_in_half_precision(mask2former, images, dtype):
    """On the CPU, where transformers' classes run in both; the thresholds are compared in float32."""
    half = build(mask2former, dtype=dtype)
    full = build(mask2former).predict(images[:1])[0]
    found = half.predict(images[:1])[0]
    assert str(half.load().model.dtype) == f"torch.{dtype}"
    assert found.confidence.dtype == np.float32
    shared = np.isin(found.class_names, full.class_names)
    assert shared.all()
    assert abs(len(found) - len(full)) <= max(2, len(full) // 2)


def test_segmenter_loads_with_its_threshold_fields_when_built_by_settings(mask2former, images):
    """Every threshold is a setting that reaches the post-processing: each alone changes what is found."""
    everything = build(mask2former).predict(images[:1])[0]
    for strict in ({"threshold": 0.9}, {"mask_threshold": 0.999}, {"overlap_mask_area_threshold": 1.0}):
        segmenter = build(mask2former, **strict)
        assert strict.items() <= segmenter.settings().items()
        found = segmenter.predict(images[:1])[0]
        assert found.pixel_counts.sum() < everything.pixel_counts.sum()


def test_segmenter_finds_less_when_threshold_rises(mask2former, images):
    everything = build(mask2former).predict(images[:1])[0]
    nothing = build(mask2former, threshold=1.0).predict(images[:1])[0]
    assert len(everything) > len(nothing) == 0
    assert verbalize_segments(nothing) == ""


def test_segmenter_fuses_names_when_asked(mask2former, images):
    plain = build(mask2former).predict(images[:1])[0]
    repeated = next(name for name in plain.class_names if plain.class_names.count(name) > 1)
    spoken = repeated.split("-")[0]
    fused = build(mask2former, fused_names=[spoken]).predict(images[:1])[0]
    assert fused.class_names.count(repeated) == 1
    expected = sum(n for n, name in zip(plain.pixel_counts, plain.class_names, strict=True) if name == repeated)
    assert fused.pixel_counts[fused.class_names.index(repeated)] == expected


def test_segmenter_says_what_to_do_when_checkpoint_is_missing(tmp_path):
    with pytest.raises(ValueError, match="save_pretrained"):
        build(tmp_path / "nowhere").predict([np.zeros((8, 8, 3), np.uint8)])


def test_segmenter_fingerprint_follows_content_when_folder_moves(mask2former, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(mask2former, copy)
    assert build(copy).fingerprint() == build(mask2former).fingerprint()
    assert build(copy, batch_size=3).fingerprint() == build(mask2former).fingerprint()
    assert build(copy, threshold=0.1).fingerprint() != build(mask2former).fingerprint()
    save_maskformer(copy)
    assert build(copy).fingerprint() != build(mask2former).fingerprint()


def test_pascal_colors_equal_the_published_table_when_small():
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert pascal_colors(np.arange(7)).tolist() == expected
    many = pascal_colors(np.arange(70_000))
    assert len(np.unique(many, axis=0)) == 70_000


def test_render_segmentation_map_samples_nearest_when_resized():
    panoptic_map = np.zeros((4, 6), dtype=np.int32)
    panoptic_map[:2, :3] = 1
    segments = Segments(panoptic_map, (1,), ("cat",), (1.0,))
    painted = render_segmentation_map(segments, (8, 12))
    assert painted.shape == (8, 12, 3)
    assert (painted[:4, :6] == [128, 0, 0]).all()
    assert painted[4:].sum() == painted[:, 6:].sum() == 0


def test_render_segmentation_map_is_black_when_nothing_is_known():
    assert render_segmentation_map(None, (3, 5)).tolist() == np.zeros((3, 5, 3)).tolist()
    with pytest.raises(ValueError, match="image_size_hw"):
        render_segmentation_map(None)
