"""Scores of verbalizers: perfect findings get everything, known mistakes cost what they should."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")

from moai.evaluation.verbalizers_benchmark import (  # noqa: E402
    BoxScore,
    PanopticScore,
    RelationScore,
    TextScore,
    evaluate_verbalizers,
)
from moai.scenes.scenes import Scenes  # noqa: E402
from moai.scenes.vocabulary import OBJECT_CLASSES  # noqa: E402
from verbalizers.core.structures import Detections, Relations, Segments, TextLines  # noqa: E402
from verbalizers.core.verbalizer import Verbalizer  # noqa: E402


@pytest.fixture(scope="module")
def samples():
    return list(Scenes("test", image_size=96, num_questions=1, num_objects=(3, 6), length=6))


def all_boxes(sample) -> Detections:
    relations = sample.truth.relations
    rows = [i for i, name in enumerate(relations.object_names) if name in OBJECT_CLASSES]
    names = tuple(relations.object_names[i] for i in rows)
    return Detections(relations.object_boxes_xyxy[rows], names, np.ones(len(rows), np.float32), sample.image_size_hw)


def test_panoptic_score_is_one_for_the_truth_and_falls_when_names_are_wrong(samples):
    perfect, wrong = PanopticScore(), PanopticScore()
    for sample in samples:
        segments = sample.truth.segments
        perfect.update(sample, segments)
        names = tuple("zebra" if name in OBJECT_CLASSES else name for name in segments.class_names)
        wrong.update(sample, Segments(segments.panoptic_map, segments.segment_ids, names, segments.confidence))
    assert perfect.compute()["pq"] == pytest.approx(1.0)
    result = wrong.compute()
    assert result["pq_stuff"] == pytest.approx(1.0) and result["pq_things"] < 0.2


def test_panoptic_score_is_zero_when_nothing_is_found(samples):
    score = PanopticScore()
    for sample in samples:
        score.update(sample, Segments(np.zeros((96, 96), np.int32), (), (), np.zeros(0, np.float32)))
    assert score.compute()["pq"] == 0


def test_box_score_tells_names_outside_the_panoptic_vocabulary_apart(samples):
    perfect, half = BoxScore(), BoxScore()
    for sample in samples:
        perfect.update(sample, all_boxes(sample))
        half.update(sample, sample.truth.detections)
    assert perfect.compute()["ap50"] == pytest.approx(1.0)
    result = half.compute()
    assert result["ap50_outside_panoptic"] == pytest.approx(1.0)
    assert result["ap50_inside_panoptic"] == 0 < result["ap50"] < 1


def test_relation_score_asks_for_boxes_predicate_and_names(samples):
    perfect, renamed, moved = RelationScore(), RelationScore(), RelationScore()
    for sample in samples:
        relations = sample.truth.relations
        perfect.update(sample, relations)
        renamed.update(sample, replace(relations, object_names=("zebra",) * len(relations.object_names)))
        moved.update(sample, replace(relations, object_boxes_xyxy=relations.object_boxes_xyxy * 0.01))
    assert perfect.compute()["triplet_recall_at_20"] == 1.0
    assert renamed.compute()["triplet_recall_at_20"] == 0 < renamed.compute()["predicate_recall_at_20"] == 1.0
    assert moved.compute()["predicate_recall_at_20"] == 0


def test_relation_score_looks_at_the_twenty_surest_only(samples):
    sample = next(s for s in samples if len(s.truth.relations))
    truth = sample.truth.relations
    noise = 20
    crowded = Relations(
        object_names=truth.object_names,
        subject_indices=np.concatenate([np.zeros(noise, np.int64), truth.subject_indices]),
        object_indices=np.concatenate([np.zeros(noise, np.int64), truth.object_indices]),
        predicates=("riding",) * noise + truth.predicates,
        confidence=np.concatenate([np.full(noise, 0.9), np.full(len(truth), 0.5)]).astype(np.float32),
        object_boxes_xyxy=truth.object_boxes_xyxy,
    )
    score = RelationScore()
    score.update(sample, crowded)
    assert score.compute()["triplet_recall_at_20"] == 0


def test_text_score_counts_a_line_as_right_when_every_letter_is(samples):
    sample = next(s for s in samples if len(s.truth.text_lines))
    lines = sample.truth.text_lines
    right, wrong = TextScore(), TextScore()
    right.update(sample, lines)
    wrong.update(sample, TextLines(lines.quads, tuple(t[:-1] + "#" for t in lines.texts), lines.confidence))
    assert right.compute()["exact_match"] == 1.0 and right.compute()["character_error_rate"] == 0
    assert wrong.compute()["exact_match"] == 0 < wrong.compute()["character_error_rate"] < 1


class TruthTeller(Verbalizer):
    """A segmenter that knows the scenes of the test stream."""

    kind = "segmentation"

    def __init__(self) -> None:
        self.scenes = iter(Scenes("test", image_size=96, num_questions=1))

    def predict(self, images):
        return [next(self.scenes).truth.segments for _ in images]


def test_evaluate_verbalizers_pairs_findings_with_their_scenes_over_several_batches():
    (measured,) = evaluate_verbalizers([TruthTeller()], 10, image_size=96)
    assert measured.num_scenes == 10 and measured.scores["pq"] == pytest.approx(1.0)


def test_evaluate_verbalizers_names_the_kinds_when_one_has_no_score():
    class Depth(TruthTeller):
        kind = "depth"

    with pytest.raises(ValueError, match="scene_graph"):
        evaluate_verbalizers([Depth()], 1)
