"""Normals: exact where depth is exact, from scenes, from depth models and from models of normals."""

import math

import numpy as np
import pytest

from verbalizers import LabelMap, Scene, available_verbalizers, build_verbalizer, draw_scene, parse_scene
from verbalizers.backends.normal import GeometricNormals, normals_from_inverse_depth

SIZE = (60, 80)


def rays(field_of_view):
    """Each pixel's ray at distance 1 along the axis: x to the right, y up, z towards the camera."""
    height, width = SIZE
    focal = width / 2 / math.tan(math.radians(field_of_view) / 2)
    y, x = np.mgrid[:height, :width].astype(float)
    x, y = (x - (width - 1) / 2) / focal, -(y - (height - 1) / 2) / focal
    return np.stack([x, y, -np.ones(SIZE)], axis=2)


@pytest.mark.parametrize("field_of_view", [40, 90])
@pytest.mark.parametrize("normal", [(0, 0, 1), (0, 0.8, 0.6), (-0.6, 0, 0.8), (0.48, -0.6, 0.64)])
def test_normals_of_a_plane_are_exact_when_depth_is(normal, field_of_view):
    normal = np.array(normal, float)
    along = rays(field_of_view) @ normal  # distance along the axis = c / along
    inverse_depth = along / -1.0
    inverse_depth = inverse_depth / inverse_depth.max()
    found = normals_from_inverse_depth(np.where(inverse_depth > 0, inverse_depth, np.nan), field_of_view)
    is_seen = np.isfinite(found).all(axis=2)
    assert is_seen.mean() > 0.5
    np.testing.assert_allclose(found[is_seen], np.broadcast_to(normal, found.shape)[is_seen], atol=1e-9)


def test_normals_of_a_sphere_point_away_from_its_centre_when_depth_is_exact():
    directions = rays(60)
    centre, radius = np.array([0.2, -0.1, -4.0]), 1.5
    b = directions @ centre
    a = (directions**2).sum(axis=2)
    root = b**2 - a * (centre @ centre - radius**2)
    is_hit = root > 0.3
    distance = (b - np.sqrt(np.maximum(root, 0))) / a
    truth = (directions * distance[..., None] - centre) / radius
    found = normals_from_inverse_depth(1 / np.where(root > 0, distance, 9), 60)
    inner = is_hit[1:-1, 1:-1] & is_hit[:-2, 1:-1] & is_hit[2:, 1:-1] & is_hit[1:-1, :-2] & is_hit[1:-1, 2:]
    cosines = (found * truth).sum(axis=2)[1:-1, 1:-1][inner]
    assert inner.sum() > 300 and cosines.min() > 0.99


def test_geometric_normals_read_depth_when_it_is_in_the_scene():
    ramp = LabelMap(np.repeat(np.linspace(0, 65535, 60).astype(np.uint16)[:, None], 80, axis=1))
    scene = Scene(SIZE, findings={"depth": ramp})
    image = np.zeros((*SIZE, 3), np.uint8)
    found = parse_scene([image], [build_verbalizer("normal")], known=[scene])[0].findings["normal"]
    assert found.values.shape == (*SIZE, 3) and found.values.dtype == np.uint8
    middle = found.read_shares(3)[30, 40] * 2 - 1
    assert middle[1] > 0.7 and middle[2] > 0.1 and abs(middle[0]) < 0.01  # a floor faces up
    flat = Scene(SIZE, findings={"depth": LabelMap(np.full((4, 4), 9, np.uint8))})
    facing = GeometricNormals().predict_with([image], [flat])[0].values
    assert (facing == [128, 128, 255]).all()
    one = Scene(SIZE, findings={"depth": LabelMap(np.zeros((1, 1), np.uint8))})
    assert GeometricNormals().predict_with([image], [one])[0].values.shape == (1, 1, 3)
    draw_scene(Scene(SIZE, findings={"depth": ramp, "normal": found}), image)


def test_geometric_normals_fail_by_name_when_there_is_no_depth():
    image = np.zeros((*SIZE, 3), np.uint8)
    scene = parse_scene([image], [build_verbalizer("normal")])[0]
    assert "depth verbalizer" in scene.failures["normal"]
    broken = build_verbalizer("depth", checkpoint="/nowhere/at/all")
    scene = parse_scene([image], [build_verbalizer("normal"), broken])[0]
    assert "nowhere" in scene.failures["normal"]
    for wrong in ({"field_of_view": 0}, {"field_of_view": 180}, {"depth_range": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            build_verbalizer("normal", **wrong)
    assert available_verbalizers()["normal"] == ("geometric", "transformers")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A model of depth in metres and one of normals, with few random weights."""
    torch = pytest.importorskip("torch")
    from transformers import (
        GLPNConfig,
        GLPNForDepthEstimation,
        GLPNImageProcessor,
        Tipsv2DptConfig,
        Tipsv2DptForNormalEstimation,
        Tipsv2DptImageProcessor,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("normal")
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
    backbone = {
        "model_type": "tipsv2_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 56,
        "patch_size": 14,
        "out_indices": [1, 2, 3, 4],
        "apply_layernorm": True,
        "reshape_hidden_states": False,
    }
    config = Tipsv2DptConfig(backbone_config=backbone, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8)
    Tipsv2DptForNormalEstimation(config).save_pretrained(folder / "normals")
    Tipsv2DptImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder / "normals")
    return folder


@pytest.mark.parametrize("name", ["glpn", "normals"])
def test_normals_are_alike_alone_and_in_a_batch_when_a_checkpoint_is_named(checkpoints, name):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in [(64, 96), (64, 96), (64, 32)]]
    verbalizer = build_verbalizer("normal", "transformers", checkpoint=checkpoints / name, device="cpu")
    together = verbalizer.predict(images)
    for image, found in zip(images, together, strict=True):
        alone = verbalizer.predict([image])[0].values.astype(int)
        assert np.abs(alone - found.values).max() <= 1
        assert all(side <= limit for side, limit in zip(found.values.shape, image.shape, strict=True))
        vectors = found.read_shares(3) * 2 - 1
        lengths = np.linalg.norm(vectors, axis=2)
        assert found.values.shape[2] == 3 and np.median(np.abs(lengths - 1)) < 0.02
    assert len({value for found in together for value in found.values.ravel().tolist()}) > 20
    scene = parse_scene(images[:1], [verbalizer])[0]
    assert scene.findings["normal"] == together[0]


def test_normals_of_a_depth_model_are_those_of_its_depth_when_it_tells_metres(checkpoints):
    image = np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    wide, narrow = (
        build_verbalizer("normal", "transformers", checkpoint=checkpoints / "glpn", field_of_view=angle, device="cpu")
        .predict([image])[0]
        .read_shares(3)[..., 2]
        for angle in (120, 20)
    )
    assert wide.mean() > narrow.mean()  # the longer the lens, the steeper the same slope in the image
    checked = build_verbalizer("depth", checkpoint=checkpoints / "glpn", device="cpu")
    assert checked.predict([image])[0].values.shape == wide.shape
