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

import torch
from PIL import Image
from transformers import BatchFeature

from ..checkpoints.io.verbalizer_settings import VerbalizerSettings
from .quantization_choice import list_wanted_bits

__all__ = ["Answering", "GeneratedAnswer", "TooLongError", "join_turns", "parse_choices"]


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
        text_input: Name of the verbalizations among what :meth:`encode_scenes` returns.
        model_class: What loads the model.
        processor_class: What loads the processor.
        can_quantize: Whether the model loads in 4 and 8 bits.
    """

    option_names: tuple[str, ...] = ()
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
    def prepare(
        self, image: Image.Image, question: str, max_new_tokens: int, earlier: Sequence[tuple[str, str]] = ()
    ) -> Any:
        """The prompt of a question, before anybody has looked at the image.

        Args:
            image: The image.
            question: Not empty; data, no control tokens.
            max_new_tokens: Tokens of the context that are kept for the answer.
            earlier: Questions and answers of the turns before; data.

        Returns:
            What :meth:`encode` takes.

        Raises:
            ValueError: The question is too long.
        """

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
            images: One per prompt.
            prompts: From :meth:`prepare`.
            scene_inputs: What the model's ``encode_scenes`` made of what verbalizers found.
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
        return [GeneratedAnswer((text,)) for text in texts]

    def draw(self, parts: Sequence[str | Image.Image], options: Mapping[str, Any]) -> Image.Image:
        """Draw an image.

        Args:
            parts: The prompt, texts and images in reading order; texts are data.
            options: From :meth:`parse_options`; those of drawing.

        Raises:
            ValueError: The model draws nothing, or not this.
        """
        raise ValueError(
            f"expected a model that draws (an Emu with its visual decoder), got a {type(self.model).__name__}, which "
            "answers in text. Leave --image-out out, or choose another --model."
        )

    @torch.inference_mode()
    def _run_generate(self, inputs: BatchFeature, **kwargs: Any) -> Any:
        return self.model.generate(**inputs, **{"do_sample": False, "return_dict_in_generate": True} | kwargs)

    def words_in_prompt(self) -> Answering:
        """The same model without an image, reading the verbalization as words of its prompt.

        Raises:
            ValueError: It has no decoder that reads words alone.
        """
        raise ValueError(
            f"expected a model whose decoder reads words without an image, got {type(self.model).__name__}. Leave the "
            "baseline words-in-prompt out, or name a decoder that reads them."
        )

    def encode_choice(self, choice: str, inputs: BatchFeature) -> list[int]:
        """Ids of an answer behind the prompts of a batch, its end included."""
        tokenizer = self.tokenizer
        last = tokenizer.decode(inputs["input_ids"][0, -1:])
        is_mid_line = last.strip() and int(inputs["input_ids"][0, -1]) not in tokenizer.all_special_ids
        ids = tokenizer(" " * bool(is_mid_line) + choice, add_special_tokens=False)["input_ids"]
        end = self.model.generation_config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        return ids if end is None else [*ids, end]

    @torch.inference_mode()
    def rank_choices(
        self, inputs: BatchFeature, choices: Sequence[str], is_reporting: bool, **forward_kwargs: Any
    ) -> list[GeneratedAnswer]:
        """The likeliest of some answers for each row; reports hold their log-probabilities under ``choices``.

        Args:
            inputs: From :meth:`encode`.
            choices: Answers, as data.
            is_reporting: Whether answers carry reports.
            **forward_kwargs: To the model.
        """
        prompt, columns = inputs["input_ids"], []
        for choice in choices:
            ids = torch.tensor(self.encode_choice(choice, inputs), device=prompt.device).expand(len(prompt), -1)
            following = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            rows = {
                name: torch.cat([value, following.get(name, torch.zeros_like(ids)).to(value.dtype)], dim=1)
                for name, value in inputs.items()
                if isinstance(value, torch.Tensor) and value.shape == prompt.shape
            }
            logits = self.model(**{**inputs, **rows}, **forward_kwargs).logits[:, -ids.shape[1] - 1 : -1]
            columns.append(logits.float().log_softmax(dim=-1).gather(-1, ids[..., None]).sum(dim=(1, 2)))
        answers = []
        for scores in torch.stack(columns, dim=1):  # (choices,)
            report = {"choices": dict(zip(choices, scores.tolist(), strict=True))} if is_reporting else {}
            answers.append(GeneratedAnswer((choices[int(scores.argmax())],), report))
        return answers

    def _decode(self, result: Any, inputs: BatchFeature) -> list[str]:
        new_tokens = result.sequences[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new_tokens, skip_special_tokens=True)]


def join_turns(question: str, earlier: Sequence[tuple[str, str]]) -> str:
    """A question with the turns before it in front, for models that know no turns."""
    return " ".join([*(f"{asked} {answer.rstrip(' .')}." for asked, answer in earlier), question])


def parse_choices(value: Any) -> list[str]:
    """Answers to choose from: a list, or ``"yes,no"``.

    Raises:
        ValueError: They are not two or more different texts.
    """
    given = [choice.strip() for choice in value.split(",")] if isinstance(value, str) else value
    is_well = isinstance(given, (list, tuple)) and all(isinstance(c, str) and c.strip() for c in given)
    if not is_well or len(set(given)) < max(2, len(given)):
        raise ValueError(f"`choices` must be two or more different answers (yes,no), got {given!r}.")
    return list(given)
