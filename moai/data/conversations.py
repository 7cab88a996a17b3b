"""Parsing of conversations: LLaVA's `conversations` and TRL's `messages` to the same list of messages.

A message is ``{"role": "system" | "user" | "assistant", "content": [{"type": "image"}, ..., {"type": "text", "text":
words}]}``, as transformers' chat templates read it. Texts stay data: the literal placeholder makes an image only where
LLaVA's format says so, in a human turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LLAVA_PLACEHOLDER", "answer_turns", "parse_conversation"]

#: LLaVA's mark of an image inside a human turn.
LLAVA_PLACEHOLDER = "<image>"
_LLAVA_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
_ROLES = ("system", "user", "assistant")


def parse_conversation(row: Any, num_pictures: int) -> list[dict[str, Any]]:
    """The messages of one row.

    Args:
        row: A mapping with `messages` (TRL's shape: `role` and `content`, text or parts), or with `conversations`
            (LLaVA's: `from` and `value`).
        num_pictures: Images that the row brings along.

    Returns:
        Messages; where no turn says where the images stand, they stand in the first user turn.

    Raises:
        ValueError: It is neither, a turn is malformed or out of order, or its images cannot be told.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object with `conversations` or `messages`, got {_show(row)}")
    if row.get("messages") is not None:
        messages = [_parse_message(turn, number) for number, turn in enumerate(_turns(row, "messages"), start=1)]
    elif row.get("conversations") is not None:
        messages = [_parse_llava(turn, number) for number, turn in enumerate(_turns(row, "conversations"), start=1)]
    else:
        raise ValueError(f"expected `conversations` or `messages`, got the keys {sorted(map(str, row))[:12]}")
    _check_order(messages)
    _place_images(messages, num_pictures)
    return messages


def answer_turns(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the assistant's messages: each one is the target of a training sample."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _show(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def _turns(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    turns = row[key]
    if isinstance(turns, str | Mapping) or not isinstance(turns, Sequence) or not turns:
        raise ValueError(f"expected `{key}` to be a list of turns, got {_show(turns)}")
    return turns


def _words(value: Any, number: int) -> str:
    if not isinstance(value, str):
        raise ValueError(f"turn {number}: expected text, got {_show(value)}")
    return value


def _message(role: str, num_images: int, text: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image"}] * num_images
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def _parse_llava(turn: Any, number: int) -> dict[str, Any]:
    """`{"from": ..., "value": ...}`; placeholders in a human turn are images, elsewhere they are words."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {number}: expected an object with `from` and `value`, got {_show(turn)}")
    speaker = turn.get("from")
    role = _LLAVA_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(f"turn {number}: expected `from` to be human, gpt or system, got {_show(speaker)}")
    text = _words(turn.get("value"), number)
    if role != "user":
        return _message(role, 0, text.strip())
    pieces = text.split(LLAVA_PLACEHOLDER)
    return _message(role, len(pieces) - 1, " ".join(piece.strip() for piece in pieces if piece.strip()))


def _parse_message(turn: Any, number: int) -> dict[str, Any]:
    """`{"role": ..., "content": text or parts}`; images are parts of type "image", text is always words."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {number}: expected an object with `role` and `content`, got {_show(turn)}")
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        raise ValueError(f"turn {number}: expected `role` to be one of {_ROLES}, got {_show(role)}")
    if isinstance(content, str):
        return _message(role, 0, content.strip())
    if not isinstance(content, Sequence) or not content:
        raise ValueError(f"turn {number}: expected `content` to be text or a list of parts, got {_show(content)}")
    num_images, words = 0, []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "image_url"):
            num_images += 1
        elif kind == "text":
            words.append(_words(part.get("text"), number).strip())
        else:
            raise ValueError(f"turn {number}: expected parts of type image or text, got {_show(part)}")
    if num_images and role == "assistant":
        raise ValueError(f"turn {number}: an answer holds an image; a language model answers with words only")
    return _message(role, num_images, " ".join(word for word in words if word))


def _text_of(message: Mapping[str, Any]) -> str:
    return message["content"][-1]["text"]


def _check_order(messages: Sequence[Mapping[str, Any]]) -> None:
    """Every answer follows a question, nothing but images goes without words, and there is an answer."""
    expected = "user"
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role == "system":
            if number != 1:
                raise ValueError(f"turn {number}: expected the system's turn first, got it in the middle")
        elif role != expected:
            raise ValueError(f"turn {number}: expected user and assistant in turn, user first, got {role} out of turn")
        else:
            expected = "assistant" if role == "user" else "user"
        if not _text_of(message) and (role != "user" or len(message["content"]) == 1):
            raise ValueError(f"turn {number}: expected words from the {role}, got none")
    if not answer_turns(messages):
        raise ValueError("expected at least one answer of the assistant, got none")


def _place_images(messages: list[dict[str, Any]], num_pictures: int) -> None:
    """Match placeholders and images; without placeholders the first question gets the images."""
    num_placed = sum(part["type"] == "image" for message in messages for part in message["content"])
    if num_placed == 0 and num_pictures > 0:
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [{"type": "image"}] * num_pictures + first["content"]
    elif num_placed != num_pictures:
        raise ValueError(
            f"expected as many images as the turns mention, got {num_pictures} images and {num_placed} mentions"
        )
