import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from verbalizers import Detections, TextLines, Verbalizer, parse_scene, verbalize_scene
from verbalizers.core.adapters import boxes_to_quads

LINE = TextLines(boxes_to_quads([[0, 0, 1, 1]]), ("STOP",), (1.0,))


class Reader(Verbalizer):
    kind = "ocr"

    def predict(self, images):
        return [LINE for _ in images]


class Detector(Verbalizer):
    """Refuses black images."""

    kind = "detection"

    def __init__(self):
        self.calls = []

    def predict(self, images):
        self.calls.append(len(images))
        if any(image.max() == 0 for image in images):
            raise RuntimeError("too dark")
        return [Detections([[0, 0, 1, 1]], ("cat",), (1.0,), image.shape[:2]) for image in images]


class Hanging(Verbalizer):
    kind = "segmentation"

    def __init__(self):
        self.release = threading.Event()

    def predict(self, images):
        self.release.wait(60)
        return [None for _ in images]


def image(value, size_hw=(6, 8)):
    return np.full((*size_hw, 3), value, dtype=np.uint8)


def test_parse_scene_loses_only_the_bad_image_when_batch_raises():
    scenes = parse_scene([image(9), image(0), image(7, (3, 5))], [Detector(), Reader()])
    assert [scene.image_size_hw for scene in scenes] == [(6, 8), (6, 8), (3, 5)]
    assert [scene.detections is None for scene in scenes] == [False, True, False]
    assert [dict(scene.failures) for scene in scenes] == [{}, {"detection": "RuntimeError: too dark"}, {}]
    assert all(scene.text_lines == LINE for scene in scenes)
    assert verbalize_scene(scenes[1]) == 'The image includes text descriptions: "STOP".'


def test_parse_scene_runs_batches_when_nothing_fails():
    detector = Detector()
    parse_scene([image(1)] * 5, [detector])
    assert detector.calls == [5]


def test_parse_scene_abandons_verbalizer_when_it_hangs():
    hanging = Hanging()
    start = time.monotonic()
    scene = parse_scene([image(1)], [hanging, Reader()], timeout_s=0.2)[0]
    again = parse_scene([image(1)], [hanging, Reader()], timeout_s=5)[0]
    assert time.monotonic() - start < 5
    assert "0.2 s" in scene.failures["segmentation"]
    assert "still busy" in again.failures["segmentation"]
    assert scene.text_lines == again.text_lines == LINE
    hanging.release.set()
    for thread in threading.enumerate():
        if thread.name == "verbalizer-segmentation":
            thread.join(10)
    assert parse_scene([image(1)], [hanging], timeout_s=5)[0].failures == {}


def test_process_ends_when_a_verbalizer_hangs(repo_root):
    code = (
        "import numpy as np, threading, verbalizers as v\n"
        "class Hanging(v.Verbalizer):\n"
        "    kind = 'ocr'\n"
        "    def predict(self, images): threading.Event().wait()\n"
        "print(v.parse_scene([np.zeros((2, 2, 3), np.uint8)], [Hanging()], timeout_s=0.1)[0].failures)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, timeout=60, check=True
    )
    assert "no answer within 0.1 s" in done.stdout


def test_parse_scene_runs_side_by_side_when_several_verbalizers():
    """Each waits for the other to arrive: one after the other, both would fail."""
    barrier = threading.Barrier(2, timeout=20)

    class MeetingReader(Reader):
        def predict(self, images):
            barrier.wait()
            return super().predict(images)

    class MeetingDetector(Detector):
        def predict(self, images):
            barrier.wait()
            return super().predict(images)

    scene = parse_scene([image(3)], [MeetingReader(), MeetingDetector()])[0]
    assert scene.failures == {}


@pytest.mark.parametrize("answer", [[], [LINE, LINE], LINE, ["STOP"], None])
def test_parse_scene_names_the_verbalizer_when_its_answer_is_malformed(answer):
    class Odd(Reader):
        def predict(self, images):
            return answer

    scene = parse_scene([image(1)], [Odd()])[0]
    assert scene.text_lines is None
    assert scene.failures["ocr"].startswith("ValueError")


def test_parse_scene_warns_once_when_failure_repeats(caplog):
    class Broken(Reader):
        def predict(self, images):
            raise OSError("no lens")

    with caplog.at_level(logging.WARNING, logger="verbalizers"):
        for _ in range(3):
            parse_scene([image(1), image(2)], [Broken()])
    assert sum("no lens" in record.message for record in caplog.records) == 1


def test_parse_scene_accepts_pil_when_mode_is_unusual():
    modes = [Image.new(mode, (5, 4)) for mode in ("RGB", "RGBA", "L", "P", "CMYK", "1", "I;16")]
    scenes = parse_scene(modes, [Reader()])
    assert [scene.image_size_hw for scene in scenes] == [(4, 5)] * len(modes)


@pytest.mark.parametrize(
    "bad", ["cat.png", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_parse_scene_refuses_when_input_is_no_image(bad):
    with pytest.raises(ValueError, match="PIL image or a uint8"):
        parse_scene([bad], [Reader()])


def test_parse_scene_refuses_when_kinds_repeat_or_timeout_is_wrong():
    with pytest.raises(ValueError, match="one verbalizer per kind"):
        parse_scene([image(1)], [Reader(), Reader()])
    with pytest.raises(ValueError, match="timeout_s"):
        parse_scene([image(1)], [Reader()], timeout_s=0)
    assert parse_scene([], [Reader()]) == []
