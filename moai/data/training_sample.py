"""Training samples and their length in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from moai.data.conversations import count_images, text_of
from moai.models.moai.processing_moai import MoAIProcessor

__all__ = ["BadSampleError", "LengthEstimator", "TrainingSample"]


class BadSampleError(ValueError):
    """A sample that cannot be trained on; the message says why."""


@dataclass(frozen=True)
class TrainingSample:
    """One training sample: a row of a batch before it is encoded.

    Attributes:
        place: Where it comes from: file, line and turn, or scene.
        prompt: Rendered prompt; its placeholders and control tokens count, those of its data are defused.
        answer: The words to learn, as data.
        images: Its images, RGB, in the order of the placeholders.
        auxiliary_text: What verbalizers found; None = the data set has no auxiliary input.
        auxiliary_image: Painted panoptic map `(H, W, 3)` uint8; None = the data set has no maps.
    """

    place: str
    prompt: str
    answer: str
    images: tuple[Image.Image, ...]
    auxiliary_text: str | None = None
    auxiliary_image: np.ndarray | None = None


class LengthEstimator:
    """Lengths of samples in tokens, estimated from their texts: each is encoded once, no template is rendered.

    What the template adds per turn and per image is measured once. Words that merge with the template's at the
    border of a turn make the estimate differ by a token, images between words by one or two each.

    Args:
        processor: Whose tokenizer and templates count.
        chat_template: Template (name); None = the default.
    """

    def __init__(self, processor: MoAIProcessor, chat_template: str | None = None) -> None:
        self.processor, self.chat_template = processor, chat_template

    def count(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self.processor.encoder.guard.encode(text))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that ends where the next answer begins.

        Raises:
            BadSampleError: A text reads as control tokens however it is written.
        """
        try:
            return self.processor.apply_chat_template(list(messages), self.chat_template, add_generation_prompt=True)
        except ValueError as error:
            raise BadSampleError(str(error)) from error

    def measure(self, prompt: str, answer: str | None = None) -> int:
        """The exact number of tokens of one rendered sample."""
        return len(self.processor.encoder.encode_sample(prompt, answer)["input_ids"])

    @cached_property
    def _overhead(self) -> dict[str, int]:
        """Tokens that the template adds: to the first question, per earlier answer, per further question, per image."""
        user, reply, system = (
            {"role": role, "content": [{"type": "text", "text": "a"}]} for role in ("user", "assistant", "system")
        )
        image = {"role": "user", "content": [{"type": "image"}, *user["content"]]}
        word = self.count("a")
        first = self.measure(self.render([user]))
        return {
            "first": first - word,
            "round": self.measure(self.render([user, reply, user])) - first - 2 * word,
            "system": self.measure(self.render([system, user])) - first - word,
            "image": self.measure(self.render([image])) - first,
        }

    def lengths(self, messages: Sequence[Mapping[str, Any]], turns: Sequence[int]) -> list[int]:
        """Tokens of the samples of one conversation.

        Args:
            messages: The conversation.
            turns: Indices of the assistant's messages; each is one sample with all before it as prompt.
        """
        counts = [self.count(text_of(message)) for message in messages]
        overhead, lengths = self._overhead, []
        for turn in turns:
            roles = [message["role"] for message in messages[:turn]]
            length = overhead["first"] + overhead["round"] * roles.count("assistant")
            length += overhead["system"] * roles.count("system") + overhead["image"] * count_images(messages[:turn])
            lengths.append(length + sum(counts[: turn + 1]) + 1)
        return lengths
