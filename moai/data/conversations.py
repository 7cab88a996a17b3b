"""Parsing of conversations: LLaVA's `conversations` and TRL's `messages` to the same list of messages.

A message is ``{"role": "system" | "user" | "assistant", "content": parts}`` as transformers' chat templates read it.
Parts, ``{"type": "image"}`` and ``{"type": "text", "text": words}``, stand in reading order.

Texts are data. The literal `<image>` is the place of an image only in a question, and there

- in LLaVA's `conversations` always, as the format says: as many of them as the row has images;
- in `messages` where the row has images and no part of type "image" says where they stand (LLaMA-Factory's form).

Everywhere else it is a word. One image behind all words of its turn is put in front of them, as LLaVA's own loader does
and as questions are asked later; every other image keeps its place between the words.

Models that read documents take `messages` that are one turn of the assistant, images and texts in any order, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LLAVA_PLACEHOLDER", "answer_turns", "count_images", "parse_conversation", "text_of"]

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
# Where other formats' parts of type image name the image itself.
_IMAGE_KEYS = ("image", "image_url", "url", "path", "base64", "data")
_ROLES = ("system", "user", "assistant")


def parse_conversation(row: Any, num_images: int, allows_documents: bool = False) -> list[dict[str, Any]]:
    """The messages of one row.

    Args:
        row: A mapping with `messages` (TRL's shape: `role` and `content`, text or parts), or with `conversations`
            (LLaVA's: `from` and `value`). `system` beside them is the system's turn.
        num_images: Images that the row brings along.
        allows_documents: Whether it may be a document: one turn of the assistant, which may hold images.

    Returns:
        Messages; where no turn says where the images stand, they stand in the first user turn.

    Raises:
        ValueError: It is neither, a turn is malformed or out of order, or its images cannot be told.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object with `conversations` or `messages`, got {_show(row)}")
    if row.get("messages") is not None:
        messages = [_parse_message(turn, number) for number, turn in enumerate(_turns(row, "messages"), start=1)]
        if allows_documents and [message["role"] for message in messages] == ["assistant"]:
            _check_document(messages[0], num_images)
            return messages
        for number, message in enumerate(messages, start=1):
            if message["role"] == "assistant" and count_images([message]):
                raise ValueError(f"turn {number}: an answer holds an image; a language model answers with words only")
        if num_images and not count_images(messages):
            for message in messages:
                if message["role"] == "user":
                    message["content"] = _split_at_placeholders(text_of(message))
    elif row.get("conversations") is not None:
        messages = [_parse_llava(turn, number) for number, turn in enumerate(_turns(row, "conversations"), start=1)]
    else:
        raise ValueError(f"expected `conversations` or `messages`, got the keys {sorted(map(str, row))[:12]}")
    if system := row.get("system"):  # LLaMA-Factory's place for it
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": _system_text(system)}]})
    _check_order(messages)
    _place_images(messages, num_images)
    return messages


def answer_turns(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the assistant's messages: each one is the target of a training sample."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def count_images(messages: Sequence[Mapping[str, Any]]) -> int:
    """Images that messages of `parse_conversation` show."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def text_of(message: Mapping[str, Any]) -> str:
    """Words of a message of `parse_conversation`."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


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


def _named_image(part: Mapping[str, Any]) -> Any:
    """The image that a part names itself, None where it is a place only; tables fill what a part lacks with None."""
    for key in _IMAGE_KEYS:
        value = part.get(key)
        if value and not (isinstance(value, Mapping) and not any(value.values())):
            return value
    return None


def _system_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected `system` to be text, got {_show(value)}")
    return value.strip()


def _split_at_placeholders(text: str) -> list[dict[str, Any]]:
    """The parts of a question whose placeholders are images."""
    pieces = text.split(LLAVA_PLACEHOLDER)
    if len(pieces) == 2 and not pieces[1].strip():
        pieces.reverse()
    parts: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": piece}]
    return _without_margins(parts)


def _without_margins(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts without white space before their first and behind their last words; what stands between words is kept."""
    kept: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "text" and not any(other["type"] == "text" for other in kept):
            part = {"type": "text", "text": part["text"].lstrip()}
        if part["type"] == "image" or part["text"]:
            kept.append(part)
    texts = [part for part in kept if part["type"] == "text"]
    if texts and kept[-1] is texts[-1]:
        kept[-1] = {"type": "text", "text": texts[-1]["text"].rstrip()}
    return [part for part in kept if part["type"] == "image" or part["text"]]


def _parse_llava(turn: Any, number: int) -> dict[str, Any]:
    """`{"from": ..., "value": ...}`; placeholders in a human turn are images, elsewhere they are words."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {number}: expected an object with `from` and `value`, got {_show(turn)}")
    speaker = turn.get("from")
    role = _LLAVA_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(f"turn {number}: expected `from` to be human, gpt or system, got {_show(speaker)}")
    text = _words(turn.get("value"), number)
    is_question = role == "user"
    content = _split_at_placeholders(text) if is_question else _without_margins([{"type": "text", "text": text}])
    return {"role": role, "content": content}


def _parse_message(turn: Any, number: int) -> dict[str, Any]:
    """`{"role": ..., "content": text or parts}`; images are parts of type "image", text is always words."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {number}: expected an object with `role` and `content`, got {_show(turn)}")
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        raise ValueError(f"turn {number}: expected `role` to be one of {_ROLES}, got {_show(role)}")
    if isinstance(content, str):
        return {"role": role, "content": _without_margins([{"type": "text", "text": content}])}
    if not isinstance(content, Sequence) or not content:
        raise ValueError(f"turn {number}: expected `content` to be text or a list of parts, got {_show(content)}")
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "image_url"):
            if (named := _named_image(part)) is not None:
                raise ValueError(
                    f"turn {number}: expected the images of a row under its key `images`, got {_show(named)} in a part "
                    f"of type {kind}. Name it there, and leave the part as its place"
                )
            parts.append({"type": "image"})
        elif kind == "text":
            words = _words(part.get("text"), number)
            if parts and parts[-1]["type"] == "text":
                words = f"{parts.pop()['text'].rstrip()} {words.lstrip()}"
            parts.append({"type": "text", "text": words})
        else:
            raise ValueError(f"turn {number}: expected parts of type image or text, got {_show(part)}")
    return {"role": role, "content": _without_margins(parts)}


def _check_document(message: Mapping[str, Any], num_images: int) -> None:
    if not text_of(message):
        raise ValueError("expected words in a document, got none")
    if (num_placed := count_images([message])) != num_images:
        raise ValueError(
            f"expected a part of type image in a document for each of its images, got {num_placed} for {num_images}"
        )


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
        if not text_of(message) and (role != "user" or not message["content"]):
            raise ValueError(f"turn {number}: expected words from the {role}, got none")
    if not answer_turns(messages):
        raise ValueError("expected at least one answer of the assistant, got none")


def _place_images(messages: list[dict[str, Any]], num_images: int) -> None:
    """Match placeholders and images; without placeholders the first question gets the images."""
    num_placed = count_images(messages)
    if num_placed == 0 and num_images > 0:
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [{"type": "image"}] * num_images + first["content"]
    elif num_placed != num_images:
        raise ValueError(
            f"expected as many images as the turns mention, got {num_images} images and {num_placed} mentions "
            f"({LLAVA_PLACEHOLDER} in a question, or a part of type image). Mention each image once, in order"
        )
