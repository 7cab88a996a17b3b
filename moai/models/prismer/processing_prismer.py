"""PrismerProcessor: images, texts and experts' maps to model inputs. It knows no verbalizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature

from ...processing.guarded_processor import GuardedProcessor, load_pixels
from ...processing.image_loading import DEFAULT_MAX_PIXELS
from ...processing.sample_batching import as_list, pad_rows
from .configuration_prismer import DENSE_EXPERTS, EXPERTS
from .expert_maps import BACKGROUND, ExpertMaps, scale_values
from .label_features import BACKGROUND_NAME, LabelFeatures
from .modeling_prismer import EXPERT_INPUTS
from .texts import clean_text, complete_question

__all__ = ["TASKS", "PrismerProcessor"]

#: How a text is read: as a question, or as the beginning of a caption.
TASKS = ("vqa", "caption")
_MAX_TRAINING_WORDS = 30


class PrismerProcessor(GuardedProcessor):
    """Turns images, texts and experts' maps into a batch for ``PrismerForConditionalGeneration``.

    Args:
        image_processor: Makes ``pixel_values``: a square, CLIP's mean and standard deviation.
        tokenizer: RoBERTa's.
        experts: Those of the model; none = a PrismerZ.
        map_side: Side of maps in pixels, whatever the image's.
        max_image_pixels: Largest image that is decoded, in pixels.

    Attributes:
        label_features: Names to the channels of maps of labels; None = only images without such maps are read.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        experts: Sequence[str] = EXPERTS,
        map_side: int = 224,
        max_image_pixels: int = DEFAULT_MAX_PIXELS,
        **kwargs: Any,
    ) -> None:
        if unknown := sorted(set(experts) - set(EXPERTS)):
            raise ValueError(f"`experts` must be of {EXPERTS}, got {', '.join(unknown)}.")
        self.experts, self.map_side, self.max_image_pixels = list(experts), map_side, max_image_pixels
        self.label_features: LabelFeatures | None = None
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> PrismerProcessor:
        """Load a processor with its features of labels; see transformers.

        Args:
            pretrained_model_name_or_path: Folder or hub name.
            **kwargs: As in transformers.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        revision = kwargs.get("revision") or "main"
        processor.label_features = LabelFeatures.from_pretrained(pretrained_model_name_or_path, revision)
        return processor

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:
        """Write the processor with its features of labels and their text encoder; see transformers."""
        saved = super().save_pretrained(save_directory, **kwargs)
        if self.label_features is not None:
            self.label_features.save_pretrained(save_directory)
        return saved

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a full batch."""
        maps = [EXPERT_INPUTS[expert] for expert in self.experts]
        instances = ["instance_map"] if "obj_detection" in self.experts else []
        return [*super().model_input_names, *maps, *instances]

    def encode_prompt(self, text: str, task: str = "vqa") -> list[int]:
        """Ids of a question or of the beginning of a caption, ``<s>`` in front, no end behind.

        Args:
            text: Data: control tokens in it are text.
            task: One of :data:`TASKS`.

        Raises:
            ValueError: There is no such task.
        """
        if task not in TASKS:
            raise ValueError(f"`task` must be one of {TASKS}, got {task!r}.")
        written = complete_question(text) if task == "vqa" else " ".join(text.split())
        return [self.tokenizer.bos_token_id, *self.guard.encode_data(written)]

    def encode_answer(self, answer: str, task: str = "vqa") -> list[int]:
        """Ids of an answer that follows a prompt, with its end: `` Answer</s>``, for captions in lower case."""
        written = answer.strip().capitalize() if task == "vqa" else answer.strip().lower()
        return [*self.guard.encode_data(f" {written}"), self.tokenizer.eos_token_id]

    def encode_answers(self, answers: Sequence[str], task: str = "vqa") -> torch.Tensor:
        """``(K, T)`` int64 answers for :func:`.ranking.rank_answers`, padded on the right."""
        rows = [self.encode_answer(answer, task) for answer in answers]
        return torch.tensor(pad_rows(rows, self.tokenizer.pad_token_id, "right"))

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        expert_maps: Sequence[ExpertMaps | None] | None = None,
        answers: Sequence[str] | None = None,
        task: str = "vqa",
        padding_side: str = "left",
        max_length: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Build model inputs.

        Args:
            images: One per text.
            text: Questions, or beginnings of captions ("A picture of", or "").
            expert_maps: What experts found, one per text; None = nothing: its maps are empty.
            answers: What is to be learned, one per text: an answer, or the rest of a caption; adds ``labels``.
            task: One of :data:`TASKS`.
            padding_side: "left" or "right".
            max_length: Longest sequence in tokens, answer included; None sets no bound.
            return_tensors: "pt".

        Returns:
            ``input_ids``, ``attention_mask`` ``(B, L)`` int64; ``pixel_values`` ``(B, 3, H, W)`` float32; an expert's
            ``depth_values`` and so on ``(B, C, map_side, map_side)`` float32, and ``instance_map``
            ``(B, 1, map_side, map_side)`` int64; with ``answers`` ``labels`` ``(B, L)`` int64, -100 but on the answer.

        Raises:
            ValueError: Counts do not match, a text is too long, an image cannot be read, or a name has no features.
        """
        texts, given = as_list(text), as_list(images)
        maps = [None] * len(texts) if expert_maps is None else list(expert_maps)
        for name, rows in (("images", given), ("expert maps", maps), ("answers", answers or texts)):
            if len(rows) != len(texts):
                raise ValueError(f"expected {len(texts)} {name}, one per text, got {len(rows)}.")
        prompts = [self.encode_prompt(item, task) for item in texts]
        rows = prompts
        if answers is not None:
            rows = [self.encode_sample(*pair, task) for pair in zip(texts, answers, strict=True)]
        for index, row in enumerate(rows):
            if max_length is not None and len(row) > max_length:
                raise ValueError(
                    f"text {index} has {len(row)} tokens (answer included), the bound is {max_length}. Shorten it."
                )
        data = self.pad_ids(rows, padding_side)
        if answers is not None:
            pairs = zip(prompts, rows, strict=True)
            labels = [[-100] * len(prompt) + row[len(prompt) :] for prompt, row in pairs]
            data["labels"] = pad_rows(labels, -100, padding_side)
        data["pixel_values"] = load_pixels(given, self.image_processor, self.max_image_pixels)
        return BatchFeature(data | self.encode_maps(maps), tensor_type=return_tensors)

    def encode_sample(self, text: str, answer: str, task: str = "vqa") -> list[int]:
        """Ids of a prompt with its answer: a caption is cleaned with its prefix, as the original does."""
        if task == "vqa":
            return self.encode_prompt(text, task) + self.encode_answer(answer, task)
        whole = self.encode_prompt(clean_text(f"{text} {answer}", _MAX_TRAINING_WORDS), task)
        return [*whole, self.tokenizer.eos_token_id]

    def encode_maps(self, expert_maps: Sequence[ExpertMaps | None]) -> dict[str, torch.Tensor]:
        """Experts' maps as the model reads them; see :meth:`__call__`."""
        rows = [maps or ExpertMaps() for maps in expert_maps]
        data = {}
        for expert in self.experts:
            small = [maps.resize(expert, self.map_side) for maps in rows]
            if expert in DENSE_EXPERTS:
                data[EXPERT_INPUTS[expert]] = torch.stack([scale_values(values) for values in small])
                continue
            painted = [self._paint(ids, maps.names_of(expert)) for ids, maps in zip(small, rows, strict=True)]
            data[EXPERT_INPUTS[expert]] = torch.stack(painted)
            if expert == "obj_detection":
                data["instance_map"] = torch.stack(small)[:, None]
        return data

    def _paint(self, ids: torch.Tensor, names: Any) -> torch.Tensor:
        """``(h, w)`` ids -> ``(channels, h, w)`` features of their names."""
        if self.label_features is None:
            raise ValueError(
                "expected features of labels, got a processor without: the model reads maps of classes and texts. Set "
                "`processor.label_features = LabelFeatures.fit(names, NameEncoder.from_pretrained(FOLDER))` "
                "(moai.models.prismer.label_features) with the text encoder that the model was trained with, and save "
                "the processor."
            )
        found, places = ids.unique(return_inverse=True)
        said = [names[i] if i != BACKGROUND else BACKGROUND_NAME for i in found.tolist()]
        return self.label_features(said)[places].permute(2, 0, 1)
