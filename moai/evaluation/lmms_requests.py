"""lmms-eval's requests to a pipeline: read, grouped, answered, put back in order.

Knows nothing of lmms-eval but the entry point: what lmms-eval hands over are messages and plain settings
(:mod:`moai.evaluation.lmms_model` takes them out of its own classes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from moai.pipeline.answers import Answer
from moai.pipeline.pipeline import Pipeline
from moai.pipeline.queries import Query, hash_image
from verbalizers import Scene

__all__ = ["ChatRequest", "RequestAnswerer", "cut_at", "describe_model", "parse_batch_size", "split_settings"]

logger = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 128
#: Batch size for "auto", where no largest one is named.
_AUTO_BATCH_SIZE = 8
#: Images whose verbalizations are kept.
_KEPT_IMAGES = 256


def describe_model() -> Any:
    """What the entry point ``lmms_eval.models`` gives: where the model is; lmms-eval is imported now, not before."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="moai", chat_class_path="moai.evaluation.lmms_model.MoAI")


@dataclass(frozen=True)
class ChatRequest:
    """One request.

    Attributes:
        images: In reading order.
        messages: As transformers writes them; ``{"type": "image"}`` is an image's place.
        settings: Of its generation, as the task names them.
        choices: Instead of generating: answers whose log-probabilities are asked for.
    """

    images: Sequence[Image.Image]
    messages: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]], **fields: Any) -> ChatRequest:
        """Take images out of messages whose parts hold them (``url``, or ``image``).

        Raises:
            ValueError: A part is neither text nor an image.
        """
        images, read = [], []
        for message in messages:
            parts = []
            for part in message["content"]:
                if part["type"] == "image":
                    image = part.get("url", part.get("image"))
                    if not isinstance(image, Image.Image):
                        raise ValueError(f"expected an image in a message, got {type(image).__name__}.")
                    images.append(image.convert("RGB"))
                    parts.append({"type": "image"})
                elif part["type"] == "text":
                    parts.append({"type": "text", "text": part["text"]})
                else:
                    raise ValueError(f"expected text and images in a message, got {part['type']!r}.")
            read.append({"role": message["role"], "content": parts})
        return cls(images, read, **fields)


def parse_batch_size(value: Any, largest: Any = None) -> int:
    """A batch size as lmms-eval hands it over: a number, text, or "auto".

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, str) and value.startswith("auto"):
        return int(largest or _AUTO_BATCH_SIZE)
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if size < 1:
        raise ValueError(f"expected a batch size of 1 or more, or auto, got {value!r}.")
    return size


def split_settings(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], int, dict[str, Any]]:
    """A task's generation settings: where answers end, their longest, and what ``generate`` takes.

    Args:
        settings: ``until``, ``max_new_tokens`` (128), ``temperature``, ``top_p``, ``num_beams``, ``do_sample``; others
            are lmms-eval's own.
    """
    until = settings.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    temperature = settings.get("temperature") or 0
    is_sampling = bool(settings.get("do_sample", temperature > 0)) and temperature > 0
    chosen: dict[str, Any] = {"do_sample": True, "temperature": temperature} if is_sampling else {}
    if is_sampling and settings.get("top_p") is not None:
        chosen["top_p"] = settings["top_p"]
    if (settings.get("num_beams") or 1) > 1:
        chosen["num_beams"] = settings["num_beams"]
    return until, int(settings.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS), chosen


def cut_at(text: str, until: Iterable[str]) -> str:
    """An answer up to the first of some strings, white space at its ends removed."""
    for mark in until:
        text = text.split(mark)[0] if mark else text
    return text.strip()


class RequestAnswerer:
    """Answers requests of any mixture in batches.

    Args:
        pipeline: Of any model.
        batch_size: Requests per batch.
        options: The model's own, by name.
    """

    def __init__(self, pipeline: Pipeline, batch_size: int, options: Mapping[str, Any] | None = None) -> None:
        self.pipeline, self.batch_size, self.options = pipeline, batch_size, dict(options or {})
        self._images: dict[Any, Image.Image] = {}
        self._seen: dict[Any, Scene] = {}

    def generate(self, requests: Sequence[ChatRequest], show: Callable[[int], None] = lambda num: None) -> list[str]:
        """Answers in the order of the requests; what cannot be answered is logged and is "".

        Args:
            requests: Those of equal settings are answered together, those about one image one after the other.
            show: Told how many are done.
        """
        answers = self._run(requests, show)
        pairs = zip(requests, answers, strict=True)
        return [cut_at(answer.answer or "", split_settings(request.settings)[0]) for request, answer in pairs]

    def rank(self, requests: Sequence[ChatRequest]) -> list[dict[str, float]]:
        """The log-probability of each choice (its end included), in the order of the requests."""
        return [dict(answer.report.get("choices", {})) for answer in self._run(requests, lambda num: None)]

    def _run(self, requests: Sequence[ChatRequest], show: Callable[[int], None]) -> list[Answer]:
        groups: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            key = repr(sorted(request.settings.items(), key=lambda item: item[0])), request.choices
            groups.setdefault(key, []).append(index)
        answers, num_done = [Answer((), error="not asked")] * len(requests), 0
        for (_, choices), indices in groups.items():
            for start in range(0, len(indices), self.batch_size):
                part = indices[start : start + self.batch_size]
                for index, answer in zip(part, self._answer([requests[i] for i in part], choices), strict=True):
                    if answer.error is not None:
                        logger.warning("request %d has no answer: %s", index, answer.error)
                    answers[index] = answer
                num_done += len(part)
                show(num_done)
        return answers

    def _answer(self, requests: Sequence[ChatRequest], choices: tuple[str, ...]) -> list[Answer]:
        _, max_new_tokens, generate = split_settings(requests[0].settings)
        queries = []
        for index, request in enumerate(requests):
            images = [self._images.setdefault(hash_image(image), image) for image in request.images]
            queries.append(Query(index, images, request.messages, [None] * len(images), len(requests)))
        self.pipeline.prepare_queries(queries, max_new_tokens)
        usable = [query for query in queries if query.error is None]
        self.pipeline.verbalize_queries(usable, self._seen)
        options = self.options | ({"choices": list(choices)} if choices else {})
        found = self.pipeline.generate_answers(
            usable, options, None, bool(choices), max_new_tokens=max_new_tokens, **generate
        )
        if len(self._images) > _KEPT_IMAGES:
            self._images, self._seen = {}, {}
        return [found.get(query.index, Answer((), error=query.error)) for query in queries]
