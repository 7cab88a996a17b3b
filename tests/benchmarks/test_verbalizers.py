"""The verbalizers' benchmark runs and says what it measured; it asserts no time."""

import json

import numpy as np
import pytest

from benchmarks.verbalizer_models import NUM_NAMES, build_verbalizers, choose_names
from benchmarks.verbalizer_variants import measure_variants
from benchmarks.verbalizers import NUM_IMAGES, load_images, main, measure_throughput, to_markdown
from verbalizers import TextLines, Verbalizer


def test_images_are_equal_in_size_and_different_when_loaded():
    images = load_images()
    assert len(images) == NUM_IMAGES and len({image.shape for image in images}) == 1
    assert len({image.tobytes() for image in images}) == NUM_IMAGES


def test_names_are_as_many_as_the_release_asks_for():
    names, origin = choose_names()
    assert len(set(names)) == NUM_NAMES and origin


class Reader(Verbalizer):
    kind, backend = "ocr", "none"

    def __init__(self):
        self.batches = []

    def predict(self, images):
        self.batches.append(len(images))
        return [TextLines(np.zeros((0, 4, 2)), (), ()) for _ in images]


def test_throughput_alternates_batches_when_measured():
    import torch

    reader = Reader()
    table = measure_throughput([reader], [1, 8], 2, torch.device("cpu"))
    assert reader.batches == [1, 8, 8, 1, 1, 8]  # one round of warm-up, then there and back
    report = to_markdown("a machine", "A model.", [table])
    assert "| ocr/none |" in report and report.count("\n|") == 3


@pytest.mark.slow
def test_text_cache_is_measured_on_real_models_when_run(tmp_path):
    pytest.importorskip("timm")
    arguments = ["--random", "--only", "text-cache", "--rounds", "1", "--threads", "1"]
    main([*arguments, "--markdown", str(tmp_path / "out.md"), "--json", str(tmp_path / "out.json")])
    (table,) = json.loads((tmp_path / "out.json").read_text())["tables"]
    times = table["records"][0]["times_ms"]
    assert set(times) == {"in memory", "from disk", "computed anew"}
    assert times["computed anew"][0] > times["in memory"][0]  # 1,847 names more to encode
    assert "1,847 names" in (tmp_path / "out.md").read_text()


@pytest.mark.slow
def test_variants_find_the_same_as_their_references_when_measured(repo_root):
    import torch

    pytest.importorskip("timm")
    pytest.importorskip("rapidocr")
    built = build_verbalizers(repo_root / "checkpoints" / "verbalizers", ("cat", "car"), "cpu")
    table = measure_variants(built, load_images(), [2], 1, torch.device("cpu"))
    assert len(table["rows"]) == 5
    assert [row[-1] for row in table["rows"]][:4] == ["2 of 2"] * 4


def test_bundled_checkpoints_are_measured_when_no_folder_is_named(repo_root):
    pytest.importorskip("timm")
    built = build_verbalizers(repo_root / "checkpoints" / "verbalizers", ("cat",), "cpu")
    assert [verbalizer.kind for verbalizer in built][:3] == ["segmentation", "detection", "scene_graph"]
