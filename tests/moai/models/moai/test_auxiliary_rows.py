"""What a sample brings (nothing, an empty verbalization, words, a map) is read alike alone and in any batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pipeline_builders import draw_image, write_tiny_checkpoint

from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.data.samples import Sample
from moai.models.moai.collator_moai import share_inputs
from moai.models.moai.task_moai import compute_loss

TEXTS = (None, "", "The image includes text descriptions: STOP.")
MAP = np.full((8, 8, 3), 90, np.uint8)
#: Every way in which one sample may lack what another has.
ROWS = list(itertools.product(TEXTS, (None, MAP)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["encoder", "perceiver"])
def model(request, folder):
    model = MoAIForConditionalGeneration.from_pretrained(folder)
    if request.param == "perceiver":
        torch.manual_seed(1)
        config = type(model.config).from_dict(model.config.to_dict() | {"compressor": {"architecture": "perceiver"}})
        other = MoAIForConditionalGeneration(config)
        state = {name: value for name, value in model.state_dict().items() if ".compressor." not in name}
        other.load_state_dict(state, strict=False)
        model = other.eval()
    return model


@pytest.fixture(scope="module")
def processor(folder):
    return MoAIProcessor.from_pretrained(folder)


def encode(processor, rows, has_images=True):
    images = [draw_image(index) for index in range(len(rows))] if has_images else None
    return processor(
        images=images,
        questions=["Where is the cat?"] * len(rows),
        auxiliary_text=[text for text, _ in rows],
        auxiliary_images=[painted for _, painted in rows],
        return_tensors="pt",
    )


@pytest.mark.parametrize("has_images", [True, False])
def test_forward_of_a_batch_equals_singles_when_rows_lack_text_or_map(model, processor, has_images):
    batch = encode(processor, ROWS, has_images)
    with torch.inference_mode():
        together = model(**batch).logits
    for index, row in enumerate(ROWS):
        single = encode(processor, [row], has_images)
        if has_images:
            single["pixel_values"] = batch["pixel_values"][index : index + 1]
        assert "auxiliary_source_mask" not in single
        with torch.inference_mode():
            alone = model(**single).logits
        torch.testing.assert_close(together[index], alone[0], atol=2e-4, rtol=1e-4)


def test_absent_empty_and_said_differ_when_all_else_is_equal(model, processor):
    rows = [(text, None) for text in TEXTS]
    batch = encode(processor, rows)
    batch["pixel_values"] = batch["pixel_values"][:1].expand_as(batch["pixel_values"])
    with torch.inference_mode():
        logits = model(**batch).logits[:, -1]
    for first, second in itertools.combinations(range(len(rows)), 2):
        assert (logits[first] - logits[second]).abs().max() > 1e-3


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generate_of_a_batch_equals_singles_when_rows_lack_text_or_map(model, processor, num_beams):
    batch = encode(processor, ROWS)
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": num_beams}
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for index, row in enumerate(ROWS):
        single = encode(processor, [row])
        single["pixel_values"] = batch["pixel_values"][index : index + 1]
        alone = model.generate(**single, **settings)[0, single["input_ids"].shape[1] :]
        assert together[index, : len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("is_sharing", [False, True])
def test_loss_of_a_batch_is_the_sum_of_singles_when_rows_lack_text_or_map(model, processor, is_sharing):
    image = draw_image()
    prompt = processor.build_prompts("Where is the cat?")[0]

    def loss(chosen):
        said = {"auxiliary_text": [text for text, _ in chosen], "auxiliary_images": [painted for _, painted in chosen]}
        inputs = {"images": [[image]] * len(chosen), "text": [prompt] * len(chosen), "padding": True, **said}
        batch = dict(processor(**inputs, answers=["on the left"] * len(chosen), return_tensors="pt"))
        if is_sharing:
            batch = share_inputs(batch, [Sample("row", (), (image,))] * len(chosen), **said)
        with torch.inference_mode():
            return compute_loss(model, batch, {"mode": "gated"}, batch["input_ids"].shape[1])[0]

    torch.testing.assert_close(loss((*ROWS, *ROWS)), sum(loss([row]) for row in (*ROWS, *ROWS)), atol=1e-2, rtol=1e-4)


def test_routing_gives_no_weight_to_absent_findings_when_others_have_them(model, processor):
    batch = encode(processor, [(None, None), (TEXTS[2], MAP)])
    with torch.inference_mode():
        routing = model(**batch, output_routing=True).routing
    for layer in routing:
        assert (layer.image[0, :, 0] == 0).all() and (layer.language[0, :, 0] == 0).all()
        assert (layer.language[1, :, 0] > 0).any()


def test_processor_marks_rows_only_when_they_differ(processor):
    assert "auxiliary_source_mask" not in encode(processor, [("", None), ("words", None)])
    assert "auxiliary_source_mask" not in encode(processor, [(None, MAP), (None, MAP)])
    assert not any(name.startswith("auxiliary") for name in encode(processor, [(None, None)] * 2))
    batch = encode(processor, [(None, MAP), ("", None), (None, None), ("words", MAP)])
    assert batch["auxiliary_source_mask"].tolist() == [[0, 1], [1, 0], [0, 0], [1, 1]]
    assert batch["auxiliary_attention_mask"].sum(1).tolist()[:3] == [0, 1, 0]
