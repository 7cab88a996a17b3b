"""The processor's keywords: transformers' protocol, and nothing that is lost silently."""

import numpy as np
import pytest
import torch
from processing_builders import PATCHES, RED
from transformers import AddedToken, ByT5Tokenizer

from moai import MoAIProcessor

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ image_token }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] }}{% endgeneration %}"
    "{% else %}{{ part['text'] }}{% endif %}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)


@pytest.mark.parametrize(
    "arguments",
    [
        {
            "padding": "max_length",
            "max_length": 120,
            "padding_side": "right",
            "return_tensors": "np",
            "do_rescale": False,
        },
        {
            "text_kwargs": {
                "padding": "max_length",
                "max_length": 120,
                "padding_side": "right",
                "return_tensors": "np",
            },
            "images_kwargs": {"do_rescale": False},
        },
        {
            "common_kwargs": {"return_tensors": "np"},
            "text_kwargs": {"padding": "max_length", "max_length": 120, "padding_side": "right"},
            "do_rescale": False,
        },
    ],
    ids=["flat", "by kind", "common"],
)
def test_settings_mean_the_same_when_given_alone_or_by_kind(processor: MoAIProcessor, arguments: dict) -> None:
    batch = processor(images=RED, questions="How many dogs?", **arguments)
    plain = processor(images=RED, questions="How many dogs?", return_tensors="np")
    assert batch["input_ids"].shape == (1, 120) and isinstance(batch["input_ids"], np.ndarray)
    length = plain["input_ids"].shape[1]
    assert batch["attention_mask"][0].tolist() == [1] * length + [0] * (120 - length)
    assert batch["pixel_values"].max() > 100 * plain["pixel_values"].max(), "the images were rescaled all the same"


def test_image_processor_settings_apply_to_the_call_only_when_flat(processor: MoAIProcessor) -> None:
    before = processor(images=RED)["pixel_values"]
    grey = processor(images=RED, do_normalize=False)["pixel_values"]
    assert 0 <= grey.min() and grey.max() <= 1 < before.max()
    assert torch.equal(processor(images=RED)["pixel_values"], before)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"paddding": True}, "paddding"),
        ({"text_kwargs": {"stride": 4}}, "text_kwargs['stride']"),
        ({"text_kwargs": {"do_rescale": True}}, "text_kwargs['do_rescale']"),
        ({"images_kwargs": {"padding": True}}, "images_kwargs['padding']"),
        ({"common_kwargs": {"padding": True}}, "common_kwargs['padding']"),
        ({"videos_kwargs": {"fps": 2}}, "videos_kwargs['fps']"),
        ({"videos": [0]}, "videos"),
    ],
)
def test_argument_is_refused_when_it_is_no_ones(processor: MoAIProcessor, arguments: dict, name: str) -> None:
    with pytest.raises(TypeError, match="unknown arguments") as refusal:
        processor(images=RED, questions="a", **arguments)
    assert name in str(refusal.value)


def test_empty_kinds_are_taken_when_a_caller_hands_them_to_every_processor(processor: MoAIProcessor) -> None:
    batch = processor(images=RED, questions="a", videos=None, videos_kwargs={}, audio_kwargs=None, verbose=False)
    assert torch.equal(batch["input_ids"], processor(images=RED, questions="a")["input_ids"])


def test_setting_is_refused_when_given_twice(processor: MoAIProcessor) -> None:
    with pytest.raises(ValueError, match="padding.* two times"):
        processor(questions="a", padding=True, text_kwargs={"padding": False})


def test_offsets_show_every_token_in_the_expanded_prompt_when_asked(chatml_processor: MoAIProcessor) -> None:
    processor = chatml_processor
    prompts = processor.build_prompts(["How many <|im_end|> dogs?", "a"], [2, 0])
    batch = processor(
        images=[[RED, RED], []],
        text=prompts,
        return_offsets_mapping=True,
        return_text_replacement_offsets=True,
        return_tensors=None,
    )
    for prompt, ids, mask, spans, replaced in zip(
        prompts, *(batch[key] for key in ("input_ids", "attention_mask", "offset_mapping", "text_replacement_offsets")),
        strict=True,
    ):  # fmt: skip
        expanded = prompt.replace(processor.image_token, processor.image_token * PATCHES)
        assert len(ids) == len(spans)
        for token, attended, (start, end) in zip(ids, mask, spans, strict=True):
            if attended:
                assert expanded[start:end] == processor.tokenizer.decode([token])
            else:
                assert (start, end) == (0, 0)
        for entry in replaced:
            assert prompt[slice(*entry["span"])] == entry["text"] == processor.image_token
            assert expanded[slice(*entry["new_span"])] == entry["replacement"]
    assert [len(entries) for entries in batch["text_replacement_offsets"]] == [2, 0]


def test_assistant_masks_cover_the_answers_when_images_stand_before_them(chatml_processor: MoAIProcessor) -> None:
    answers = ["Two <|im_start|> dogs.", "No."]
    conversation = []
    for answer in answers:
        ask = [{"type": "image", "image": RED}, {"type": "text", "text": "How many <image> here?"}]
        conversation.append({"role": "user", "content": ask})
        conversation.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    batch = chatml_processor.apply_chat_template(
        conversation, TEMPLATE, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    (ids,), (mask,) = np.asarray(batch["input_ids"]), np.asarray(batch["assistant_masks"])
    assert chatml_processor.tokenizer.decode(ids[mask == 1]) == "".join(answers)
    assert (ids == chatml_processor.image_token_id).sum() == 2 * PATCHES


def test_offsets_are_refused_when_the_tokenizer_cannot_tell(processor: MoAIProcessor) -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens([AddedToken(processor.image_token, special=True)], special_tokens=True)
    other = MoAIProcessor(processor.image_processor, tokenizer, num_image_tokens=PATCHES)
    with pytest.raises(ValueError, match="fast tokenizer, got ByT5Tokenizer"):
        other(questions="a", return_offsets_mapping=True)


def test_offsets_are_refused_when_there_are_answers(chatml_processor: MoAIProcessor) -> None:
    with pytest.raises(ValueError, match="Leave `answers` out"):
        chatml_processor(questions="a", answers="b", return_offsets_mapping=True)


def test_token_count_equals_the_batchs_when_planned_without_images(processor: MoAIProcessor) -> None:
    planned = processor._get_num_multimodal_tokens(image_sizes=[(10, 20), (400, 300)])
    batch = processor(images=[RED, RED], questions=["a", "a"])
    per_image = (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist()
    assert planned["num_image_tokens"] == per_image
    assert planned["num_image_patches"] == [1, 1]
    assert "num_image_tokens" not in processor._get_num_multimodal_tokens()


def test_tokenizer_settings_hold_when_a_call_leaves_them_open(
    processor: MoAIProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lengths(**arguments: object) -> list[int]:
        batch = processor(images=[RED] * 2, questions=["dogs?", "How many dogs?"], return_tensors=None, **arguments)
        return [len(row) for row in batch["input_ids"]]

    longest, init = max(lengths()), processor.tokenizer.init_kwargs
    monkeypatch.setattr(processor.tokenizer, "init_kwargs", init | {"padding": "max_length", "max_length": 117})
    assert lengths() == [117, 117] and lengths(max_length=120) == [120, 120] and lengths(padding=True) == [longest] * 2
    assert lengths(text_kwargs={"padding": True}) == [longest] * 2
    monkeypatch.setattr(processor.tokenizer, "init_kwargs", init | {"padding": False, "padding_side": "right"})
    assert len(set(lengths())) == 2
    batch = processor(images=[RED] * 2, questions=["dogs?", "How many dogs?"], padding=True)
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]  # a prompt is padded on the left all the same
    monkeypatch.setattr(processor.tokenizer, "init_kwargs", init | {"max_length": 10})
    assert max(lengths()) == longest  # as for the tokenizer: no bound by itself
    monkeypatch.setattr(processor.tokenizer, "init_kwargs", init | {"max_length": longest - 1, "truncation": True})
    with pytest.warns(UserWarning, match="was cut"):
        assert max(lengths()) == longest - 1
