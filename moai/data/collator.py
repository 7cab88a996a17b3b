"""Collation of training samples to batches of model inputs."""

from __future__ import annotations

import copy
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset

from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.samples import Sample
from verbalizers import SCENE_FIELDS, Scene

__all__ = ["WEIGHTS", "CollatedBatches", "SampleCollator", "collate", "iterate_batches"]

#: Name of samples' weights in a batch.
WEIGHTS = "sample_weights"


class SampleCollator(ABC):
    """How a model reads training samples; give it to a `DataLoader` as `collate_fn`.

    One implementation per model, in its `collator_X.py`.

    Args:
        processor: Makes tokens and pixels.
        settings: How scenes are said; None = samples have none.
        kinds: Which kinds are said, in this order; None = all that were found.
        chat_template: Template (name) of prompts; None = the processor's default.
        padding_side: "left" or "right"; the loss is the same.
        is_sharing: Whether samples of one image (the same object) may leave its inputs in the batch once.

    Attributes:
        reads_maps: Whether the model looks at painted panoptic maps.
        reads_documents: Whether samples may be documents: one message of the assistant that holds images.
        max_images: Most images in a sample; None = any number.
    """

    reads_maps: ClassVar[bool] = False
    reads_documents: ClassVar[bool] = False
    max_images: ClassVar[int | None] = None

    def __init__(
        self,
        processor: Any,
        settings: VerbalizerSettings | None = None,
        kinds: Sequence[str] | None = None,
        chat_template: str | None = None,
        padding_side: str = "left",
        is_sharing: bool = False,
    ) -> None:
        self.processor, self.settings, self.kinds = processor, settings, kinds
        self.chat_template, self.padding_side, self.is_sharing = chat_template, padding_side, is_sharing

    def replace(self, **attributes: Any) -> SampleCollator:
        """A copy with other attributes: those of the constructor, by name."""
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """One batch: inputs of the model and `labels`.

        Args:
            samples: B samples.

        Raises:
            ValueError: No sample, or one that cannot be read.
        """

    @abstractmethod
    def measure(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of a sample, its answer included; images whose size decides count as the smallest, scenes not at all.

        Raises:
            BadSampleError: A text cannot be written.
        """

    def estimate(self, messages: Sequence[Mapping[str, Any]], turns: Sequence[int]) -> list[int]:
        """Tokens of the samples of one conversation; exact or nearly so, as this is asked of every row.

        Args:
            messages: The conversation.
            turns: Places of the assistant's messages; each is one sample with all before it as prompt.
        """
        return [self.measure(messages[: turn + 1]) for turn in turns]

    def judge_verbalization(self, text: str, limit: int | None) -> str | None:
        """What is wrong with a verbalization that stands outside the prompt; None = it can be read.

        Args:
            text: The verbalization.
            limit: Most tokens.
        """
        return None

    @property
    def bounds_verbalizations(self) -> bool:
        """Whether :meth:`judge_verbalization` may find something."""
        return False

    def find_problem(self, sample: Sample, limit: int | None) -> str | None:
        """What keeps a sample from being trained on, now that its images and scenes are there.

        Args:
            sample: The sample.
            limit: Most tokens; None = no bound.

        Raises:
            BadSampleError: A text cannot be written.
        """
        length = self.measure_sample(sample)
        if limit is None or length <= limit:
            return None
        return (
            f"expected at most {limit} tokens (`max_length`, or what the model reads), got {length}, images, "
            "verbalization and answer included."
        )

    def measure_sample(self, sample: Sample) -> int:
        """Exact tokens of a sample, images and scenes included."""
        return self.measure(sample.messages)

    def kinds_of(self, scene: Scene | None) -> list[str] | None:
        """The kinds that are said of a scene: of those asked for the ones that it knows; None = all."""
        if self.kinds is None or scene is None:
            return None
        known = {*SCENE_FIELDS, *scene.findings, *scene.failures}
        return [kind for kind in self.kinds if kind in known]


def collate(collator: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    """One batch; where samples count differently in the loss, their weights ``(B,)`` float32 are in it too.

    Args:
        collator: What makes a batch of samples.
        samples: B samples.
    """
    batch, weights = collator(samples), [getattr(sample, "weight", 1.0) for sample in samples]
    return batch if set(weights) == {1.0} else {**batch, WEIGHTS: torch.tensor(weights)}


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
            return collate(self.collator, [self.dataset[index] for index in indices])
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
