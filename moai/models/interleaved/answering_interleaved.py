"""Emu and Flamingo behind a pipeline: few-shot prompts, free answers, and choices among given ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import BatchFeature

from ..answering import Answering, join_turns
from ..ranking import rank_continuations
from ..shots import Demonstrations, load_shot, read_shots
from .scenes_interleaved import encode_scenes

__all__ = ["InterleavedAnswering"]


class InterleavedAnswering(Answering):
    """A model of images and texts in one sequence, with its processor.

    Options of an answer:

    * ``shots``: demonstrations in front of the question, ``[(image, question, answer), ...]``, an image being None
      for text alone, perhaps with a fourth entry, the verbalization; or a JSONL file of
      ``{"image": ..., "question": ..., "answer": ...}``, perhaps with ``"scene"``; or
      :class:`~moai.models.shots.Demonstrations`, of which each question gets its own.
    * ``prompt``: how questions are written, one of the processor's ``prompts``.
    * ``choices``: the answers to choose from, a list or ``"yes,no"``; reports hold their log-probabilities.
    """

    option_names: tuple[str, ...] = ("shots", "prompt", "choices")
    served_options = ("prompt", "choices")
    text_input = "context"
    scene_encoder = encode_scenes
    bounded_by = ("images, demonstrations and verbalization", "give fewer demonstrations, ")
    reads_words_alone = True

    def prepare(
        self, image: Image.Image, question: str, max_new_tokens: int, earlier: Sequence[tuple[str, str]] = ()
    ) -> str:
        """See :meth:`.Answering.prepare`: the question; its prompt's length shows with its demonstrations."""
        return join_turns(question, earlier)

    def prepare_conversation(
        self, images: Sequence[Image.Image], messages: Sequence[Mapping[str, Any]], max_new_tokens: int
    ) -> list[dict[str, Any]]:
        """See :meth:`.Answering.prepare_conversation`: the messages as they are; earlier turns are demonstrations."""
        return [dict(message) for message in messages]

    def build_batch(
        self, images: Sequence[Any], prompts: Sequence[Any], found: Mapping[str, Any], options: Mapping[str, Any]
    ) -> BatchFeature:
        """See :meth:`.Answering.build_batch`: ``options`` that count are ``shots`` and ``prompt``."""
        contexts = found.get("context") or [None] * len(prompts)
        shots = options.get("shots", ())
        is_chosen = isinstance(shots, Demonstrations)
        shown = shots.choose(images, prompts, self.embed_images) if is_chosen else [shots] * len(prompts)
        if not self.shows_image:
            shown = [[(None, *texts) for _, *texts in part] for part in shown]
        conversations = [
            self.processor.build_conversation(image if self.shows_image else None, question, demonstrated, context)
            for image, question, demonstrated, context in zip(images, prompts, shown, contexts, strict=True)
        ]
        return self.processor(conversations=conversations, prompt=options.get("prompt"))

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """What the vision tower says about whole images.

        Args:
            images: RGB.

        Returns:
            ``(len(images), d)`` float32 of length 1, on the CPU.
        """
        tower = self.inner_model.vision_tower
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        outputs = tower(pixel_values=pixels.to(tower.device, tower.dtype))
        return F.normalize(self.pool_features(outputs).float(), dim=-1).cpu()

    @property
    def inner_model(self) -> Any:
        """The model without its heads, inside an adapter where there is one."""
        return (self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model).model

    @abstractmethod
    def pool_features(self, outputs: Any) -> torch.Tensor:
        """``(B, d)`` of the vision tower's outputs: one vector per image."""

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.parse_options`."""
        chosen, prompts = super().parse_options(options), cls.processor_class.prompts
        if "prompt" in chosen and chosen["prompt"] not in prompts:
            raise ValueError(f"`prompt` must be one of {', '.join(prompts)}, got {chosen['prompt']!r}.")
        if isinstance(chosen.get("shots"), (str, Path)):
            chosen["shots"] = read_shots(chosen["shots"])
        if "shots" in chosen and not isinstance(chosen["shots"], Demonstrations):
            chosen["shots"] = [load_shot(index, shot) for index, shot in enumerate(chosen["shots"])]
        return chosen

    def score_choices(self, inputs: BatchFeature, options: Mapping[str, Any]) -> torch.Tensor:
        """See :meth:`.Answering.score_choices`: the prompt is read once."""
        ids = [self.processor.encode_answer(choice) for choice in options["choices"]]
        return rank_continuations(self.model, inputs, ids)
