"""Half precision of verbalizers: that the bundled ones are measured."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.verbalizer_dtypes import build_variant, list_checkpoints, measure_scene
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.scenes.scenes import Scenes
from verbalizers import build_verbalizer


def test_what_looks_at_drawings_is_measured() -> None:
    built, _ = VerbalizerSettings.load_pretrained(find_checkpoint("moai-nano")).build()
    variants = {
        one.kind: {variant: build_variant(one, variant) for variant in ("float32", "bfloat16")}
        for one in list_checkpoints(built)
    }
    row = measure_scene(np.asarray(Scenes("validation", image_size=64, num_questions=1)[0].image), variants)
    assert set(row) == {"segmentation", "detection", "scene_graph"}
    for measured in row.values():
        agreement, ratio = measured["bfloat16"]
        assert 0 <= agreement <= 1 and ratio > 0


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected verbalizers with checkpoints, got .*geometric"):
        list_checkpoints([build_verbalizer("scene_graph", "geometric")])
