"""Training samples as MoAI reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from moai.data.collator import SampleCollator
from moai.data.conversations import count_images, text_of
from moai.data.samples import BadSampleError, Sample

from ...processing.sample_batching import unique_objects
from ...processing.several_images import join_maps, join_texts
from .scenes_moai import Scene, encode_scenes

__all__ = ["MoAICollator", "share_inputs"]

_BLACK = np.zeros((1, 1, 3), np.uint8)


class MoAICollator(SampleCollator):
    """Samples for MoAI; verbalizations and maps stand beside the prompt."""

    reads_maps = True

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """See :meth:`.SampleCollator.__call__`.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids` (0 padding or answer, 1 image, 2 prompt), `labels` (-100
            but on the answer and its end token), each `(B, L)` int64; `pixel_values` `(images, 3, H, W)` float32
            where there are images; `auxiliary_input_ids`, `auxiliary_attention_mask` `(B, A)` int64 where the data
            set has verbalizations, `auxiliary_pixel_values` `(B, 3, H, W)` float32 where it has maps. Where something
            is shared: U <= B rows of the auxiliary inputs and `auxiliary_index` `(B,)` int64, each sample's row; and
            only different images in `pixel_values` with `image_index` `(images,)`.
        """
        if not samples:
            raise ValueError("expected at least one sample, got none.")
        inputs: dict[str, Any] = {}
        if self.settings is not None:
            _, places = unique_objects([sample.scenes for sample in samples])
            firsts = [samples[places.index(place)] for place in range(max(places) + 1)]
            texts = [self.describe(sample) for sample in firsts]
            inputs["auxiliary_text"] = [texts[place] for place in places]
            if self.settings.map == "always":
                maps = [self.paint(sample) for sample in firsts]
                inputs["auxiliary_images"] = [maps[place] for place in places]
        batch = self.processor(
            images=[list(sample.images) for sample in samples],
            text=[self._render(sample.prompt) for sample in samples],
            answers=[sample.answer for sample in samples],
            padding=True,
            padding_side=self.padding_side,
            return_tensors="pt",
            **inputs,
        )
        return share_inputs(dict(batch), samples, **inputs) if self.is_sharing else dict(batch)

    def describe(self, sample: Sample) -> str:
        """Verbalization of one sample."""
        texts = [self._encode_scene(scene, "never")["auxiliary_text"][0] for scene in sample.scenes or ()]
        return join_texts([text or "" for text in texts])

    def paint(self, sample: Sample) -> np.ndarray:
        """Map of one sample `(H, W, 3)` uint8; those of several images stand side by side."""
        maps = [self._encode_scene(scene, "always")["auxiliary_images"][0] for scene in sample.scenes or ()]
        sizes = [(image.height, image.width, 3) for image in sample.images]
        painted = [np.zeros(size, np.uint8) if one is None else one for one, size in zip(maps, sizes, strict=False)]
        return join_maps(painted) if painted else _BLACK

    def _encode_scene(self, scene: Scene | None, map_mode: str) -> dict[str, list[Any]]:
        return encode_scenes([scene], self.settings.words, self.kinds_of(scene), self.settings.compat, map_mode)

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that ends where the next answer begins."""
        try:
            return self.processor.apply_chat_template(list(messages), self.chat_template, add_generation_prompt=True)
        except ValueError as error:  # a text reads as control tokens however it is written
            raise BadSampleError(str(error)) from error

    # ------------------------------------------------------------------ lengths

    def measure(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """See :meth:`.SampleCollator.measure`."""
        return self._measure(messages[:-1], text_of(messages[-1]))

    def _measure(self, prompt: Sequence[Mapping[str, Any]], answer: str | None = None) -> int:
        return len(self.processor.encoder.encode_sample(self._render(prompt), answer)["input_ids"])

    def _count(self, text: str) -> int:
        return len(self.processor.encoder.guard.encode(text))

    @cached_property
    def _overhead(self) -> dict[str, int]:
        """Tokens that the template adds: to the first question, per earlier answer, per further question, per image."""
        user, reply, system = (
            {"role": role, "content": [{"type": "text", "text": "a"}]} for role in ("user", "assistant", "system")
        )
        image = {"role": "user", "content": [{"type": "image"}, *user["content"]]}
        word, first = self._count("a"), self._measure([user])
        return {
            "first": first - word,
            "round": self._measure([user, reply, user]) - first - 2 * word,
            "system": self._measure([system, user]) - first - word,
            "image": self._measure([image]) - first,
        }

    def estimate(self, messages: Sequence[Mapping[str, Any]], turns: Sequence[int]) -> list[int]:
        """See :meth:`.SampleCollator.estimate`: each text is encoded once, no template is rendered.

        Words that merge with the template's at the border of a turn make the estimate differ by a token, images
        between words by one or two each.
        """
        counts = [self._count(text_of(message)) for message in messages]
        overhead, lengths = self._overhead, []
        for turn in turns:
            roles = [message["role"] for message in messages[:turn]]
            length = overhead["first"] + overhead["round"] * roles.count("assistant")
            length += overhead["system"] * roles.count("system") + overhead["image"] * count_images(messages[:turn])
            lengths.append(length + sum(counts[: turn + 1]) + 1)
        return lengths

    @property
    def bounds_verbalizations(self) -> bool:
        """Whether nothing cuts a verbalization that is too long."""
        return self.processor.max_auxiliary_length is None

    def judge_verbalization(self, text: str, limit: int | None) -> str | None:
        """See :meth:`.SampleCollator.judge_verbalization`."""
        if limit is None or not self.bounds_verbalizations or len(text.encode()) <= limit:
            return None  # so few bytes are no more tokens
        if (length := self._count(text)) <= limit:
            return None
        return (
            f"expected a verbalization of at most {limit} tokens (`max_length`, or what the model reads), got {length}"
            ". Choose `kinds`, or set the processor's `max_auxiliary_length`."
        )

    def find_problem(self, sample: Sample, limit: int | None) -> str | None:
        """See :meth:`.SampleCollator.find_problem`; the prompt's length was measured when the row was read."""
        self._render(sample.prompt)
        if self.settings is None or limit is None or not self.bounds_verbalizations:
            return None
        return self.judge_verbalization(self.describe(sample), limit)


def share_inputs(
    batch: dict[str, torch.Tensor],
    samples: Sequence[Sample],
    auxiliary_text: Sequence[str | None] | None = None,
    auxiliary_images: Sequence[np.ndarray | None] | None = None,
) -> dict[str, torch.Tensor]:
    """Keep equal images, maps and verbalizations once."""
    _, images = unique_objects([image for sample in samples for image in sample.images])
    if len(set(images)) < len(images):
        batch["image_index"] = torch.tensor(images)
        batch["pixel_values"] = batch["pixel_values"][_first_places(images)]
    if auxiliary_text is None:
        return batch
    _, maps = unique_objects(auxiliary_images or [None] * len(samples))
    rows: dict[tuple[int, str | None], int] = {}
    index = [rows.setdefault(look, len(rows)) for look in zip(maps, auxiliary_text, strict=True)]
    if len(rows) < len(index):
        batch["auxiliary_index"] = torch.tensor(index)
        names = [name for name in batch if name.startswith("auxiliary_") and name != "auxiliary_index"]
        batch |= {name: batch[name][_first_places(index)] for name in names}
    return batch


def _first_places(index: Sequence[int]) -> list[int]:
    """Where each number of 0, 1, 2, ... appears first."""
    return [index.index(number) for number in range(max(index) + 1)]
