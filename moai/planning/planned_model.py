"""A model to count: configuration and processor, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from moai.checkpoints.io.adapter_files import find_adapter_base, read_config
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.models.answering import Answering
from moai.models.registry import MODEL_SPECS, ModelSpec, find_spec, load_named
from verbalizers import Scene

from .weight_sizes import ModelSize, build_empty, count_model

__all__ = ["PlannedModel", "SampleShape"]

_WORD, _MANY = "a ", 64


@dataclass(frozen=True)
class SampleShape:
    """Lengths of a question about an image and of its answer, in tokens.

    Attributes:
        num_prompt_tokens: Of the question; what the model writes around it is counted beside them.
        num_auxiliary_tokens: Of the verbalization.
        num_answer_tokens: Of the answer.
        image_size_hw: Height and width of the image in pixels; counts for models that take images of any size.
    """

    num_prompt_tokens: int = 80
    num_auxiliary_tokens: int = 275
    num_answer_tokens: int = 128
    image_size_hw: tuple[int, int] = (480, 640)


@dataclass(frozen=True)
class PlannedModel:
    """A model that can be built on torch's meta device, with its processor.

    Attributes:
        name: For messages.
        config: Its configuration.
        processor: As its ``answering`` takes it.
        spec: Where its parts are.
        verbalizers: Who looks, as the checkpoint says.
    """

    name: str
    config: PreTrainedConfig
    processor: Any
    spec: ModelSpec
    verbalizers: VerbalizerSettings

    @classmethod
    def load(cls, name_or_path: str | Path) -> PlannedModel:
        """Read configuration and processor of a checkpoint; of an adapter, its base model's.

        Args:
            name_or_path: Folder, bundled name, hub name, or the name of a published model that a model's spec knows.

        Raises:
            ValueError: There is no such checkpoint, or it answers no questions.
        """
        for spec in MODEL_SPECS.values():
            if str(name_or_path) in spec.published and not Path(name_or_path).exists():
                config, processor = load_named(spec.published[str(name_or_path)])()
                return cls(str(name_or_path), config, processor, spec, VerbalizerSettings())
        folder = find_checkpoint(name_or_path)
        base = find_adapter_base(folder)
        source, revision = (folder, None) if base is None else (base.name, base.revision)
        spec = find_spec(folder, read_config(source, revision).get("model_type"))
        config = AutoConfig.from_pretrained(source, revision=revision or "main")
        processor = load_named(spec.answering).load_processor(source, revision)
        return cls(str(name_or_path), config, processor, spec, VerbalizerSettings.load_pretrained(folder))

    @classmethod
    def of_backbones(cls, vision: str, text: str) -> PlannedModel:
        """The model that training would build of two backbones, of which no weights are read.

        Args:
            vision: Folder or hub name of a vision tower.
            text: Folder or hub name of a decoder.
        """
        (spec,) = (spec for spec in MODEL_SPECS.values() if spec.backbones is not None)
        config, processor = load_named(spec.backbones)(vision, text)
        return cls(f"{vision} + {text}", config, processor, spec, VerbalizerSettings())

    @property
    def answering(self) -> type[Answering]:
        """What answers with it."""
        return load_named(self.spec.answering)

    @cached_property
    def size(self) -> ModelSize:
        """Its parameters."""
        return count_model(build_empty(self.config), self.answering.whole_modules)

    @cached_property
    def size_of_all(self) -> ModelSize | None:
        """Likewise, where ``quantize_all`` shrinks more; None = nothing more."""
        whole = self.answering.always_whole_modules
        if whole is None:
            return None
        tied = ("lm_head",) if getattr(self.config, "tie_word_embeddings", False) else ()
        return count_model(build_empty(self.config), (*whole, *tied))

    def write_words(self, num_tokens: int) -> str:
        """A text of so many tokens, or a few less where a word has several."""
        tokenizer = self.processor.tokenizer
        one, many = (len(tokenizer(_WORD * n, add_special_tokens=False)["input_ids"]) for n in (_MANY, 2 * _MANY))
        return (_WORD * int(num_tokens * _MANY / max(many - one, 1))).strip()

    def draw_image(self, shape: SampleShape, number: int) -> Image.Image:
        """An image of one colour, another one for each number."""
        return Image.new("RGB", shape.image_size_hw[::-1], (number % 256, number // 256 % 256, 128))

    def write_scene(self, shape: SampleShape, number: int) -> Scene:
        """A scene whose verbalization is as long as the shape says, another one for each number up to 26."""
        text = self.write_words(shape.num_auxiliary_tokens).replace("a", chr(ord("a") + number % 26), 1)
        return Scene(shape.image_size_hw, findings={"caption": text} if text else {})


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Keep transformers' warnings back: generating without numbers makes it warn of devices and ids."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def meta_floats(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Inputs as :func:`.counting.counting` has them: floats without numbers, in one dtype."""
    return {
        name: value.to("meta", dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
