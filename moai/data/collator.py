"""Collation of training samples to batches of model inputs."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from moai.data.training_sample import TrainingSample
from moai.models.moai.processing_moai import MoAIProcessor
from moai.processing.sample_batching import unique_objects

__all__ = ["CollatedBatches", "TrainingCollator", "iterate_batches"]


class TrainingCollator:
    """Encodes and pads samples; give it to a `DataLoader` as `collate_fn`.

    Args:
        processor: Makes tokens and pixels.
        padding_side: "left" or "right"; the loss is the same.
        pad_to_multiple_of: Round padded lengths up: fewer shapes, for compiled models.
        max_length: Longest sample in tokens; None = the processor's bound.
        is_sharing: Whether samples of one image (the same object) leave its pixels and words in the batch once.
    """

    def __init__(
        self,
        processor: MoAIProcessor,
        padding_side: str = "left",
        pad_to_multiple_of: int | None = None,
        max_length: int | None = None,
        is_sharing: bool = False,
    ) -> None:
        self.processor, self.padding_side = processor, padding_side
        self.pad_to_multiple_of, self.max_length = pad_to_multiple_of, max_length
        self.is_sharing = is_sharing

    def __call__(self, samples: Sequence[TrainingSample]) -> dict[str, torch.Tensor]:
        """One batch.

        Args:
            samples: B samples of one data set.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids` (0 padding or answer, 1 image, 2 prompt), `labels` (-100
            but on the answer and its end token), each `(B, L)` int64; `pixel_values` `(images, 3, H, W)` float32
            where there are images; `auxiliary_input_ids`, `auxiliary_attention_mask` `(B, A)` int64 where the data
            set has verbalizations, `auxiliary_pixel_values` `(B, 3, H, W)` float32 where it has maps. Where something
            is shared: U <= B rows of the auxiliary inputs and `auxiliary_index` `(B,)` int64, each sample's row; and
            only different images in `pixel_values` with `picture_index` `(images,)`.

        Raises:
            ValueError: No sample, or one that is too long.
        """
        if not samples:
            raise ValueError("expected at least one sample, got none.")
        inputs: dict[str, Any] = {}
        if any(sample.auxiliary_text is not None for sample in samples):
            inputs["auxiliary_text"] = [sample.auxiliary_text for sample in samples]
        if any(sample.auxiliary_image is not None for sample in samples):
            inputs["auxiliary_images"] = [sample.auxiliary_image for sample in samples]
        batch = self.processor(
            images=[list(sample.images) for sample in samples],
            text=[sample.prompt for sample in samples],
            answers=[sample.answer for sample in samples],
            padding=True,
            padding_side=self.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
            max_length=self.max_length,
            return_tensors="pt",
            **inputs,
        )
        return _share(dict(batch), samples) if self.is_sharing else dict(batch)


class CollatedBatches(Dataset[Any]):
    """Batches of a data set by the indices of their samples, for a `DataLoader` without batching of its own.

    An error comes out of a worker process as the batch that it is in place of, for :func:`iterate_batches` to raise:
    torch would put the traceback of the worker into the message.

    Args:
        dataset: The samples.
        collator: What makes a batch of a list of them.
    """

    def __init__(self, dataset: Any, collator: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collator = dataset, collator

    def __getitem__(self, indices: Sequence[int]) -> Any:
        """The batch of some samples, or the error in its place, with the traceback as a note."""
        try:
            return self.collator([self.dataset[index] for index in indices])
        except Exception as error:  # noqa: BLE001 - raised again by iterate_batches
            failure = _travelling(error)
            failure.add_note(traceback.format_exc())
            return failure


def _travelling(error: Exception) -> Exception:
    """An error that can pass between processes: itself, or its message where its class wants arguments of its own."""
    try:
        return copy.copy(error)
    except TypeError:
        return RuntimeError(str(error))


def iterate_batches(loader: Iterable[Any]) -> Iterator[Any]:
    """Batches of a data loader of :class:`CollatedBatches`.

    Args:
        loader: The loader.

    Raises:
        Exception: A batch could not be made.
    """
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _share(batch: dict[str, torch.Tensor], samples: Sequence[TrainingSample]) -> dict[str, torch.Tensor]:
    """Keep equal images, maps and verbalizations once."""
    _, images = unique_objects([image for sample in samples for image in sample.images])
    if len(set(images)) < len(images):
        batch["picture_index"] = torch.tensor(images)
        batch["pixel_values"] = batch["pixel_values"][_first_places(images)]
    names = [name for name in batch if name.startswith("auxiliary_")]
    _, maps = unique_objects([sample.auxiliary_image for sample in samples])
    looks: dict[tuple[int, str | None], int] = {}
    index = [
        looks.setdefault((painted, sample.auxiliary_text), len(looks))
        for painted, sample in zip(maps, samples, strict=True)
    ]
    if names and len(looks) < len(index):
        batch["auxiliary_index"] = torch.tensor(index)
        batch |= {name: batch[name][_first_places(index)] for name in names}
    return batch


def _first_places(index: Sequence[int]) -> list[int]:
    """Where each number of 0, 1, 2, ... appears first."""
    return [index.index(number) for number in range(max(index) + 1)]
