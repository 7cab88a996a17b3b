"""Training samples as Prismer reads them: one image, a question or the beginning of a caption, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from moai.data.collator import SampleCollator
from moai.data.conversations import count_images, text_of
from moai.data.samples import BadSampleError, Sample

from ..answering import join_turns
from .scenes_prismer import encode_scenes

__all__ = ["PrismerCollator"]


class PrismerCollator(SampleCollator):
    """Samples for Prismer; ``chat_template`` is its task, "vqa" or "caption"."""

    max_images = 1

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """See :meth:`.SampleCollator.__call__`."""
        batch = self.processor(
            images=[sample.images[0] for sample in samples],
            text=[_ask(sample.messages) for sample in samples],
            expert_maps=[self._draw(sample) for sample in samples],
            answers=[sample.answer for sample in samples],
            task=self._task,
            padding_side=self.padding_side,
        )
        return dict(batch)

    @property
    def _task(self) -> str:
        return self.chat_template or "vqa"

    def _draw(self, sample: Sample) -> Any:
        """What experts found in a sample's image; None = nothing."""
        if self.settings is None or not sample.scenes:
            return None
        (scene,) = sample.scenes
        experts = self.processor.experts
        return encode_scenes([scene], self.settings.words, self.kinds_of(scene), experts)["expert_maps"][0]

    def measure(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """See :meth:`.SampleCollator.measure`; no image and no map has tokens of its own."""
        if messages[0]["role"] != "user" or count_images(messages) != 1:
            raise BadSampleError("expected one image and a question about it, first of all, which is what is read")
        return len(self.processor.encode_sample(_ask(messages), text_of(messages[-1]), self._task))


def _ask(messages: Sequence[Mapping[str, Any]]) -> str:
    """The last question of a sample, with the turns before it in front."""
    texts = [text_of(message) for message in messages]
    return join_turns(texts[-2], list(zip(texts[:-2:2], texts[1:-2:2], strict=True)))
