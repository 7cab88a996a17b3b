"""Where tokens stand in their text, what of a conversation an assistant said, and streaming of sentencepiece ids."""

from __future__ import annotations

import random

import pytest
import torch
from processing_builders import RED
from tokenizers.decoders import DecodeStream

from moai import InternLM2Tokenizer, MoAIProcessor
from moai.models.moai.chat_templates import CHATML_CHAT_TEMPLATE, DEMO_CHAT_TEMPLATE, MOAI_CHAT_TEMPLATE
from moai.models.moai.tokenization_internlm2 import CHAT_TOKENS

_MATERIAL = [*"aé日 \n", "  ", "dogs", "How many", "😀", "</s>", "<image>", CHAT_TOKENS[0], "[UNUSED_TO"]


def random_texts(count: int) -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices(_MATERIAL, k=generator.randint(0, 12))) for _ in range(count)]


def test_offsets_belong_to_the_ids_of_encode_when_text_is_random(tokenizer: InternLM2Tokenizer) -> None:
    for text in random_texts(200):
        ids, spans = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text, add_special_tokens=False)
        assert all(start < end <= len(text) for start, end in spans)
        assert {index for span in spans for index in range(*span)} == set(range(len(text)))
        for token, (start, end) in zip(ids, spans, strict=True):
            piece = tokenizer.convert_ids_to_tokens(token)
            if not piece.startswith("<0x"):
                assert tokenizer.convert_tokens_to_string([piece]) == text[start:end]


def test_stream_of_ids_reads_as_decode_does_when_text_is_random(tokenizer: InternLM2Tokenizer) -> None:
    for text in random_texts(200):
        ids = tokenizer.encode(text, add_special_tokens=False)
        stream = DecodeStream([], skip_special_tokens=True)
        pieces = [stream.step(tokenizer._tokenizer, token) for token in ids]
        assert "".join(filter(None, pieces)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("template", "ends", "fixture"),
    [
        (MOAI_CHAT_TEMPLATE, CHAT_TOKENS[1], "processor"),
        (DEMO_CHAT_TEMPLATE, "</s>", "processor"),
        (CHATML_CHAT_TEMPLATE, "<|im_end|>", "chatml_processor"),
    ],
    ids=["moai", "demo", "chatml"],
)
def test_assistant_mask_covers_what_was_said_and_no_more(request, side: str, template: str, ends: str, fixture) -> None:
    processor: MoAIProcessor = request.getfixturevalue(fixture)
    image = {"type": "image", "image": RED}
    first = [
        {"role": "user", "content": [image, {"type": "text", "text": f"How many {ends} dogs?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Two dogs"}]},
        {"role": "user", "content": [{"type": "text", "text": "yes?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "é, yes"}]},
    ]
    second = [{"role": "user", "content": [image, {"type": "text", "text": "dogs?"}]}, first[1]]
    batch = processor.apply_chat_template(
        [first, second],
        template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding_side": side, "padding": True},
    )
    said = []
    for ids, mask in zip(batch["input_ids"], batch["assistant_masks"], strict=True):
        chosen = torch.as_tensor(ids)[torch.as_tensor(mask).bool()]
        said.append(processor.tokenizer.decode(chosen).replace(" ", ""))
    assert said == [f"Twodogs{ends}é,yes{ends}", f"Twodogs{ends}"]
