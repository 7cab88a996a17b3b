"""OpenAI's chat completions as data: what a request may hold, and how answers are written."""

from __future__ import annotations

import base64
import io
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from verbalizers.core.valid_text import make_valid

from ..pipeline.rows import AnswerRow, TokenChoice

__all__ = ["ChatRequest", "Extras", "Overlay", "ReplyWriter", "describe_error", "read_messages", "write_part"]

_Stop = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageAddress(_Strict):
    """Where an image is: a data URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Strict):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(_Strict):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Extras(_Strict):
    """What only this server knows: a request's ``moai``.

    Attributes:
        scenes: Findings brought along, one per image, as ``Scene.to_dict`` writes them: nobody looks then.
        verbalizers: Kinds of findings that the model is told; None = all, an empty list = none.
        options: The model's own; MoAI: ``{"routing": "uniform"}`` or three weights.
        num_beams: Width of a beam search; 1 = none.
        explain: Hand back scenes, verbalization, and what the model tells about how it answered.
    """

    scenes: list[dict[str, Any]] | None = None
    verbalizers: list[str] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    num_beams: Annotated[int, Field(ge=1)] = 1
    explain: bool = False


class ChatRequest(_Strict):
    """A request for a chat completion. What could change an answer and is not done here is refused by name."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=512)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: int | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1)] | None = 1
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    moai: Extras = Field(default_factory=Extras)
    # Neutral values of what is not done, and what changes no answer: clients send them unasked.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    modalities: list[Literal["text"]] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class Overlay(_Strict):
    """A request for a drawing of what was found in an image.

    Attributes:
        image: A data URL.
        scene: What was found, as an answer tells it.
        kinds: What of it is drawn; None = all.
    """

    image: str
    scene: dict[str, Any]
    kinds: list[str] | None = None


def read_messages(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages as transformers writes them, and the addresses of their images in reading order.

    Raises:
        ValueError: The last turn is not a user's with a text, the system speaks later than first, or an image stands in
            another turn than a user's.
    """
    read, urls = [], []
    for index, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        if role == "system" and index:
            raise ValueError("expected the system's message first, got one later. Put it in front.")
        content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        parts: list[dict[str, Any]] = []
        for part in content:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": make_valid(part.text)})
                continue
            if role != "user":
                raise ValueError(f"expected images in a user's messages, got one in the {role}'s. Move it.")
            urls.append(part.image_url.url)
            parts.append({"type": "image"})
        read.append({"role": role, "content": parts})
    last = read[-1]
    if last["role"] != "user" or not any(part.get("text", "").strip() for part in last["content"]):
        raise ValueError("expected a user's message with a question at the end, got none. Ask something.")
    return read, urls


def write_part(part: str | Image.Image) -> dict[str, Any]:
    """A part of an answer in the form of a message's: a text, or an image as a data URL."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    buffer = io.BytesIO()
    part.save(buffer, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def describe_error(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": make_valid(message), "type": kind, "param": param, "code": code}}


class ReplyWriter:
    """Writes a request's answers whole, or one in pieces.

    Args:
        model: The model's name.
    """

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def write_whole(self, answers: Mapping[AnswerRow, str], extras: Mapping[str, Any] | None) -> dict[str, Any]:
        """Finished answers of one prompt."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": _write_choices(row.choices) if row.num_likeliest is not None else None,
                "finish_reason": row.finish_reason or "stop",
            }
            for index, (row, text) in enumerate(answers.items())
        ]
        reply = {**self._head, "object": "chat.completion", "choices": choices, "usage": write_usage(*answers)}
        return reply if extras is None else reply | {"moai": extras}

    def write_piece(
        self,
        delta: Mapping[str, Any],
        choices: Sequence[TokenChoice] | None = None,
        finish_reason: str | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A piece of a stream."""
        choice = {
            "index": 0,
            "delta": dict(delta),
            "logprobs": None if choices is None else _write_choices(choices),
            "finish_reason": finish_reason,
        }
        piece = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return piece if extras is None else piece | {"moai": extras}

    def write_usage_piece(self, row: AnswerRow) -> dict[str, Any]:
        """The piece of a stream that counts tokens."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": write_usage(row)}


def write_usage(*rows: AnswerRow) -> dict[str, int]:
    """Tokens of a prompt and of its answers."""
    num_prompt, num_new = rows[0].num_prompt_tokens, sum(row.num_tokens for row in rows)
    return {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new}


def _write_choices(choices: Sequence[TokenChoice]) -> dict[str, Any]:
    return {
        "content": [
            _write_token(choice.token, choice.logprob)
            | {"top_logprobs": [_write_token(*pair) for pair in choice.likeliest]}
            for choice in choices
        ],
        "refusal": None,
    }


def _write_token(token: str, logprob: float) -> dict[str, Any]:
    # OpenAI writes -9999 for what cannot be: JSON has no infinity.
    return {"token": token, "logprob": max(logprob, -9999.0), "bytes": list(token.encode("utf-8", "replace"))}
