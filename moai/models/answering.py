"""What a pipeline asks of a model that answers: prepare a question, encode a batch, generate, report.

One implementation per model, named by its :class:`~moai.models.registry.ModelSpec`. A new model is usable by every
command once it has one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from ..checkpoints.io.verbalizer_settings import VerbalizerSettings
from ..processing.several_images import join_maps, join_texts
from .quantization_choice import list_wanted_bits

__all__ = ["Answering", "GeneratedAnswer", "TooLongError"]


class TooLongError(ValueError):
    """Some prompts of a batch are longer than the model reads.

    Attributes:
        rows: Place in the batch -> what is wrong.
    """

    def __init__(self, rows: Mapping[int, str]) -> None:
        super().__init__("; ".join(rows.values()))
        self.rows = dict(rows)


@dataclass(frozen=True, eq=False)
class GeneratedAnswer:
    """One answer of a batch.

    Attributes:
        parts: Text, and images of a model that draws, in reading order.
        report: What the model tells about how it answered, by name; only where it was asked for.
    """

    parts: tuple[str | Image.Image, ...]
    report: Mapping[str, Any] = field(default_factory=dict)


class Answering(ABC):
    """A model with its processor.

    Attributes:
        model: In evaluation mode on its device.
        processor: Its processor.
        option_names: Options of an answer that this model has beside those of ``generate``.
        file_options: Those of them whose value may name files, which are read.
        text_input: Name of the verbalizations among what :meth:`encode_scenes` returns.
        model_class: What loads the model.
        processor_class: What loads the processor.
        can_quantize: Whether the model loads in 4 and 8 bits.
    """

    option_names: tuple[str, ...] = ()
    file_options: tuple[str, ...] = ()
    text_input: str
    model_class: type
    processor_class: type
    can_quantize: bool = False

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def load(cls, name_or_path: str, *, revision: str | None = None, **model_kwargs: Any) -> Self:
        """Load model and processor.

        Args:
            name_or_path: Folder or hub name.
            revision: Of a hub name.
            **model_kwargs: To the model's ``from_pretrained``.

        Raises:
            ValueError: The checkpoint is not whole, or asked for in bits that the model does not load in.
        """
        if (bits := list_wanted_bits(model_kwargs)) and not cls.can_quantize:
            raise ValueError(
                f"expected {name_or_path} in its own precision, got load_in_{bits[0]}bit (--load-in-{bits[0]}bit), "
                "which such a model does not know. Leave it out; --dtype bfloat16 halves the memory."
            )
        revision = revision or "main"
        processor = cls.processor_class.from_pretrained(name_or_path, revision=revision)
        model, report = cls.model_class.from_pretrained(
            name_or_path, revision=revision, use_safetensors=True, output_loading_info=True, **model_kwargs
        )
        if report["missing_keys"]:
            lacking = sorted(report["missing_keys"])
            raise ValueError(
                f"expected all weights in {name_or_path}, got none for {len(lacking)} ({', '.join(lacking[:3])}, ...)."
                " Download or convert the checkpoint again."
            )
        return cls(model, processor)

    def save(self, folder: Path) -> None:
        """Write model and processor for :meth:`load`."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @property
    def domain(self) -> str | None:
        """The images that the model knows, where it does not know photographs in general."""
        return getattr(self.model.config, "domain", None)

    @property
    def max_image_pixels(self) -> int:
        """Largest image that is decoded, in pixels."""
        return self.processor.max_image_pixels

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @abstractmethod
    def check_answer_length(self, max_new_tokens: int) -> None:
        """Check that an answer of this length leaves room for an image and a question.

        Raises:
            ValueError: It does not.
        """

    @abstractmethod
    def prepare(self, image: Image.Image, question: str, max_new_tokens: int) -> Any:
        """The prompt of a question, before anybody has looked at the image.

        Args:
            image: The image.
            question: Not empty; data, no control tokens.
            max_new_tokens: Tokens of the context that are kept for the answer.

        Returns:
            What :meth:`encode` takes.

        Raises:
            ValueError: The question is too long.
        """

    def prepare_conversation(
        self, images: Sequence[Image.Image], messages: Sequence[Mapping[str, Any]], max_new_tokens: int
    ) -> Any:
        """The prompt of a conversation; a model that reads but one question about one image answers only that.

        Args:
            images: In reading order.
            messages: As transformers writes them, the last one a user's; their parts are texts, which are data, and
                ``{"type": "image"}``, one per image.
            max_new_tokens: As in :meth:`prepare`.

        Returns:
            What :meth:`encode` takes.

        Raises:
            ValueError: The model reads no such conversation, or it is too long.
        """
        if len(messages) != 1 or len(images) != 1:
            raise ValueError(
                f"expected one question about one image, which is all that this model reads, got {len(messages)} "
                f"messages with {len(images)} images. Ask anew, with the image."
            )
        texts = [part["text"] for part in messages[0]["content"] if part["type"] == "text"]
        return self.prepare(images[0], "\n".join(texts), max_new_tokens)

    @abstractmethod
    def encode_scenes(
        self,
        scenes: Sequence[Any],
        settings: VerbalizerSettings,
        kinds: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, list[Any]]:
        """What the processor takes of scenes, by name: one entry per scene.

        Args:
            scenes: :class:`verbalizers.Scene` or None = nobody looked.
            settings: What is worth saying.
            kinds: Which kinds are said; None = all.
            options: From :meth:`parse_options`; those that decide how scenes are written count.
        """

    @staticmethod
    def join_scene_inputs(found: Mapping[str, Sequence[Any]], counts: Sequence[int]) -> dict[str, list[Any]]:
        """What :meth:`encode` takes of prompts with any number of images.

        Args:
            found: From :meth:`encode_scenes`, one entry per image.
            counts: Images per prompt.

        Returns:
            One entry per prompt: None without an image; texts and maps of several joined as in training.
        """
        ends = np.cumsum(counts)
        return {
            name: [_join_found(list(rows[end - count : end])) for end, count in zip(ends, counts, strict=True)]
            for name, rows in found.items()
        }

    @abstractmethod
    def encode(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[Any],
        scene_inputs: Mapping[str, Any],
        max_new_tokens: int,
        options: Mapping[str, Any] | None = None,
    ) -> BatchFeature:
        """Model inputs of a batch, padded on the left, on the model's device.

        Args:
            images: Per prompt one, or a list of those of a conversation.
            prompts: From :meth:`prepare` or :meth:`prepare_conversation`.
            scene_inputs: What the model's ``encode_scenes`` made of what verbalizers found; one entry per prompt.
            max_new_tokens: As in :meth:`prepare`.
            options: From :meth:`parse_options`; those that decide how a prompt is written count.

        Raises:
            TooLongError: Prompts are too long together with what was found.
        """

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of an answer by name, from the form of the command line to that of Python.

        Raises:
            ValueError: The model has no such option, or the value is wrong.
        """
        unknown = sorted(set(options) - set(cls.option_names))
        if unknown:
            known = ", ".join(cls.option_names) or "none"
            raise ValueError(f"expected options that this model has ({known}), got {', '.join(unknown)}.")
        return dict(options)

    def select_options(self, options: Mapping[str, Any], indices: Sequence[int], num_queries: int) -> dict[str, Any]:
        """Arguments of :meth:`generate` for some of the queries of a call.

        Args:
            options: See :meth:`parse_options`.
            indices: Places of the batch's queries in the call.
            num_queries: Of the call.

        Raises:
            ValueError: The model has no such option, or the value is wrong.
        """
        return self.parse_options(options)

    def generate(
        self, inputs: BatchFeature, options: Mapping[str, Any], is_reporting: bool, **generate_kwargs: Any
    ) -> list[GeneratedAnswer]:
        """Generate one answer per row.

        Args:
            inputs: From :meth:`encode`.
            options: From :meth:`select_options`.
            is_reporting: Whether answers carry reports.
            **generate_kwargs: To ``generate``.
        """
        result = self._run_generate(inputs, **options, **generate_kwargs)
        texts = self._decode(result, inputs)
        return [GeneratedAnswer((self.finish_text(text, options),)) for text in texts]

    def finish_text(self, text: str, options: Mapping[str, Any]) -> str:
        """The answer in a generated text, white space at its ends removed.

        Args:
            text: Without special tokens.
            options: From :meth:`select_options`.
        """
        return text.strip()

    def list_stops(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Strings at which :meth:`finish_text` ends an answer: nothing behind them need be generated."""
        return ()

    def can_stream(self, options: Mapping[str, Any]) -> bool:
        """Whether :meth:`finish_text` leaves what it keeps as it is, so that an answer shows before its end."""
        return True

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)

    @property
    def longest_sequence(self) -> int | None:
        """Tokens that the model reads, prompt and answer together; None = no bound is known."""
        return getattr(self.model.config, "max_positions", None)

    @torch.inference_mode()
    def _run_generate(self, inputs: BatchFeature, **kwargs: Any) -> Any:
        return self.model.generate(**inputs, **{"do_sample": False, "return_dict_in_generate": True} | kwargs)

    def _decode(self, result: Any, inputs: BatchFeature) -> list[str]:
        new_tokens = result.sequences[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new_tokens, skip_special_tokens=True)


def _join_found(items: list[Any]) -> Any:
    """What was found in the images of one prompt; None where that is nothing."""
    if len(items) == 1:
        return items[0]
    if any(isinstance(item, str) for item in items):
        return join_texts([item or "" for item in items])
    maps = [item for item in items if item is not None]
    return join_maps(maps) if maps and len(maps) == len(items) else None
