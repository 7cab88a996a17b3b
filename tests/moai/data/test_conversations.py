"""Conversations of every form: where their images stand, and which rows are refused."""

from __future__ import annotations

from typing import Any

import pytest

from moai import MoAIProcessor
from moai.data.conversations import parse_conversation

SHOWN = {"type": "image"}


def spell(messages: list[dict[str, Any]]) -> str:
    """Parts of all messages, images as #."""
    parts = [part for message in messages for part in message["content"]]
    return "|".join("#" if part["type"] == "image" else part["text"] for part in parts)


def row_of(form: str, question: str, answer: str = "yes") -> dict[str, Any]:
    if form == "conversations":
        return {form: [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("form", ["conversations", "messages"])
@pytest.mark.parametrize(
    ("question", "num_images", "expected"),
    [
        ("<image>\nWhat?", 1, "#|What?|yes"),
        ("What?\n<image>", 1, "#|What?|yes"),
        ("<image>", 1, "#|yes"),
        ("Is <image> red?", 1, "Is |#| red?|yes"),
        ("<image>\n<image>\nWhich? ", 2, "#|#|Which?|yes"),
        ("First <image> then <image>", 2, "First |#| then |#|yes"),
        (" <image> A <image>\n<image> B", 3, "#|A |#|\n|#| B|yes"),
        ("What?", 2, "#|#|What?|yes"),
    ],
)
def test_images_keep_their_places_when_a_question_writes_placeholders(
    form: str, question: str, num_images: int, expected: str
) -> None:
    assert spell(parse_conversation(row_of(form, question), num_images)) == expected


def test_images_keep_their_places_when_a_message_is_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": " Is "}, SHOWN, {"type": "text", "text": " like"}, {"type": "text", "text": "it"}]
    question = {"role": "user", "content": [*parts, {"type": "image_url", "text": None}]}
    row = {"messages": [question, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]}
    assert spell(parse_conversation(row, 2)) == "Is |#| like it|#|yes"


def test_placeholder_is_a_word_when_the_row_says_otherwise_where_images_stand() -> None:
    question = {"role": "user", "content": [SHOWN, {"type": "text", "text": "What is <image> in HTML?"}]}
    row = {"messages": [question, {"role": "assistant", "content": "A tag: <image>."}]}
    assert spell(parse_conversation(row, 1)) == "#|What is <image> in HTML?|A tag: <image>."
    assert spell(parse_conversation(row_of("messages", "What is <image>?"), 0)) == "What is <image>?|yes"
    assert spell(parse_conversation(row_of("messages", "<image> a?", "<image> b"), 1)) == "#|a?|<image> b"


@pytest.mark.parametrize("form", ["conversations", "messages"])
@pytest.mark.parametrize(("question", "num_images"), [("<image> <image> What?", 1), ("<image> What?", 2)])
def test_row_is_refused_with_both_counts_when_images_and_placeholders_differ(
    form: str, question: str, num_images: int
) -> None:
    with pytest.raises(ValueError, match=f"got {num_images} images and {3 - num_images} mentions.*<image>"):
        parse_conversation(row_of(form, question), num_images)


@pytest.mark.parametrize("form", ["conversations", "messages"])
@pytest.mark.parametrize(
    ("question", "answer", "reason"), [("", "a", "words from the user"), (" \n", "a", "user"), ("q", " ", "assistant")]
)
def test_row_is_refused_when_question_or_answer_is_empty(form: str, question: str, answer: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_conversation(row_of(form, question, answer), 0)


def test_row_is_refused_when_llava_mentions_an_image_that_it_lacks() -> None:
    with pytest.raises(ValueError, match="got 0 images and 1 mentions"):
        parse_conversation(row_of("conversations", "<image>\nWhat?"), 0)


@pytest.mark.parametrize("name", ["default", "demo"])
def test_prompt_shows_images_in_their_order_when_turns_bring_further_ones(
    processor: MoAIProcessor, chatml_processor: MoAIProcessor, name: str
) -> None:
    """The order of the placeholders is that of the images, whichever the template, and of their turns' words."""
    turns = ["<image>Is it <image> here?", "<image> or there?", "or <image> or <image>?"]
    pairs = [turn for text in turns for turn in ({"from": "human", "value": text}, {"from": "gpt", "value": "no"})]
    messages = parse_conversation({"conversations": pairs}, 5)
    for any_processor in (processor, chatml_processor):
        prompt = any_processor.apply_chat_template(messages, name, add_generation_prompt=True)
        marks = [
            "<image>",
            "Is it ",
            "<image>",
            " here?",
            "<image>",
            "or there?",
            "or ",
            "<image>",
            " or ",
            "<image>",
            "?",
        ]
        place = -1
        for mark in marks:
            assert (place := prompt.find(mark, place + 1)) >= 0, (mark, prompt)
        assert prompt.count("<image>") == 5


def test_system_beside_the_turns_is_the_first_turn_when_given() -> None:
    for form in ("conversations", "messages"):
        row = row_of(form, "<image> Why?") | {"system": " Be brief. "}
        messages = parse_conversation(row, 1)
        assert [message["role"] for message in messages] == ["system", "user", "assistant"]
        assert spell(messages) == "Be brief.|#|Why?|yes"
        assert (
            parse_conversation(row | {"system": ""}, 1) == parse_conversation(row | {"system": None}, 1) == messages[1:]
        )
    twice = {
        "system": "A",
        "conversations": [{"from": "system", "value": "B"}, *row_of("conversations", "Q")["conversations"]],
    }
    with pytest.raises(ValueError, match="system's turn first"):
        parse_conversation(twice, 0)
    with pytest.raises(ValueError, match="`system` to be text, got 3"):
        parse_conversation(row_of("messages", "Q") | {"system": 3}, 0)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.jpg"},
        {"type": "image_url", "image_url": {"url": "a.jpg"}},
        {"type": "image", "url": "https://x.org/a.jpg"},
    ],
)
def test_part_that_names_its_own_image_is_refused_when_images_stand_in_the_row(part: dict[str, Any]) -> None:
    question = {"role": "user", "content": [part, {"type": "text", "text": "Q"}]}
    for num_images in (0, 1):  # with one, the row's image would be taken for the part's
        with pytest.raises(
            ValueError, match="turn 1: expected the images of a row under its key `images`, got .*a.jpg"
        ):
            parse_conversation({"messages": [question, {"role": "assistant", "content": "a"}]}, num_images)


def test_part_is_a_place_when_a_table_fills_its_fields_with_nothing() -> None:
    part = {"type": "image", "text": None, "image": None, "image_url": {"url": None}}
    question = {"role": "user", "content": [part, {"type": "text", "text": "Q"}]}
    assert spell(parse_conversation({"messages": [question, {"role": "assistant", "content": "a"}]}, 1)) == "#|Q|a"
