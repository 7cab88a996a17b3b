import time

import numpy as np
import pytest

from verbalizers import Detections, TextLines, Verbalizer, parse_scene
from verbalizers.core.adapters import boxes_to_quads
from verbalizers.core.profiling import TOGETHER, profile_scene

IMAGE = np.zeros((6, 8, 3), np.uint8)
LINE = TextLines(boxes_to_quads([[0, 0, 1, 1]]), ("STOP",), (1.0,))


class SlowReader(Verbalizer):
    kind = "ocr"
    backend = "slow"

    def __init__(self, load_s=0.2, look_s=0.1):
        self.load_s, self.look_s, self.is_loaded = load_s, look_s, False

    def predict(self, images):
        if not self.is_loaded:
            time.sleep(self.load_s)
            self.is_loaded = True
        time.sleep(self.look_s)
        return [LINE for _ in images]


class HungryDetector(Verbalizer):
    kind = "detection"
    backend = "hungry"

    def predict(self, images):
        ballast = np.ones(64 * 2**20, np.uint8)  # 64 MiB, touched
        return [Detections([[0, 0, 1, 1]], ("cat",), (float(ballast[5]),), image.shape[:2]) for image in images]


class Broken(Verbalizer):
    kind = "segmentation"
    backend = "broken"

    def predict(self, images):
        raise OSError("no lens")


def test_profile_tells_loading_from_looking_when_it_is_the_first():
    reader = SlowReader()
    _, (cost,) = profile_scene(IMAGE, [reader])
    assert 0.3 <= cost.first_seconds < 5
    assert 0.1 <= cost.seconds < cost.first_seconds
    _, (cost,) = profile_scene(IMAGE, [reader], is_first=False)
    assert cost.first_seconds is None and cost.seconds >= 0.1


def test_profile_charges_memory_to_the_one_that_needs_it():
    _, costs = profile_scene(IMAGE, [SlowReader(0, 0), HungryDetector()])
    peak = {cost.name: cost.peak_mib for cost in costs}
    assert list(peak) == ["ocr/slow", "detection/hungry", TOGETHER]
    assert 60 < peak["detection/hungry"] < 130
    assert peak["ocr/slow"] < 30


def test_profile_sees_that_verbalizers_overlap_when_side_by_side():
    other = SlowReader(0, 0.3)
    other.kind = "detection"
    other.predict = lambda images: time.sleep(0.3) or [None for _ in images]
    _, costs = profile_scene(IMAGE, [SlowReader(0, 0.3), other])
    assert costs[-1].seconds < 0.9 * (costs[0].seconds + costs[1].seconds)


def test_profile_finds_what_parse_scene_finds_when_one_fails():
    verbalizers = [SlowReader(0, 0), HungryDetector(), Broken()]
    scene, costs = profile_scene(IMAGE, verbalizers)
    assert scene == parse_scene([IMAGE], verbalizers)[0]
    assert [bool(cost.failure) for cost in costs] == [False, False, True, True]
    assert "no lens" in costs[2].failure
    nothing, costs = profile_scene(IMAGE, [])
    assert nothing == parse_scene([IMAGE], [])[0] and costs == []


@pytest.mark.gpu
def test_profile_reads_the_gpu_when_one_is_used():
    import torch

    class OnGpu(SlowReader):
        def predict(self, images):
            torch.ones(32 * 2**20, dtype=torch.uint8, device="cuda").sum().item()
            return super().predict(images)

    _, (cost,) = profile_scene(IMAGE, [OnGpu(0, 0)])
    assert cost.peak_gpu_mib >= 32
