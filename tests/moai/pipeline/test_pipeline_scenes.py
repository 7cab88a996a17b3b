"""Several questions about one scene encode its image, map and verbalization once, and are answered as each alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from moai import Pipeline
from moai.models.moai.encoded_scenes import EncodedScenes

QUESTIONS = ["What is this?", "How many cars are there?", "What colour is it?"]


@pytest.fixture
def pipeline(repo_root):
    return Pipeline.from_pretrained(repo_root / "checkpoints" / "moai-nano", verbalizers=[])


@pytest.fixture
def counted(pipeline):
    """What passes the tower, and rows that pass the compressor."""
    seen: dict[str, list[int]] = {"tower": [], "compressor": []}
    model = pipeline.model.model
    model.vision_tower.register_forward_pre_hook(lambda module, args: seen["tower"].append(len(args[0])))
    model.compressor.register_forward_pre_hook(lambda module, args: seen["compressor"].append(len(args[0])))
    return seen


@pytest.fixture
def images():
    values = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


@pytest.fixture
def scenes(images):
    from verbalizers import Detections, Scene, Segments

    found = []
    for number in range(2):
        panoptic = np.full((64, 64), number + 1, np.int32)
        box = np.array([[4 + number, 4, 40, 40]], np.float32)
        found.append(
            Scene(
                (64, 64),
                segments=Segments(panoptic, (number + 1,), ("car",), np.ones(1, np.float32)),
                detections=Detections(box, ("car",), np.ones(1, np.float32), (64, 64)),
            )
        )
    return found


def answer_apart(pipeline, image, scene, questions):
    """Each question as if it were the first."""
    answers = []
    for question in questions:
        pipeline.answering.encoded.forget()
        answers.append(pipeline(image, question, scene).answer)
    return answers


def test_tower_and_compressor_see_a_scene_once_when_questions_follow_each_other(pipeline, counted, images, scenes):
    apart = answer_apart(pipeline, images[0], scenes[0], QUESTIONS)
    assert counted == {"tower": [2] * 3, "compressor": [1] * 3}  # image and map in one pass
    counted["tower"].clear(), counted["compressor"].clear()
    pipeline.answering.encoded.forget()
    answers = [output.answer for output in pipeline.answer_each(images[0], QUESTIONS, scenes[0], batch_size=1)]
    answers.append(pipeline(images[0], QUESTIONS[0], scenes[0]).answer)  # and in another call
    earlier = [[(QUESTIONS[0], answers[0])]]
    turn = pipeline(images[0], [QUESTIONS[1]], scenes[0], earlier=earlier)[0]
    assert answers == [*apart, apart[0]]
    assert counted == {"tower": [2], "compressor": [1]}
    pipeline.answering.encoded.forget()
    assert pipeline(images[0], [QUESTIONS[1]], scenes[0], earlier=earlier)[0].answer == turn.answer


def test_batch_encodes_each_scene_once_when_it_asks_twice_about_two(pipeline, counted, images, scenes):
    pairs = [(images[0], scenes[0]), (images[1], scenes[1])] * 2
    questions = [*QUESTIONS[:2], *QUESTIONS[1:]]
    apart = [answer_apart(pipeline, *pair, [question])[0] for pair, question in zip(pairs, questions, strict=True)]
    counted["tower"].clear(), counted["compressor"].clear()
    pipeline.answering.encoded.forget()
    answers = pipeline([image for image, _ in pairs], questions, [scene for _, scene in pairs])
    assert [output.answer for output in answers] == apart
    assert counted == {"tower": [4], "compressor": [2]}


@pytest.fixture
def inputs(pipeline, images, scenes):
    answering = pipeline.answering
    found = answering.encode_scenes(scenes, pipeline.settings)
    return answering.encode(images, [answering.prepare(image, QUESTIONS[0], 8) for image in images], found, 8)


def take(inputs, rows):
    return {name: value[rows] for name, value in inputs.items()}


@torch.inference_mode()
def test_features_are_equal_bit_by_bit_when_they_are_kept(pipeline, inputs):
    one, memory, model = take(inputs, [0]), EncodedScenes(), pipeline.model
    images, patches = model.model.get_image_and_map_features(one["pixel_values"], one["auxiliary_pixel_values"])
    auxiliary = {name: value for name, value in one.items() if name.startswith("auxiliary_")}
    states = model.get_auxiliary_states(**auxiliary, map_features=patches)
    for _ in range(2):
        encoded = memory.encode(model, one)
        assert torch.equal(encoded["image_features"], images.pooler_output)
        assert torch.equal(encoded["auxiliary_states"], states)
        assert not any(name in encoded for name in (*auxiliary, "pixel_values"))


def change_by_training(model):
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.model.multi_modal_projector.linear_1.weight.sum().backward()
    optimizer.step()


def change_by_loading(model):
    model.load_state_dict({name: value * 1.01 for name, value in model.state_dict().items()})


def change_by_reading_otherwise(model):
    model.config.vision_feature_layer = -2


@pytest.mark.parametrize("change", [change_by_training, change_by_loading, change_by_reading_otherwise])
def test_nothing_is_kept_when_the_model_changes(pipeline, inputs, change):
    memory, model = EncodedScenes(), pipeline.model
    before = memory.encode(model, inputs)
    change(model)
    after, fresh = memory.encode(model, inputs), EncodedScenes().encode(model, inputs)
    assert torch.equal(after["image_features"], fresh["image_features"])
    assert not torch.equal(after["image_features"], before["image_features"])


def test_last_scenes_are_kept_and_another_verbalization_is_another_scene(pipeline, counted, inputs):
    memory, model = EncodedScenes(num_scenes=1), pipeline.model
    first, second = take(inputs, [0]), take(inputs, [1])
    for rows in (first, second, second, first):
        memory.encode(model, rows)
    assert counted["tower"] == [2, 2, 2]
    memory.encode(model, first | {"auxiliary_input_ids": first["auxiliary_input_ids"].flip(1)})
    assert counted == {"tower": [2, 2, 2, 1], "compressor": [1] * 4}
