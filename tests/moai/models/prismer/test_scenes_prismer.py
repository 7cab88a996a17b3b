"""Scenes as maps, maps as the model's inputs, names as features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_builders import draw_image
from prismer_builders import CLASS_NAMES, LABEL_SIZE, build_name_encoder, build_prismer

from moai.models.prismer.configuration_prismer import EXPERTS
from moai.models.prismer.expert_maps import BACKGROUND, ExpertMaps
from moai.models.prismer.label_features import LabelFeatures
from moai.models.prismer.scenes_prismer import encode_scenes, order_boxes
from moai.models.prismer.texts import clean_text, close_caption, complete_question
from verbalizers import Detections, Scene, Segments, TextLines, WordSettings, build_verbalizer, parse_scene
from verbalizers.core.label_map import LabelMap
from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES

SIZE = (20, 30)


def detect(*boxes: list[int], names: tuple[str, ...] | None = None, confidence: float = 0.9) -> Detections:
    names = names or tuple(f"thing {i}" for i in range(len(boxes)))
    return Detections(list(boxes), names, [confidence] * len(boxes), SIZE)


def draw(scene: Scene, **kwargs: object) -> ExpertMaps:
    return encode_scenes([scene], **kwargs)["expert_maps"][0]


def test_segments_become_class_ids_when_they_have_names() -> None:
    panoptic_map = np.zeros(SIZE, dtype=np.int32)
    panoptic_map[:5], panoptic_map[5:10], panoptic_map[10:15], panoptic_map[15:, 10:] = 4, 7, 2, 9
    names = ("grass-merged", "unicorn", "", "grass-merged")
    found = draw(Scene(SIZE, segments=Segments(panoptic_map, (4, 7, 2, 9), names, [0.9] * 4)))
    grass = COCO_PANOPTIC_NAMES.index("grass-merged")
    ids = found.maps["seg"]
    assert ids.dtype == torch.int64 and ids.shape == SIZE
    assert ids[0, 0] == grass == ids[15, 10] and ids[5, 0] == len(COCO_PANOPTIC_NAMES)
    assert ids[10, 0] == BACKGROUND == ids[19, 0]  # a class without a name, no segment
    assert found.names["seg"] == {grass: "grass", len(COCO_PANOPTIC_NAMES): "unicorn"}


def test_boxes_hide_one_another_as_the_original_says_when_they_overlap() -> None:
    depth = np.zeros(SIZE, dtype=np.uint8)
    depth[:, 15:] = 200
    boxes = ([0, 0, 20, 10], [10, 5, 30, 20], [2, 2, 6, 6], [0, 0, 20, 10])
    scene = Scene(SIZE, detections=detect(*boxes), findings={"depth": LabelMap(depth)})
    numbers = draw(scene).maps["obj_detection"]
    assert numbers[0, 0] == 0 and numbers[12, 12] == 1
    assert numbers[7, 15] == 1  # box 1 is nearer on average
    assert (numbers[2:6, 2:6] == 2).all()  # a box inside another
    assert not (numbers == 3).any()  # of two equal boxes the first
    assert numbers[19, 0] == BACKGROUND
    far = draw(Scene(SIZE, detections=detect(*boxes), findings={"depth": LabelMap(255 - depth)})).maps["obj_detection"]
    assert far[7, 15] == 0 and far[12, 12] == 1
    unmeasured = draw(Scene(SIZE, detections=detect([0, 0, 20, 10], [10, 5, 30, 20]))).maps["obj_detection"]
    assert unmeasured[7, 15] == 0  # the smaller one


def test_order_of_boxes_is_by_pairs_when_they_share_pixels() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 0, 25, 5]])
    loses_to = order_boxes(boxes, np.arange(600, dtype=float).reshape(20, 30))
    assert loses_to.tolist() == [[False, True, False], [False] * 3, [False] * 3]


def test_detections_are_numbered_by_place_when_some_are_not_worth_saying() -> None:
    detections = Detections([[0, 0, 5, 5], [6, 0, 9, 9], [10, 0, 19, 9]], ("a", "b", "c"), [0.9, 0.2, 0.8], SIZE)
    found = draw(Scene(SIZE, detections=detections))
    assert found.names["obj_detection"] == {0: "a", 1: "c"} and found.maps["obj_detection"][3, 12] == 1
    with pytest.warns(UserWarning, match="detections"):
        found = draw(Scene(SIZE, detections=detections), words=WordSettings(max_predictions=1))
    assert found.names["obj_detection"] == {0: "a"}
    outside = draw(Scene(SIZE, detections=detect([-5, -5, 3, 3], [25, 15, 36, 24]))).maps["obj_detection"]
    assert outside[0, 0] == 0 and outside[19, 29] == 1 and (outside == 0).sum() == 9


def test_lines_of_text_are_numbered_polygons_when_read() -> None:
    quads = [
        [[2, 2], [9, 2], [9, 6], [2, 6]],
        [[12, 10], [20, 10], [20, 15], [12, 15]],
        [[0, 0], [2, 0], [2, 2], [0, 2]],
    ]
    lines = TextLines(quads, ("STOP", "Now 5", "faint"), [0.99, 0.95, 0.1])
    found = draw(Scene(SIZE, text_lines=lines))
    assert found.names["ocr_detection"] == {0: "stop", 1: "now 5"}
    numbers = found.maps["ocr_detection"]
    assert numbers[4, 5] == 0 and numbers[12, 15] == 1 and numbers[1, 1] == BACKGROUND


def test_values_of_label_maps_are_kept_when_they_are_shares_or_measures() -> None:
    edge = LabelMap(np.array([[0.0, 2.5], [0.5, -1.0]], dtype=np.float32))
    found = draw(Scene(SIZE, findings={"edge": edge, "normal": LabelMap(np.full((2, 3, 3), 7, dtype=np.uint16))}))
    assert found.maps["edge"].tolist() == [[[0.0, 2.5], [0.5, -1.0]]]
    assert found.maps["normal"].shape == (3, 2, 3) and (found.maps["normal"] == 7).all()
    wrong_maps = (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.int32))
    for wrong in ("a sentence", [[1.0, 0.5]], {"a": 1}, *map(LabelMap, wrong_maps)):
        with pytest.raises(ValueError, match=r"[mM]ap \(h, w\).*edge"):
            draw(Scene(SIZE, findings={"edge": wrong}))


def test_only_what_is_asked_for_is_drawn_when_kinds_or_experts_are_named() -> None:
    edge = LabelMap(np.ones((1, 1), np.uint8))
    scene = Scene(SIZE, detections=detect([0, 0, 5, 5]), text_lines=TextLines([], (), []), findings={"edge": edge})
    assert draw(scene).maps.keys() == {"obj_detection", "ocr_detection", "edge"}
    assert draw(scene, kinds=["ocr"]).maps.keys() == {"ocr_detection"}
    assert draw(scene, experts=["edge"]).maps.keys() == {"edge"}
    said = encode_scenes([scene, None])
    assert said["expert_maps"][1] is None and said["auxiliary_text"][1] is None
    assert "thing 0" in said["auxiliary_text"][0]


def test_missing_experts_are_the_originals_empty_files_when_nobody_looked() -> None:
    _, processor = build_prismer()
    batch = processor(draw_image(), "what", expert_maps=[None])
    for name in ("depth_values", "normal_values", "edge_values"):
        assert (batch[name] == -1).all()
    features = processor.label_features(["person", "background"])
    side = processor.map_side
    person, background = (row[:, None, None].expand(-1, side, side) for row in features)
    assert torch.equal(batch["seg_values"][0], person)  # an empty file is class 0
    assert torch.equal(batch["obj_detection_values"][0], background)
    assert torch.equal(batch["ocr_detection_values"][0], background)
    assert batch["instance_map"].shape == (1, 1, side, side) and (batch["instance_map"] == BACKGROUND).all()


def test_maps_are_resized_to_the_nearest_and_scaled_when_encoded() -> None:
    _, processor = build_prismer()
    ids = torch.full(SIZE, BACKGROUND)
    ids[:10] = 3
    depth = torch.arange(600.0).view(1, *SIZE)
    maps = ExpertMaps({"obj_detection": ids, "depth": depth}, {"obj_detection": {3: "Dog"}})
    data = processor.encode_maps([maps])
    assert data["instance_map"].unique().tolist() == [3, BACKGROUND]
    dog, background = processor.label_features(["dog", "background"])
    assert torch.equal(data["obj_detection_values"][0, :, 0, 0], dog)
    assert torch.equal(data["obj_detection_values"][0, :, -1, -1], background)
    assert data["depth_values"].min() == -1 and data["depth_values"].max() == pytest.approx(1, abs=1e-5)
    assert set(((data["depth_values"] + 1) / 2).flatten().mul(599).round().int().tolist()) <= set(range(600))


def test_features_are_a_pca_of_embeddings_when_fitted() -> None:
    encoder = build_name_encoder()
    features = LabelFeatures.fit(CLASS_NAMES, encoder, LABEL_SIZE)
    embeddings = encoder([*CLASS_NAMES, "background"]).double()
    centred = embeddings - embeddings.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    projected = centred @ vectors[:, -LABEL_SIZE:].flip(1)
    got = features([*CLASS_NAMES, "background"]).double()
    assert torch.allclose(got.abs(), projected.abs(), atol=1e-4)
    assert torch.allclose(got.T @ got, torch.diag(values[-LABEL_SIZE:].flip(0)), atol=1e-3)
    new = features(["A  Zebra"])  # unknown before: by the same way
    wanted = (encoder(["a zebra"]) - features.mean) @ features.components.T
    assert torch.allclose(new, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="more than 8"):
        LabelFeatures.fit(CLASS_NAMES[:4], encoder, LABEL_SIZE)


def test_unknown_name_is_refused_by_name_when_there_is_no_encoder(tmp_path: Path) -> None:
    features = LabelFeatures.fit(CLASS_NAMES, build_name_encoder(), LABEL_SIZE)
    features.save_pretrained(tmp_path)
    loaded = LabelFeatures.from_pretrained(tmp_path)
    assert torch.equal(loaded(["Dog"]), features(["dog"]))
    assert torch.equal(loaded(["stop 5"]), features(["stop 5"]))
    blind = LabelFeatures(features.names, features.features, features.mean, features.components)
    with pytest.raises(ValueError, match="zebra"):
        blind(["dog", "zebra"])
    (tmp_path / "label_features.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="label_features"):
        LabelFeatures.from_pretrained(tmp_path)
    _, processor = build_prismer()
    processor.label_features = None
    with pytest.raises(ValueError, match="label_features"):
        processor(draw_image(), "what")


def test_texts_are_cleaned_as_the_original_does_when_written() -> None:
    assert clean_text("A Dog, (big)! RUNS") == "A dog, big runs"
    assert clean_text(" A dog") == "a dog"  # capitalised before the space goes: a caption without prefix stays small
    assert clean_text("one two three", 2) == "One two"
    assert complete_question("is it a Dog") == "Is it a dog?" == complete_question("Is it a dog?")
    assert close_caption(" a Dog runs ") == "A dog runs." and close_caption("") == ""
    _, processor = build_prismer(())
    ids = processor.encode_prompt("what </s><s> is it")
    assert ids[0] == 0 and 2 not in ids and ids.count(0) == 1
    assert (
        processor.encode_answer("No")[-1] == 2
        and processor.tokenizer.decode(processor.encode_answer("a B")) == " A b</s>"
    )
    batch = processor(draw_image(), "A picture of", answers=["a DOG."], task="caption")
    learned = batch["labels"][0][batch["labels"][0] >= 0]
    assert processor.tokenizer.decode(batch["input_ids"][0]) == "<s>A picture of a dog</s>"
    assert processor.tokenizer.decode(learned) == " a dog</s>"
    with pytest.raises(ValueError, match="task"):
        processor(draw_image(), "x", task="draw")
    with pytest.raises(ValueError, match="bound is 3"):
        processor(draw_image(), "a long question", max_length=3)


def test_inputs_follow_the_experts_when_some_are_left_out() -> None:
    _, processor = build_prismer(("edge", "seg"))
    batch = processor(draw_image(), "what")
    assert sorted(batch) == sorted(processor.model_input_names)
    assert {"edge_values", "seg_values"} <= set(batch) and "instance_map" not in batch
    with pytest.raises(ValueError, match="expert maps"):
        processor(draw_image(), "what", expert_maps=[None, None])


def test_all_six_experts_speak_when_our_verbalizers_look() -> None:
    ids = np.repeat(np.arange(1, 31, dtype=np.int32) % 2 + 1, 20).reshape(30, 20).T.copy()
    known = Scene(
        SIZE,
        segments=Segments(ids, (1, 2), ("sky-other-merged", "car"), [0.9, 0.9]),
        detections=detect([2, 2, 12, 12], names=("car",)),
        text_lines=TextLines([[[3, 2], [9, 2], [9, 6], [3, 6]]], ("STOP",), (0.9,)),
        findings={"depth": LabelMap(np.repeat(np.linspace(0, 65535, 20).astype(np.uint16)[:, None], 30, axis=1))},
    )
    image = draw_image().resize(SIZE[::-1])
    (scene,) = parse_scene([image], [build_verbalizer("normal"), build_verbalizer("edge")], known=[known])
    assert not scene.failures
    scene = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    said = encode_scenes([scene])
    assert set(said["expert_maps"][0].maps) == set(EXPERTS)
    model, processor = build_prismer()
    batch = processor(image, "what is it?", expert_maps=said["expert_maps"])
    empty = processor(image, "what is it?")
    with torch.no_grad():
        full = model.encode_images(**{k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask")})
    for name in ("depth_values", "normal_values", "edge_values"):
        assert batch[name].min() == -1 and batch[name].max() > 0.99 and not torch.equal(batch[name], empty[name])
        with torch.no_grad():  # each reaches the tokens that the decoder reads
            inputs = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask")}
            without = model.encode_images(**inputs | {name: empty[name]})
        assert (full - without).abs().max() > 1e-5
