"""Edges: contrast where the colour changes, nothing where it does not."""

import numpy as np
import pytest

from verbalizers import Scene, available_verbalizers, build_verbalizer, parse_scene, verbalize_scene


def find(image, **settings):
    return build_verbalizer("edge", **settings).predict([image])[0].values


def half(left, right, height=20, width=40):
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = left, right
    return image


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_edge_is_the_contrast_of_a_step_when_the_step_is_straight(sigma):
    for left, right, contrast in ((0, 255, 255), (255, 0, 255), (100, 150, 50), ((0, 9, 200), (0, 9, 80), 120)):
        for image in (half(left, right), half(left, right).transpose(1, 0, 2)):
            values = find(image, sigma=sigma)
            assert values.dtype == np.uint8 and values.shape == image.shape[:2]
            assert contrast * 0.85 <= values.max() <= contrast
            line = values if image.shape[0] == 20 else values.T
            assert set(np.argwhere(line == values.max())[:, 1]) <= {19, 20} and not line[:, :8].any()
    assert not find(half(77, 77)).any()


def test_edge_looks_at_a_smaller_image_when_it_is_larger_than_max_side():
    image = half(0, 255, 300, 90)
    assert find(image, max_side=100).shape == (100, 30)
    assert find(image[:1]).shape == (1, 90) and find(image[:, :1]).shape == (300, 1)
    for wrong in ({"sigma": 0}, {"max_side": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            build_verbalizer("edge", **wrong)


def test_edge_is_a_map_without_words_when_it_goes_through_a_scene():
    scene = parse_scene([half(0, 255), half(9, 9, 7, 9)], [build_verbalizer("edge")])
    assert [s.findings["edge"].values.shape for s in scene] == [(20, 40), (7, 9)] and not scene[0].failures
    assert verbalize_scene(scene[0]) == "" and Scene.from_dict(scene[0].to_dict()) == scene[0]
    assert available_verbalizers()["edge"] == ("gradient",)
