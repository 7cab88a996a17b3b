"""Training samples of questions with answers, and of documents: texts and images in any order, without a question."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from moai.data.collator import SampleCollator
from moai.data.samples import BadSampleError, Sample
from moai.processing.token_roles import IGNORE_INDEX

from .scenes_interleaved import encode_scenes

__all__ = ["InterleavedCollator", "is_document"]


def is_document(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a sample is a document: nobody asks."""
    return len(messages) == 1


class InterleavedCollator(SampleCollator):
    """Of a question the answer is learned; of a document what :meth:`label_document` says."""

    reads_documents = True

    @abstractmethod
    def write_document(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """A document as a prompt, whose texts are data.

        Args:
            parts: ``{"type": "text", "text": ...}`` and ``{"type": "image"}`` in reading order.
        """

    @abstractmethod
    def label_document(self, input_ids: torch.Tensor) -> torch.Tensor:
        """``(L,)`` labels of a document's ``(L,)`` ids, -100 where there is no loss."""

    def verbalize(self, scene: Any) -> str | None:
        """What stands behind an image; see :func:`.scenes_interleaved.encode_scenes`."""
        return encode_scenes([scene], self.settings.words, self.kinds_of(scene))["context"][0]

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """See :meth:`.SampleCollator.__call__`."""
        written = [self._write(self.insert_scenes(sample)) for sample in samples]
        batch = self.processor(
            images=[list(sample.images) for sample in samples],
            text=[prompt for prompt, _ in written],
            answers=[answer for _, answer in written],
            padding_side=self.padding_side,
        )
        for row, sample in enumerate(samples):
            if is_document(sample.messages):
                padding = batch["attention_mask"][row] == 0  # has no id of its own
                batch["labels"][row] = self.label_document(batch["input_ids"][row]).masked_fill(padding, IGNORE_INDEX)
        return dict(batch)

    def insert_scenes(self, sample: Sample) -> list[Mapping[str, Any]]:
        """A sample's messages with each image's verbalization behind it."""
        if self.settings is None or not sample.scenes:
            return list(sample.messages)
        said = iter(self.verbalize(scene) for scene in sample.scenes)
        messages = []
        for message in sample.messages:
            parts: list[Mapping[str, Any]] = []
            for part in message["content"]:
                parts.append(part)
                if part["type"] == "image" and (text := next(said)):
                    parts.append({"type": "text", "text": f"{text}\n"})
            messages.append({**message, "content": parts})
        return messages

    def _write(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """Prompt and answer; a document is a prompt that nothing but its end follows."""
        if is_document(messages):
            return self.write_document(messages[0]["content"]), ""
        try:
            prompt = self.processor.apply_chat_template(list(messages[:-1]), self.chat_template)
        except ValueError as error:
            raise BadSampleError(str(error)) from error
        return prompt, "".join(part["text"] for part in messages[-1]["content"])

    def measure(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """See :meth:`.SampleCollator.measure`."""
        prompt, answer = self._write(messages)
        return len(self.processor.encode_prompt(prompt)) + len(self.processor.encode_answer(answer)) + 1

    def measure_sample(self, sample: Sample) -> int:
        """See :meth:`.SampleCollator.measure_sample`."""
        return self.measure(self.insert_scenes(sample))

    def find_problem(self, sample: Sample, limit: int | None) -> str | None:
        """See :meth:`.SampleCollator.find_problem`."""
        if is_document(sample.messages) and self.settings is not None and sample.scenes is not None:
            return (
                "expected a document without verbalizations: all of its text is learned. Set `verbalizations: none` "
                "for its source."
            )
        return super().find_problem(sample, limit)
