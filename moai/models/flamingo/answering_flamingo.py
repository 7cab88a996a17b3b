"""Flamingo behind a pipeline: few-shot prompts, free answers, and choices among given ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from ...checkpoints.io.verbalizer_settings import VerbalizerSettings
from ..answering import Answering, GeneratedAnswer, TooLongError, choose_answers, join_turns, parse_choices
from ..shots import Demonstrations, load_shot, read_shots
from .modeling_flamingo import FlamingoForConditionalGeneration
from .processing_flamingo import FlamingoProcessor
from .prompts import DEFAULT_PROMPT, PROMPTS, STOPS, cut_answer
from .ranking import rank_continuations
from .scenes_flamingo import encode_scenes

__all__ = ["FlamingoAnswering"]


class FlamingoAnswering(Answering):
    """A Flamingo with its processor.

    Options of an answer:

    * ``shots``: demonstrations in front of the question, ``[(image, question, answer), ...]``, an image being None
      for text alone; or a JSONL file of ``{"image": ..., "question": ..., "answer": ...}``; or
      :class:`~moai.models.shots.Demonstrations`, of which each question gets its own.
    * ``prompt``: how questions are written, one of :data:`.prompts.PROMPTS`.
    * ``choices``: the answers to choose from, a list or ``"yes,no"``; reports hold their log-probabilities.

    Args:
        model: The model.
        processor: Its processor.

    Raises:
        ValueError: They do not belong together.
    """

    option_names = ("shots", "prompt", "choices")
    served_options = ("prompt", "choices")
    text_input = "context"
    model_class = FlamingoForConditionalGeneration
    processor_class = FlamingoProcessor
    shows_image = True

    def __init__(self, model: FlamingoForConditionalGeneration, processor: FlamingoProcessor) -> None:
        super().__init__(model, processor)
        wanted = (model.config.image_token_id, model.config.end_of_chunk_token_id)
        got = (processor.image_token_id, processor.end_of_chunk_token_id)
        if wanted != got:
            raise ValueError(
                f"expected a processor whose ids of <image> and <|endofchunk|> are {wanted}, as the model's, got {got}."
                " Load both from one folder."
            )

    def check_answer_length(self, max_new_tokens: int) -> None:
        """See :meth:`.Answering.check_answer_length`."""
        longest = self.model.config.max_positions
        if longest is not None and max_new_tokens >= longest:
            raise ValueError(
                f"expected `max_new_tokens` (--max-new-tokens) below {longest}, got {max_new_tokens}: the model reads "
                f"{longest} tokens, image and question included. Lower it."
            )

    def prepare(
        self, image: Image.Image, question: str, max_new_tokens: int, earlier: Sequence[tuple[str, str]] = ()
    ) -> str:
        """See :meth:`.Answering.prepare`: the question; its prompt's length shows with its demonstrations."""
        return join_turns(question, earlier)

    def words_in_prompt(self) -> FlamingoAnswering:
        """See :meth:`.Answering.words_in_prompt`."""
        other = FlamingoAnswering(self.model, self.processor)
        other.shows_image = False
        return other

    def prepare_conversation(
        self, images: Sequence[Image.Image], messages: Sequence[Mapping[str, Any]], max_new_tokens: int
    ) -> list[dict[str, Any]]:
        """See :meth:`.Answering.prepare_conversation`: the messages; earlier turns are demonstrations."""
        if not images:
            raise ValueError("expected at least one image, got none: this model looks at one with every word. Send it.")
        return [dict(message) for message in messages]

    def finish_text(self, text: str, options: Mapping[str, Any]) -> str:
        """See :meth:`.Answering.finish_text`."""
        return cut_answer(text, options.get("prompt", DEFAULT_PROMPT))

    def list_stops(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`.Answering.list_stops`."""
        return STOPS[options.get("prompt", DEFAULT_PROMPT)]

    def encode_scenes(
        self,
        scenes: Sequence[Any],
        settings: VerbalizerSettings,
        kinds: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, list[Any]]:
        """See :func:`.scenes_flamingo.encode_scenes`."""
        return encode_scenes(scenes, settings.words, kinds)

    def encode(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[Any],
        scene_inputs: Mapping[str, Any],
        max_new_tokens: int,
        options: Mapping[str, Any] | None = None,
    ) -> BatchFeature:
        """See :meth:`.Answering.encode`.

        Args:
            images: One per question, or a list of several in reading order.
            prompts: Questions, or conversations whose images are named in ``images``.
            scene_inputs: ``context``.
            max_new_tokens: Tokens kept for the answer.
            options: ``shots`` and ``prompt`` count.
        """
        shots, prompt = (options or {}).get("shots", ()), (options or {}).get("prompt", DEFAULT_PROMPT)
        contexts = scene_inputs.get("context") or [None] * len(prompts)
        if isinstance(shots, Demonstrations):
            shown = shots.choose(images, prompts, self.embed_images)
        else:
            shown = [shots] * len(prompts)
        if not self.shows_image:
            shown = [[(None, *texts) for _, *texts in part] for part in shown]
        conversations = [
            self.processor.build_conversation(image if self.shows_image else None, question, demonstrated, context)
            for image, question, demonstrated, context in zip(images, prompts, shown, contexts, strict=True)
        ]
        batch = self.processor(conversations=conversations, prompt=prompt)
        longest = self.model.config.max_positions
        limit = None if longest is None else longest - max_new_tokens
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        too_long = {
            row: f"expected a prompt of at most {limit} tokens (demonstrations and verbalization included, "
            f"{max_new_tokens} kept for the answer), got {length}. Shorten the question, give fewer demonstrations, or "
            "let fewer verbalizers speak."
            for row, length in enumerate(lengths)
            if limit is not None and length > limit
        }
        if too_long:
            raise TooLongError(too_long)
        return batch.to(self.model.device, dtype=self.model.dtype)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """What the vision tower says about whole images.

        Args:
            images: RGB.

        Returns:
            ``(len(images), d)`` float32 of length 1, on the CPU: the tower's pooled output, else its tokens' mean.
        """
        tower = self.model.model.vision_tower
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        outputs = tower(pixel_values=pixels.to(tower.device, tower.dtype))
        pooled = getattr(outputs, "pooler_output", None)
        pooled = outputs.last_hidden_state.mean(dim=1) if pooled is None else pooled
        return torch.nn.functional.normalize(pooled.float(), dim=-1).cpu()

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.parse_options`."""
        chosen = super().parse_options(options)
        if "prompt" in chosen and chosen["prompt"] not in PROMPTS:
            raise ValueError(f"`prompt` must be one of {', '.join(PROMPTS)}, got {chosen['prompt']!r}.")
        if isinstance(chosen.get("shots"), (str, Path)):
            chosen["shots"] = read_shots(chosen["shots"])
        if "shots" in chosen and not isinstance(chosen["shots"], Demonstrations):
            chosen["shots"] = [load_shot(index, shot) for index, shot in enumerate(chosen["shots"])]
        if "choices" in chosen:
            chosen["choices"] = parse_choices(chosen["choices"])
        return chosen

    def generate(
        self, inputs: BatchFeature, options: Mapping[str, Any], is_reporting: bool, **generate_kwargs: Any
    ) -> list[GeneratedAnswer]:
        """See :meth:`.Answering.generate`. With ``choices`` the likeliest of them is the answer."""
        choices = options.get("choices")
        if choices is None:
            return self._generate_texts(inputs, options, is_reporting, **generate_kwargs)[0]
        guard = self.processor.guard
        ids = [guard.encode_continuation(guard.escape(choice)) for choice in choices]
        answers = choose_answers(rank_continuations(self.model, inputs, ids), choices, is_reporting)
        if (streamer := generate_kwargs.get("streamer")) is not None:
            streamer.on_finalized_text("".join(answers[0].parts), stream_end=True)
        return answers
