"""Prismer behind a pipeline: answers and captions, generated or chosen among given ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, LogitsProcessor, LogitsProcessorList

from ...checkpoints.io.verbalizer_settings import VerbalizerSettings
from ..answering import Answering, GeneratedAnswer, join_turns, tell_streamer
from ..confidence import confidence_of_choice
from .modeling_prismer import PrismerForConditionalGeneration
from .processing_prismer import TASKS, PrismerProcessor
from .ranking import rank_answers
from .scenes_prismer import encode_scenes
from .texts import close_caption

__all__ = ["PrismerAnswering"]

#: Tokens of a caption, those of its beginning included.
_MIN_CAPTION_LENGTH = 8
#: Arguments of ``generate`` by task, as the original sets them; a call's own win.
_GENERATION: dict[str, dict[str, Any]] = {
    "vqa": {"num_beams": 3, "length_penalty": -1.0, "min_new_tokens": 2},
    "caption": {"num_beams": 3},
}


class _MinimumLength(LogitsProcessor):
    """No end before a caption has its length, whatever padding stands in front of it."""

    def __init__(self, attention_mask: torch.Tensor, eos_token_id: int) -> None:
        self.padding, self.eos_token_id = (attention_mask == 0).sum(dim=1), eos_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        lengths = input_ids.shape[1] - self.padding.repeat_interleave(len(scores) // len(self.padding))
        scores[lengths < _MIN_CAPTION_LENGTH, self.eos_token_id] = -torch.inf
        return scores


class PrismerAnswering(Answering):
    """A Prismer with its processor.

    Options of an answer:

    * ``task``: "vqa" (the text is a question) or "caption" (the text is the caption's beginning, "A picture of").
    * ``choices``: the answers to choose from, a list or ``"yes,no"``; reports hold their scores.

    Args:
        model: The model.
        processor: Its processor.

    Raises:
        ValueError: They do not belong together.
    """

    option_names = served_options = ("task", "choices")
    text_input = "auxiliary_text"
    scene_encoder = encode_scenes
    model_class = PrismerForConditionalGeneration
    processor_class = PrismerProcessor

    def __init__(self, model: PrismerForConditionalGeneration, processor: PrismerProcessor) -> None:
        super().__init__(model, processor)
        if list(model.config.experts) != list(processor.experts):
            raise ValueError(
                f"expected a processor of the model's experts ({', '.join(model.config.experts) or 'none'}), got one "
                f"of {', '.join(processor.experts) or 'none'}. Load both from one folder."
            )

    @property
    def num_latents(self) -> int:
        """See :attr:`.Answering.num_latents`: patches of the image, and what the resampler makes of all maps."""
        config = self.model.config
        num_patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        return num_patches + (config.num_latents if config.experts else 0)

    def prepare(
        self, image: Image.Image, question: str, max_new_tokens: int, earlier: Sequence[tuple[str, str]] = ()
    ) -> str:
        """See :meth:`.Answering.prepare`: the text itself; no map lengthens it."""
        question = join_turns(question, earlier)
        length, limit = len(self.processor.encode_prompt(question)), self.model.config.max_positions - max_new_tokens
        if length > limit:
            raise ValueError(
                f"expected a question of at most {limit} tokens ({max_new_tokens} kept for the answer), got {length}. "
                "Shorten the question."
            )
        return question

    def scene_settings(self, settings: VerbalizerSettings, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.scene_settings`."""
        return {"experts": self.processor.experts}

    def build_batch(
        self, images: Sequence[Any], prompts: Sequence[Any], found: Mapping[str, Any], options: Mapping[str, Any]
    ) -> BatchFeature:
        """See :meth:`.Answering.build_batch`."""
        singles = [image[0] if isinstance(image, list) else image for image in images]
        task, maps = options.get("task", "vqa"), found.get("expert_maps")
        return self.processor(images=singles, text=list(prompts), expert_maps=maps, task=task)

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.parse_options`."""
        chosen = super().parse_options(options)
        if chosen.get("task", "vqa") not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {chosen['task']!r}.")
        return chosen

    def generate(
        self, inputs: BatchFeature, options: Mapping[str, Any], is_reporting: bool, **generate_kwargs: Any
    ) -> list[GeneratedAnswer]:
        """See :meth:`.Answering.generate`. With ``choices`` the likeliest of them is the answer."""
        task, streamer = options.get("task", "vqa"), generate_kwargs.pop("streamer", None)
        if "choices" in options:
            answers = self._rank(inputs, options["choices"], task, is_reporting)
        else:
            settings = _GENERATION[task] | generate_kwargs
            if "min_new_tokens" in settings:  # an answer may be asked to be shorter
                settings["min_new_tokens"] = min(settings["min_new_tokens"], settings["max_new_tokens"])
            if task == "caption":
                minimum = _MinimumLength(inputs["attention_mask"], self.model.config.text_config.eos_token_id)
                settings["logits_processor"] = LogitsProcessorList([minimum, *settings.get("logits_processor", ())])
            if streamer is not None and settings["num_beams"] == 1:
                settings["streamer"], streamer = streamer, None
            answers = super().generate(inputs, options, is_reporting, **settings)
        tell_streamer(streamer, answers[0])  # beams have no text before they end
        return answers

    def finish_text(self, text: str, options: Mapping[str, Any]) -> str:
        """See :meth:`.Answering.finish_text`; a caption becomes a sentence."""
        return close_caption(text) if options.get("task") == "caption" else text.strip()

    def can_stream(self, options: Mapping[str, Any]) -> bool:
        """See :meth:`.Answering.can_stream`: a caption gets its capital letter at the end."""
        return options.get("task") != "caption"

    @torch.inference_mode()
    def _rank(
        self, inputs: BatchFeature, answers: Sequence[str], task: str, is_reporting: bool
    ) -> list[GeneratedAnswer]:
        data = dict(inputs)
        input_ids, attention_mask = data.pop("input_ids"), data.pop("attention_mask")
        answer_ids = self.processor.encode_answers(answers, task).to(input_ids.device)
        room = self.model.config.max_positions - input_ids.shape[1]
        if answer_ids.shape[1] > room:
            raise ValueError(
                f"expected answers of at most {room} tokens behind this question, got one of {answer_ids.shape[1]}. "
                "Shorten them."
            )
        ranked = rank_answers(self.model, self.model.encode_images(**data), input_ids, attention_mask, answer_ids)
        found = []
        for best, candidates, scores in zip(ranked.best, ranked.candidates, ranked.scores, strict=True):
            by_name = {answers[i]: score for i, score in zip(candidates.tolist(), scores.tolist(), strict=True)}
            report = {"choices": by_name} if is_reporting else {}
            found.append(GeneratedAnswer((answers[int(best)],), report, confidence_of_choice(by_name.values())))
        return found
