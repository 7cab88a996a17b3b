"""Scores of verbalizers: perfect findings get everything, known mistakes cost what they should."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")

from benchmarks.verbalizer_scores import (  # noqa: E402
    BoxScore,
    NameCounts,
    PanopticScore,
    RelationCounts,
    RelationScore,
    TextScore,
    build_measured,
    count_names,
    count_relations,
    evaluate_verbalizers,
    main,
    names_table,
)
from moai.checkpoints.io.lookup import find_checkpoint  # noqa: E402
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings  # noqa: E402
from moai.scenes.scenes import Scenes  # noqa: E402
from moai.scenes.vocabulary import OBJECT_CLASSES  # noqa: E402
from verbalizers import Scene, WordSettings  # noqa: E402
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


def test_relation_score_counts_those_between_things_apart(samples):
    alone = RelationScore()
    for sample in samples:
        relations = sample.truth.relations
        names = relations.object_names
        kept = [row for row, index in enumerate(relations.object_indices) if names[index] not in OBJECT_CLASSES]
        grounds = Relations(
            names,
            relations.subject_indices[kept],
            relations.object_indices[kept],
            tuple(relations.predicates[row] for row in kept),
            relations.confidence[kept],
            relations.object_boxes_xyxy,
        )
        alone.update(sample, grounds)
    result = alone.compute()
    assert result["triplet_recall_at_20_between_things"] == 0 < result["relations_between_things"]
    missed = 1 - result["triplet_recall_at_20"]
    assert missed * result["relations"] == pytest.approx(result["relations_between_things"])


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


def test_evaluate_verbalizers_hands_findings_on_when_one_uses_them():
    class Graph(Verbalizer):
        kind, uses = "scene_graph", ("segmentation",)

        def predict(self, images):
            raise AssertionError("it reads no pixels")

        def predict_with(self, images, scenes):
            assert all(scene.segments is not None for scene in scenes)
            none = np.zeros(0, np.int64)
            return [Relations((), none, none, (), none.astype(np.float32)) for _ in scenes]

    kinds = [measured.kind for measured in evaluate_verbalizers([Graph(), TruthTeller()], 3, image_size=96)]
    assert kinds == ["segmentation", "scene_graph"]


def test_evaluate_verbalizers_names_the_kinds_when_one_has_no_score():
    class Depth(TruthTeller):
        kind = "depth"

    with pytest.raises(ValueError, match="scene_graph"):
        evaluate_verbalizers([Depth()], 1)


def test_measured_detector_looks_for_all_objects_when_built_from_a_checkpoint():
    settings = VerbalizerSettings.load(find_checkpoint("moai-nano"))
    (detector,) = build_measured(settings, ("detection",))
    assert len(detector.settings()["vocabulary"]) == len(OBJECT_CLASSES) and detector.settings()["threshold"] == 0.05
    assert {one.kind for one in build_measured(settings, ("ocr", "scene_graph"))} == {"ocr", "scene_graph"}


BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 40, 40]], np.float32)


def graph(*triplets, names=("cat", "dog", "road"), boxes=BOXES):
    subjects, predicates, objects = zip(*triplets, strict=True) if triplets else ((), (), ())
    return Relations(names, subjects, objects, predicates, np.ones(len(predicates)), boxes)


TRUTH = graph((0, "beside", 1), (0, "walking on", 2), (1, "holding", 0))


def count(truth, found):
    counts = RelationCounts()
    counts.update(truth, found)
    return {name: numbers for name, *numbers in counts.rows()}


def test_names_are_all_right_when_a_detector_calls_segments_otherwise_and_comes_first(samples):
    first, last = NameCounts(), NameCounts()
    for sample in samples:
        names = tuple("zebra" if n in OBJECT_CLASSES else n for n in sample.truth.segments.class_names)
        found = replace(
            sample.truth, segments=replace(sample.truth.segments, class_names=names), detections=all_boxes(sample)
        )
        first.update(sample.truth, found, WordSettings(detections_first=True))
        last.update(sample.truth, found, WordSettings())
    assert first.asked == first.right == first.told == last.right > 10 and first.names == first.counted
    assert last.told > first.told  # the zebras are told too


def test_names_are_counted_both_ways_when_a_segmenter_knows_the_scenes():
    stream = Scenes("test", image_size=96, num_questions=1, length=9)
    counts = count_names(stream, [TruthTeller()], WordSettings(detections_first=True))
    assert list(counts) == ["segment", "detection"] and counts["segment"] == counts["detection"]
    assert 0 < counts["segment"].right == counts["segment"].told < counts["segment"].asked  # no detector looked
    assert names_table(counts).splitlines()[2].split("|")[4].strip() == "1.000"


@pytest.mark.parametrize("words", [["--kind", "ocr"], ["--json", "x.json"], ["--relations"]])
def test_names_refuse_what_they_do_not_read(words, capsys):
    with pytest.raises(SystemExit):
        main(["--names", "--model", "moai-nano", *words])
    assert "--names" in capsys.readouterr().err


def test_thing_counts_once_when_it_is_named_twice(samples):
    counts, found = NameCounts(), all_boxes(samples[0])
    twice = Detections(
        np.concatenate([found.boxes_xyxy, found.boxes_xyxy]), found.class_names * 2,
        np.ones(2 * len(found), np.float32), found.image_size_hw,
    )  # fmt: skip
    counts.update(samples[0].truth, Scene((96, 96), detections=twice), WordSettings())
    assert (counts.right, counts.told, counts.counted) == (len(found), 2 * len(found), 0)


def test_truth_gets_everything_when_it_is_found():
    rows = count(TRUTH, TRUTH)
    assert rows["beside"] == [1, 1, 1, 1, 1] and rows["on"] == [1, 1, 1, 1, 1] and rows["all five"] == [2, 2, 2, 2, 2]


def test_beside_counts_in_both_directions_and_on_in_one():
    rows = count(TRUTH, graph((1, "beside", 0), (2, "on", 0)))
    assert rows["beside"] == [1, 1, 1, 1, 1] and rows["on"] == [1, 0, 1, 0, 1]


def test_pairs_that_the_truth_does_not_speak_about_are_neither_right_nor_wrong():
    assert count(TRUTH, graph((1, "on", 2)))["on"] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize("other", [{"boxes": BOXES + 15}, {"names": ("cow", "dog", "road")}])
def test_objects_are_others_when_boxes_or_names_differ(other):
    assert count(TRUTH, graph((0, "on", 2), **other))["on"] == [1, 0, 0, 0, 1]


def test_geometry_finds_most_of_what_it_can_show_when_masks_are_true(capsys):
    """Nine of ten, where guessing any predicate for any pair would find a few."""
    samples = list(Scenes("validation", num_questions=1, length=60))
    ((name, counts),) = count_relations(samples).items()
    *_, (_, asked, right, judged, agreed, _) = counts.rows()
    assert name == "scene_graph/geometric" and asked > 100
    assert right / asked > 0.85 and agreed / judged > 0.75
    main(["--relations", "--scenes", "2"])
    assert "| scene_graph/geometric | all five |" in capsys.readouterr().out


def test_geometry_is_lost_when_masks_belong_to_another_scene():
    samples = list(Scenes("validation", num_questions=1, length=20))
    for sample, other in zip(samples, reversed(samples[10:]), strict=False):
        truth = replace(sample.truth, segments=other.truth.segments, detections=other.truth.detections)
        object.__setattr__(sample, "truth", replace(truth, relations=sample.truth.relations))
    counts = count_relations(samples[:10])["scene_graph/geometric"]
    *_, (_, asked, right, *_) = counts.rows()
    assert right / asked < 0.2
