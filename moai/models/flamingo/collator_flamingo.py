"""Training samples as Flamingo reads them: questions with answers, and documents with images between their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from moai.data.collator import SampleCollator
from moai.data.samples import BadSampleError, Sample

from ...processing.token_roles import IGNORE_INDEX
from .gated_cross_attention import count_media
from .labels import label_interleaved
from .prompts import END_OF_CHUNK_TOKEN, IMAGE_TOKEN
from .scenes_flamingo import encode_scenes

__all__ = ["FlamingoCollator"]


class FlamingoCollator(SampleCollator):
    """Samples for Flamingo. Of a question the answer is learned, of a document all text that belongs to an image."""

    reads_documents = True

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
                ids, mask = batch["input_ids"][row : row + 1], batch["attention_mask"][row]
                tokens = self.processor.image_token_id, self.processor.end_of_chunk_token_id
                labels = label_interleaved(ids, *tokens, IGNORE_INDEX)[0]  # padding has no id of its own
                batch["labels"][row] = labels.masked_fill(mask == 0, IGNORE_INDEX)
        # A learned prompt hands the model embeddings, in which images do not show while their tokens are untrained.
        return dict(batch) | {"media_times": count_media(batch["input_ids"], self.processor.image_token_id)}

    def insert_scenes(self, sample: Sample) -> list[Mapping[str, Any]]:
        """A sample's messages with each image's verbalization behind it."""
        if self.settings is None or not sample.scenes:
            return list(sample.messages)
        said = iter(
            encode_scenes([scene], self.settings.words, self.kinds_of(scene))["context"][0] for scene in sample.scenes
        )
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
        """Prompt and answer; a document is a prompt that nothing but the end of its last chunk follows."""
        if is_document(messages):
            return self._write_document(messages[0]), ""
        try:
            prompt = self.processor.apply_chat_template(list(messages[:-1]), self.chat_template)
        except ValueError as error:
            raise BadSampleError(str(error)) from error
        return prompt, "".join(part["text"] for part in messages[-1]["content"])

    def _write_document(self, message: Mapping[str, Any]) -> str:
        """``text<image>text<|endofchunk|><image>text``, as OpenFlamingo writes pages."""
        text, has_image = "", False
        for part in message["content"]:
            if part["type"] == "text":
                text += self.processor.guard.escape(part["text"].strip())
            else:
                text += (END_OF_CHUNK_TOKEN if has_image else "") + IMAGE_TOKEN
                has_image = True
        return text

    def measure(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """See :meth:`.SampleCollator.measure`."""
        guard = self.processor.guard
        prompt, answer = self._write(messages)
        said = guard.encode_continuation(guard.escape(answer)) if answer else []
        return len(guard.prefix_ids) + len(guard.encode(prompt)) + len(said) + 1

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


def is_document(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a sample is a document: nobody asks."""
    return len(messages) == 1
