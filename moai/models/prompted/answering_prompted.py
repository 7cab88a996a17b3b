"""Any image-text-to-text model of transformers behind a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import AutoModelForImageTextToText, BatchFeature

from ...checkpoints.io.verbalizer_settings import VerbalizerSettings
from ...processing.several_images import insert_images
from ..answering import Answering
from ..context_length import count_positions
from ..quantization_choice import resolve_quantization
from .processing_prompted import PromptedProcessor, PromptSettings
from .scenes_prompted import encode_scenes

__all__ = ["PromptedAnswering"]


class PromptedAnswering(Answering):
    """An unmodified model with its own processor, whose prompts hold the verbalization.

    Args:
        model: From ``AutoModelForImageTextToText``.
        processor: The model's own, or that wrapped.
    """

    option_names = served_options = ("style", "place", "choices")
    text_input = "context"
    scene_encoder = encode_scenes
    bounded_by = ("image and verbalization",)
    model_class = AutoModelForImageTextToText
    processor_class = PromptedProcessor
    can_quantize = True
    reads_words_alone = True

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor if isinstance(processor, PromptedProcessor) else PromptedProcessor(processor))

    @classmethod
    def load_model(cls, name_or_path: str, *, revision: str | None = None, **model_kwargs: Any) -> Any:
        """See :meth:`.Answering.load_model`; 4 and 8 bits as transformers loads them, heads in their own."""
        return super().load_model(name_or_path, revision=revision, **resolve_quantization(model_kwargs))

    def prepare(
        self, image: Image.Image, question: str, max_new_tokens: int, earlier: Sequence[tuple[str, str]] = ()
    ) -> list[dict[str, Any]]:
        """See :meth:`.Answering.prepare`: a conversation; its length shows when the verbalization is in it."""
        turns = [turn for pair in earlier for turn in zip(("user", "assistant"), pair, strict=True)]
        turns.append(("user", question))
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        if self.shows_image:
            messages[0]["content"].insert(0, {"type": "image", "image": image})
        return messages

    def prepare_conversation(
        self, images: Sequence[Image.Image], messages: Sequence[Mapping[str, Any]], max_new_tokens: int
    ) -> list[dict[str, Any]]:
        """See :meth:`.Answering.prepare_conversation`."""
        return insert_images(messages, images)

    @property
    def longest_sequence(self) -> int | None:
        """See :attr:`.Answering.longest_sequence`."""
        return count_positions(self.model.config.get_text_config())

    def scene_settings(self, settings: VerbalizerSettings, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.scene_settings`."""
        return {"style": options.get("style", self.processor.settings.style)}

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.parse_options`; ``style`` and ``place`` as in :class:`.PromptSettings`, ``choices``."""
        parsed = super().parse_options(options)
        PromptSettings(**{name: parsed[name] for name in ("style", "place") if name in parsed})  # names what is wrong
        return parsed

    def select_options(self, options: Mapping[str, Any], indices: Sequence[int], num_queries: int) -> dict[str, Any]:
        """See :meth:`.Answering.select_options`; the other options decide the prompt."""
        return {name: value for name, value in options.items() if name == "choices"}

    def build_batch(
        self, images: Sequence[Any], prompts: Sequence[Any], found: Mapping[str, Any], options: Mapping[str, Any]
    ) -> BatchFeature:
        """See :meth:`.Answering.build_batch`."""
        return self.processor(list(prompts), place=options.get("place"), **found)
