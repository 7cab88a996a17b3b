"""Training samples as a model with its verbalization in the prompt reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from moai.data.collator import SampleCollator
from moai.data.samples import BadSampleError, Sample

from ...processing.several_images import insert_images, join_texts
from .scenes_prompted import encode_scenes

__all__ = ["PromptedCollator"]

#: No image has fewer tokens than one of this size.
_SMALLEST = (28, 28)


class PromptedCollator(SampleCollator):
    """Samples for any image-text-to-text model of transformers."""

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """See :meth:`.SampleCollator.__call__`."""
        batch = self.processor(
            [insert_images(sample.prompt, sample.images) for sample in samples],
            [self.describe(sample) for sample in samples],
            [sample.answer for sample in samples],
            padding_side=self.padding_side,
            chat_template=self.chat_template,
        )
        return dict(batch)

    def describe(self, sample: Sample) -> str | None:
        """What stands in the prompt of a sample's images; None = nobody looked."""
        if self.settings is None or not sample.scenes:
            return None
        style = self.processor.settings.style
        words = self.settings.words
        texts = [encode_scenes([scene], words, self.kinds_of(scene), style)["context"][0] for scene in sample.scenes]
        return join_texts([text or "" for text in texts])

    def measure(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """See :meth:`.SampleCollator.measure`."""
        return self._measure(messages, [_SMALLEST] * sum(p["type"] == "image" for m in messages for p in m["content"]))

    def measure_sample(self, sample: Sample) -> int:
        """See :meth:`.SampleCollator.measure_sample`."""
        messages = self.processor.insert_context(sample.messages, self.describe(sample))
        return self._measure(messages, [image.size for image in sample.images])

    def _measure(self, messages: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int]]) -> int:
        texts = [{**m, "content": [part for part in m["content"] if part["type"] == "text"]} for m in messages]
        return self._count(texts) + sum(map(self._count_image, sizes))

    def _count(self, messages: Sequence[Mapping[str, Any]]) -> int:
        try:
            return self.processor.count_tokens(messages, self.chat_template)
        except ValueError as error:  # a text reads as control tokens however it is written
            raise BadSampleError(str(error)) from error

    def _count_image(self, size: tuple[int, int]) -> int:
        """Tokens of an image, which its size alone decides."""
        known = self.__dict__.setdefault("_image_tokens", {})
        if size not in known:
            text = {"type": "text", "text": "a"}
            image = {"type": "image", "image": Image.new("RGB", size)}
            alone, shown = ([{"role": "user", "content": parts}] for parts in ([text], [image, text]))
            known[size] = self._count(shown) - self._count(alone)
        return known[size]
