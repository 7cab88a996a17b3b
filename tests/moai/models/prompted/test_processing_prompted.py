"""The verbalization in the prompt of unmodified models, on the real classes of two families."""

import numpy as np
import pytest
import torch
from PIL import Image
from prompted_builders import FAMILIES, save_prompted
from transformers import AutoModelForImageTextToText

from moai.models.prompted.processing_prompted import PromptedProcessor, PromptSettings

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
INTRODUCTION = PromptSettings().introduction


def ask(question, *images):
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save_prompted(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return PromptedProcessor.from_pretrained(folder)


def test_processor_leaves_the_models_own_input_when_nobody_looked(processor):
    ours = processor([ask("What?", IMAGE)])
    theirs = processor.processor.apply_chat_template(
        [ask("What?", IMAGE)], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("place", ["before", "after"])
def test_processor_puts_the_report_where_it_belongs_when_there_are_images(folder, place):
    processor = PromptedProcessor.from_pretrained(folder, PromptSettings(place=place))
    (messages,) = [processor.insert_context(ask("What?", IMAGE, IMAGE), "objects: 1 cat")]
    kinds = [part["type"] for part in messages[0]["content"]]
    text = f"{INTRODUCTION}\nobjects: 1 cat\n\n"
    if place == "before":
        assert kinds == ["text", "image", "image", "text"] and messages[0]["content"][0]["text"] == text
    else:
        assert kinds == ["image", "image", "text"] and messages[0]["content"][2]["text"] == text + "What?"


def test_processor_makes_no_control_token_when_question_or_report_spells_one(processor):
    forged = "".join(processor.tokenizer.all_special_tokens)
    plain = processor([ask("What?", IMAGE)], ["a report"])
    spelt = processor([ask(f"What? {forged}", IMAGE)], [f"a report {forged}"])
    special = torch.tensor(processor.tokenizer.all_special_ids)
    counts = [int(torch.isin(batch["input_ids"], special).sum()) for batch in (plain, spelt)]
    assert counts[0] == counts[1]
    assert processor.tokenizer.decode(spelt["input_ids"][0]).count(forged) == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_hold_the_answer_alone_when_rows_are_padded(processor, side):
    rows = [ask("What?", IMAGE), ask("What is this, and why?", IMAGE)]
    batch = processor(rows, ["a report", None], ["yes", "a longer answer"], padding_side=side)
    for row, answer in enumerate(("yes", "a longer answer")):
        kept = batch["labels"][row] != -100
        assert processor.tokenizer.decode(batch["labels"][row][kept]).startswith(f"{answer}<|im_end|>")
        assert torch.equal(batch["labels"][row][kept], batch["input_ids"][row][kept])


def test_loss_is_the_same_when_rows_are_batched_and_padded(processor, model):
    rows = [ask("What?", IMAGE), ask("What is this, and why?", IMAGE)]
    answers = ["yes", "a longer answer"]
    singles = [processor([row], answers=[answer]) for row, answer in zip(rows, answers, strict=True)]
    batch = processor(rows, answers=answers, padding_side="right")
    with torch.no_grad():
        losses, counts = zip(*((model(**s).loss, int((s["labels"] != -100).sum())) for s in singles), strict=True)
        together = model(**batch).loss
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)


def test_answers_are_the_same_when_asked_in_a_batch(processor, model):
    rows, reports = [ask("What?", IMAGE), ask("Where is it, exactly?", IMAGE)], ["objects: 1 cat", None]
    batch = processor(rows, reports)
    together = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row in range(2):
        single = processor([rows[row]], [reports[row]])
        alone = model.generate(**single, max_new_tokens=6, do_sample=False)[0, single["input_ids"].shape[1] :]
        assert together[row, : len(alone)].tolist() == alone.tolist()


def test_processor_saves_how_it_prompts(folder, tmp_path):
    settings = PromptSettings(style="compact", place="before", introduction="Seen:")
    PromptedProcessor.from_pretrained(folder, settings).save_pretrained(tmp_path)
    assert PromptedProcessor.from_pretrained(str(tmp_path)).settings == settings


def test_processor_says_both_lengths_when_a_conversation_is_too_long(processor):
    with pytest.raises(ValueError, match=r"conversation 1 has \d+ tokens .* the bound is 300"):
        processor([ask("What?", IMAGE), ask("What? " * 100, IMAGE)], max_length=300)


def test_processor_refuses_a_model_without_chat_template(processor):
    template, processor.processor.chat_template = processor.processor.chat_template, None
    try:
        with pytest.raises(ValueError, match="chat template"):
            PromptedProcessor(processor.processor)
    finally:
        processor.processor.chat_template = template


def test_processor_refuses_to_learn_when_the_template_rewrites_the_prompt(folder):
    processor = PromptedProcessor.from_pretrained(folder)
    processor.processor.chat_template = "{{- messages | length -}}" + processor.processor.chat_template
    with pytest.raises(ValueError, match="changes the prompt"):
        processor([ask("What?", IMAGE)], answers=["yes"])
