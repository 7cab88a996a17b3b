"""Relations from geometry: what hand-made scenes show, and what must not change them."""

import json

import numpy as np
import pytest

from verbalizers import (
    Detections,
    LabelMap,
    Scene,
    Segments,
    Verbalizer,
    available_verbalizers,
    build_verbalizer,
    parse_scene,
    verbalize_scene,
)
from verbalizers.core.profiling import profile_scene
from verbalizers.core.verbalizer import add_sources, order_by_use

SIZE = (120, 160)
GRAPH = build_verbalizer("scene_graph", "geometric")


def paint(*things, size_hw=SIZE):
    """Segments from (name, x0, y0, x1, y1), later ones in front."""
    panoptic_map = np.zeros(size_hw, np.int32)
    for number, (_, x0, y0, x1, y1) in enumerate(things, 1):
        panoptic_map[y0:y1, x0:x1] = number
    names = tuple(name for name, *_ in things)
    return Segments(panoptic_map, tuple(range(1, len(things) + 1)), names, np.full(len(things), 0.9))


def boxes(*things, size_hw=SIZE):
    """Detections from (name, x0, y0, x1, y1)."""
    return Detections([box for _, *box in things], tuple(t[0] for t in things), np.full(len(things), 0.9), size_hw)


def told(segments=None, detections=None, nearness=None, graph=GRAPH):
    """The relations of a scene: {(subject, predicate, object): confidence}."""
    source = detections if segments is None else segments
    findings = {} if nearness is None else {"depth": LabelMap(nearness)}
    relations = graph.relate(Scene(source.image_size_hw, segments, detections, findings=findings))
    assert (np.diff(relations.confidence) <= 0).all()
    names = relations.object_names
    rows = zip(relations.subject_indices, relations.predicates, relations.object_indices, strict=True)
    return dict(zip([(names[s], p, names[o]) for s, p, o in rows], relations.confidence.tolist(), strict=True))


ROOM = [("wall", 0, 0, 160, 70), ("floor", 0, 70, 160, 120)]
MEADOW = [("sky-other-merged", 0, 0, 160, 60), ("grass-merged", 0, 60, 160, 120)]
TABLE, CUP = ("dining table", 40, 60, 120, 100), ("cup", 70, 45, 82, 66)
TREE, BIRD = ("tree", 60, 45, 100, 100), ("bird", 72, 20, 84, 28)
ANN, BOB = ("person", 40, 50, 56, 100), ("man", 64, 48, 82, 100)
BOX, BALL = ("box", 40, 60, 80, 100), ("ball", 50, 52, 66, 68)
CAR, DOG = ("car", 30, 50, 110, 90), ("dog", 60, 70, 80, 100)


@pytest.mark.parametrize("make", [lambda *t: {"segments": paint(*t)}, lambda *t: {"detections": boxes(*t)}])
@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ((TABLE, CUP), ("cup", "on", "dining table")),
        ((TREE, BIRD), ("bird", "over", "tree")),
        ((ANN, BOB), ("person", "beside", "man")),
        ((BOX, BALL), ("ball", "in", "box")),
        ((CAR, DOG), ("dog", "in front of", "car")),
    ],
)
def test_pairs_are_told_as_they_stand_when_masks_or_boxes_alone_are_known(make, things, expected):
    assert list(told(**make(*things))) == [expected]


RIDER, HORSE = ("person", 60, 30, 80, 84), ("horse", 44, 56, 104, 100)
SKATER, SKATEBOARD = ("person", 60, 30, 80, 96), ("skateboard", 50, 92, 92, 100)


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ((RIDER, HORSE), {("person", "riding", "horse")}),
        ((SKATER, SKATEBOARD), {("person", "riding", "skateboard")}),
        ((ANN, ("cell phone", 52, 66, 58, 72)), {("person", "holding", "cell phone")}),
        ((ANN, ("tie", 46, 60, 50, 76)), {("person", "wearing", "tie")}),
        ((ANN, ("hat", 42, 44, 54, 54)), {("person", "wearing", "hat")}),
        ((TABLE, CUP, ("person", 60, 30, 90, 99)), {("cup", "on", "dining table")}),  # not held
        ((("car", 30, 50, 110, 90), ("person", 60, 30, 76, 80)), set()),  # behind it, or in it
        ((("sign", 40, 50, 60, 100), ("bird", 44, 40, 56, 58)), set()),
        ((("basket", 40, 60, 80, 100), ("basket", 44, 50, 70, 80)), set()),
        ((("cow", 60, 62, 84, 76), ("ball", 66, 100, 80, 112)), set()),
    ],
)
def test_names_must_agree_when_boxes_alone_are_known(things, expected):
    assert set(told(detections=boxes(*things))) == expected


def test_surroundings_carry_and_hold_when_they_are_segmented():
    assert told(paint(*ROOM, TABLE, CUP)) == {
        ("cup", "on", "dining table"): pytest.approx(1),
        ("dining table", "on", "floor"): pytest.approx(1),
    }
    found = told(paint(*MEADOW, TREE, BIRD))
    assert found[("bird", "in", "sky-other-merged")] == found[("tree", "on", "grass-merged")] == pytest.approx(1)
    assert found[("bird", "over", "tree")] > 0.8  # seen in the air: as sure as the words ask for
    assert told(paint(TREE, BIRD))[("bird", "over", "tree")] < 0.8  # nobody knows what is behind it


def test_what_stands_on_the_ground_is_over_nothing_when_it_is_higher_in_the_image():
    farther, nearer = ("cow", 60, 62, 84, 76), ("ball", 66, 100, 80, 112)
    assert not [key for key in told(paint(*MEADOW, farther, nearer)) if key[1] == "over"]
    assert ("cow", "over", "ball") in told(paint(farther, nearer))


def test_nothing_is_on_a_thing_when_the_image_cuts_its_foot_off():
    assert told(paint(*MEADOW, ("person", 60, 40, 100, 120))) == {}


def test_things_are_in_vehicles_when_enclosed_and_on_them_when_not():
    van = ("van", 30, 40, 120, 100)
    assert ("person", "in", "van") in told(paint(van, ("person", 60, 50, 76, 70)))
    assert ("person", "on", "van") in told(paint(van, ("person", 60, 20, 76, 41)))
    segments = paint(*MEADOW, ("van", 30, 58, 120, 100))  # the same, of boxes on masks
    assert ("cat", "in", "van") in told(segments, boxes(("cat", 60, 66, 76, 80)))
    assert ("cat", "on", "van") in told(segments, boxes(("cat", 60, 44, 76, 60)))


def test_nothing_is_in_front_of_what_it_may_wear_or_hold():
    for hat in (("hat", 66, 20, 80, 32), ("hat", 64, 42, 82, 55)):
        assert not [key for key in told(paint(("man", 62, 30, 84, 100)), boxes(hat)) if key[1] == "in front of"]


def test_gaps_between_segments_are_bridged_when_they_are_thin():
    for gap, is_told in ((2, True), (12, False)):
        cup = ("cup", 70, 45, 82, 60 - gap)
        assert (("cup", "on", "dining table") in told(paint(TABLE, cup))) is is_told


def test_a_larger_thing_at_the_rim_is_less_sure_when_it_may_stand_behind():
    low_table = ("table", 40, 80, 120, 100)
    assert told(paint(low_table, ("person", 50, 10, 90, 80)))[("person", "on", "table")] < 0.8
    assert told(paint(low_table, ("cup", 70, 70, 80, 80)))[("cup", "on", "table")] > 0.8


# ------------------------------------------------------------------ depth


def nearness_of(*things, ground=(40, 120)):
    """A map that grows nearer from top to bottom, and things as near as told."""
    nearness = np.repeat(np.linspace(*ground, SIZE[0])[:, None], SIZE[1], axis=1).astype(np.uint8)
    for (_, x0, y0, x1, y1), value in things:
        nearness[y0:y1, x0:x1] = value
    return nearness


@pytest.mark.parametrize("make", [lambda *t: {"segments": paint(*t)}, lambda *t: {"detections": boxes(*t)}])
def test_depth_decides_who_is_in_front_when_it_is_there(make):
    found = told(**make(CAR, DOG), nearness=nearness_of((CAR, 100), (DOG, 200)))
    assert list(found) == [("dog", "in front of", "car")] and found["dog", "in front of", "car"] > 0.8
    found = told(**make(CAR, DOG), nearness=nearness_of((CAR, 200), (DOG, 100)))
    assert ("dog", "in front of", "car") not in found and ("car", "in front of", "dog") in found
    assert not [key for key in told(**make(CAR, DOG), nearness=np.full(SIZE, 90, np.uint8)) if key[1] == "in front of"]


def test_depth_tells_standing_behind_from_standing_on():
    table, man = ("table", 40, 60, 120, 100), ("man", 60, 20, 84, 60)
    on_it = told(paint(table, man), nearness=nearness_of((table, 150), (man, 150)))
    behind = told(paint(table, man), nearness=nearness_of((table, 220), (man, 100)))
    assert ("man", "on", "table") in on_it and ("man", "on", "table") not in behind


def test_depth_leaves_the_sky_far_and_neighbours_level():
    segments = paint(*MEADOW, TREE, BIRD)
    found = told(segments, nearness=nearness_of((MEADOW[0], 0), (TREE, 106), (BIRD, 106)))
    assert {("bird", "in", "sky-other-merged"), ("bird", "over", "tree")} < set(found)
    assert told(paint(ANN, BOB), nearness=nearness_of((ANN, 100), (BOB, 100)))
    assert told(paint(ANN, BOB), nearness=nearness_of((ANN, 100), (BOB, 200))) == {}


# ------------------------------------------------------------------ what must not matter

CROWD = (*MEADOW, CAR, DOG, ("bird", 72, 20, 84, 28), ("person", 120, 50, 132, 100), ("bench", 136, 80, 156, 98))


def symmetric(found):
    """Relations without the direction of `beside`."""
    return {(p, *sorted((s, o))) if p == "beside" else (p, s, o): round(c, 6) for (s, p, o), c in found.items()}


def mirrored(segments):
    return Segments(segments.panoptic_map[:, ::-1], segments.segment_ids, segments.class_names, segments.confidence)


def test_mirror_image_tells_the_same_when_left_and_right_are_exchanged():
    segments = paint(*CROWD)
    assert len(told(segments)) > 5
    assert symmetric(told(mirrored(segments))) == symmetric(told(segments))
    flipped = [(name, 160 - x1, y0, 160 - x0, y1) for name, x0, y0, x1, y1 in CROWD[2:]]
    assert symmetric(told(detections=boxes(*flipped))) == symmetric(told(detections=boxes(*CROWD[2:])))


@pytest.mark.parametrize("factor", [2, 3])
def test_scale_changes_nothing_when_the_image_is_enlarged(factor):
    segments = paint(*CROWD)
    larger = Segments(
        segments.panoptic_map.repeat(factor, 0).repeat(factor, 1), segments.segment_ids, segments.class_names,
        segments.confidence,
    )  # fmt: skip
    first, second = symmetric(told(segments)), symmetric(told(larger))
    assert set(first) == set(second) and all(abs(first[key] - second[key]) < 0.05 for key in first)
    scaled = [(name, *(factor * c for c in box)) for name, *box in CROWD[2:]]
    large = boxes(*scaled, size_hw=(factor * SIZE[0], factor * SIZE[1]))
    assert symmetric(told(detections=large)) == symmetric(told(detections=boxes(*CROWD[2:])))


@pytest.mark.parametrize("shift", [(-20, 0), (7, 11), (0, -18)])
@pytest.mark.parametrize("things", [(TABLE, CUP), (TREE, BIRD), (ANN, BOB), (BOX, BALL), (CAR, DOG)])
def test_place_changes_nothing_when_all_things_move(things, shift):
    moved = [(name, x0 + shift[0], y0 + shift[1], x1 + shift[0], y1 + shift[1]) for name, x0, y0, x1, y1 in things]
    assert told(paint(*moved)) == pytest.approx(told(paint(*things)))
    assert told(detections=boxes(*moved)) == pytest.approx(told(detections=boxes(*things)))


def test_order_changes_nothing_when_objects_are_shuffled():
    segments, detections = paint(*CROWD), boxes(("kite", 20, 10, 34, 30), ("cup", 140, 70, 146, 80), BALL)
    expected = told(segments, detections)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(segments))
        shuffled = Segments(
            segments.panoptic_map,
            tuple(segments.segment_ids[i] for i in order),
            tuple(segments.class_names[i] for i in order),
            segments.confidence[order],
        )
        rows = np.random.default_rng(seed).permutation(len(detections))
        names = tuple(detections.class_names[i] for i in rows)
        turned = Detections(detections.boxes_xyxy[rows], names, detections.confidence[rows], SIZE)
        assert told(shuffled, turned) == expected


def test_beside_is_told_once_and_of_the_smaller_when_two_stand_side_by_side():
    assert list(told(paint(ANN, BOB))) == list(told(paint(BOB, ANN))) == [("person", "beside", "man")]


# ------------------------------------------------------------------ the verbalizer


def test_nothing_is_told_when_there_are_no_two_objects():
    for things in ((), (CUP,), (("", 0, 0, 9, 9), CUP)):
        assert told(paint(*things)) == {}
        assert told(detections=Detections(np.zeros((0, 4)), (), (), SIZE)) == {}
    gone = Segments(np.zeros(SIZE, np.int32), (1, 7), ("cup", "dining table"), (0.9, 0.9))  # ids without pixels
    assert told(gone) == {}


def test_what_was_found_twice_takes_part_once_when_names_mean_the_same():
    found = GRAPH.relate(Scene(SIZE, paint(TABLE, CUP), boxes(TABLE, ("dinner table", *TABLE[1:]), CUP)))
    assert sorted(found.object_names) == ["cup", "dining table"]


def test_unsure_detections_take_no_part_when_below_the_threshold():
    pair = Detections([TABLE[1:], CUP[1:]], ("dining table", "cup"), (0.9, 0.4), SIZE)
    assert told(detections=pair) == {}
    assert told(detections=pair, graph=build_verbalizer("scene_graph", "geometric", detection_threshold=0.4))


def test_relations_are_few_and_the_clearest_when_there_are_many_objects():
    row = [("person", 10 * i, 50 + i % 3, 10 * i + 7, 100) for i in range(16)]
    everything = told(paint(*row), graph=build_verbalizer("scene_graph", "geometric", max_relations=1000))
    graph = build_verbalizer("scene_graph", "geometric", max_relations=4)
    relations = graph.relate(Scene(SIZE, paint(*row)))
    assert len(relations) == 4 and relations.confidence.min() >= max(everything.values()) - 0.1
    assert len(graph.relate(Scene(SIZE, detections=boxes(*(row * 40)))).predicates) == 4  # 640 boxes: 200 are compared


@pytest.mark.parametrize(
    "setting",
    [{"threshold": 0}, {"min_contact": 2}, {"max_gap": 0}, {"max_relations": -1}, {"merge_iou": 0}, {"no_such": 1},
     {"detections_first": "false"}, {"detection_threshold": 7}],
)  # fmt: skip
def test_settings_are_refused_when_they_make_no_sense(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        build_verbalizer("scene_graph", "geometric", **setting)


def test_backend_is_not_the_default_and_its_settings_are_json():
    assert available_verbalizers()["scene_graph"][0] == "psgtr"
    graph = build_verbalizer("scene_graph", "geometric", max_gap=0.3)
    again = build_verbalizer("scene_graph", "geometric", **json.loads(json.dumps(graph.settings())))
    assert again.fingerprint() == graph.fingerprint() != GRAPH.fingerprint()


# ------------------------------------------------------------------ beside other verbalizers


class Painter(Verbalizer):
    """A segmenter that sees a cup on a table, in some images."""

    kind, backend = "segmentation", "painter"

    def predict(self, images):
        if any(image.max() == 0 for image in images):
            raise RuntimeError("too dark")
        return [paint(TABLE, CUP) for _ in images]


class Boxer(Verbalizer):
    """A detector that sees a bird over a tree."""

    kind, backend = "detection", "boxer"

    def predict(self, images):
        return [boxes(TREE, BIRD) for _ in images]


def image(value=9):
    return np.full((*SIZE, 3), value, np.uint8)


def test_scene_graph_follows_the_others_when_verbalizers_are_in_any_order():
    for verbalizers in ([GRAPH, Painter()], [Painter(), GRAPH]):
        (scene,) = parse_scene([image()], verbalizers)
        assert not scene.failures and scene.relations.predicates == ("on",)
        assert "cup is on dining table" in verbalize_scene(scene)
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_each_image_keeps_its_own_relations_when_one_of_a_batch_fails():
    first, dark, last = parse_scene([image(), image(0), image()], [GRAPH, Painter()])
    assert first == last and first.relations.predicates == ("on",)
    assert dark.relations is None and set(dark.failures) == {"segmentation", "scene_graph"}
    assert "expected segments or detections" in dark.failures["scene_graph"]
    assert "too dark" in dark.failures["scene_graph"] and "Let a segmentation" in dark.failures["scene_graph"]
    assert parse_scene([image(0)], [GRAPH, Painter(), Boxer()])[0].relations.predicates == ("over",)


def test_missing_sources_are_named_when_it_looks_alone():
    with pytest.raises(ValueError, match="got neither"):
        GRAPH.predict([image()])
    (scene,) = parse_scene([image()], [GRAPH])
    assert "got neither. Let a segmentation or detection" in scene.failures["scene_graph"]


def test_known_findings_are_read_when_a_scene_is_at_hand():
    (scene,) = parse_scene([image()], [GRAPH], known=[Scene(SIZE, paint(BOX, BALL))])
    assert scene.segments == paint(BOX, BALL) and scene.relations.predicates == ("in",)
    with pytest.raises(ValueError, match="image 0"):
        parse_scene([image()], [GRAPH], known=[Scene((5, 5))])
    with pytest.raises(ValueError, match="one scene per image"):
        parse_scene([image()], [GRAPH], known=[])


def test_profile_gives_it_what_the_others_found():
    scene, costs = profile_scene(image(), [GRAPH, Painter()])
    assert scene == parse_scene([image()], [GRAPH, Painter()])[0]
    assert [cost.name for cost in costs[:2]] == ["segmentation/painter", "scene_graph/geometric"]
    assert not any(cost.failure for cost in costs)


def test_groups_follow_what_is_used_when_some_wait_for_others():
    class Critic(Boxer):
        kind, uses = "critique", ("scene_graph",)

    critic, painter, boxer = Critic(), Painter(), Boxer()
    assert order_by_use([critic, GRAPH, painter, boxer]) == [[painter, boxer], [GRAPH], [critic]]
    assert add_sources([critic], [critic, boxer, GRAPH, painter]) == [critic, boxer, GRAPH, painter]
    assert add_sources([painter], [critic, boxer, GRAPH, painter]) == [painter]
    critic.uses, critic.kind = ("scene_graph",), "detection"
    with pytest.raises(ValueError, match="wait for each other"):
        parse_scene([image()], [critic, GRAPH])
