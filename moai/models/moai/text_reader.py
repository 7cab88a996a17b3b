"""Text reader: a language model that reads the whole verbalization in its prompt, without the image.

Compressor and mixers hand on a verbalization in a fixed number of latents. How far MoAI is from its own decoder with
the same words in the prompt, best after equal training (`recipes.reader`), tells what that costs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, BatchFeature, PreTrainedModel

from ...checkpoints.io.verbalizer_settings import VerbalizerSettings
from ...processing.image_loading import DEFAULT_MAX_PIXELS
from ..answering import Answering
from ..context_length import count_positions
from .chat_templates import SYSTEM_PROMPT
from .modeling_moai import MoAIForConditionalGeneration
from .scenes_moai import encode_scenes
from .tokenization_internlm2 import InternLM2Tokenizer

__all__ = ["TextReaderAnswering", "extract_decoder"]


def extract_decoder(whole: MoAIForConditionalGeneration) -> PreTrainedModel:
    """A MoAI's decoder as a language model of its own: no compressor, no mixers, no image.

    Raises:
        ValueError: The decoder has partial LoRA, which is part of how it sees images.
    """
    if whole.config.plora_rank:
        raise ValueError(f"expected a decoder without partial LoRA to read words, got rank {whole.config.plora_rank}.")
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(whole.config.text_config, dtype=whole.dtype)
    decoder.model.load_state_dict(whole.model.language_model.state_dict(), assign=True)
    decoder.model.rotary_emb = whole.model.language_model.rotary_emb  # its frequencies stand in no checkpoint
    decoder.get_output_embeddings().load_state_dict(whole.get_output_embeddings().state_dict(), assign=True)
    decoder.generation_config = whole.generation_config
    return decoder.eval()


class TextReaderAnswering(Answering):
    """A decoder that is asked with the verbalization in its prompt, behind a pipeline.

    Args:
        model: Causal language model in evaluation mode.
        processor: What has its ``tokenizer``, with pieces of sentencepiece; its ``max_image_pixels`` bounds what is
            read for the verbalizers.

    Raises:
        ValueError: The tokenizer is of another kind.
    """

    text_input = "auxiliary_text"
    scene_encoder = encode_scenes
    bounded_by = ("verbalization",)

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        super().__init__(model, processor)
        if not hasattr(processor.tokenizer, "sp_model"):
            raise ValueError(
                f"expected a reader with a sentencepiece tokenizer, got {type(processor.tokenizer).__name__}. Ask such "
                "a decoder as a model of its own: `moai evaluate DECODER TEST`."
            )

    @classmethod
    def from_folder(cls, folder: str | Path) -> TextReaderAnswering:
        """Load model and tokenizer in float32.

        Args:
            folder: A decoder as the stage ``text`` of `python -m recipes.nano` or `recipes.reader` export it; or a
                whole MoAI, whose decoder alone is taken.

        Raises:
            ValueError: It lacks a config or a tokenizer.
        """
        folder = Path(folder)
        for name in ("config.json", "tokenizer.model"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"expected a text reader with {name} in {folder}, got none. "
                    "Export one: python -m recipes.nano --config configs/nano.yaml --out RUN --stage export"
                )
        if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "moai":
            model = extract_decoder(MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32))
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = InternLM2Tokenizer.from_pretrained(folder)
        return cls(model.eval(), SimpleNamespace(tokenizer=tokenizer, max_image_pixels=DEFAULT_MAX_PIXELS))

    @property
    def longest_sequence(self) -> int | None:
        """See :attr:`.Answering.longest_sequence`."""
        return count_positions(self.model.config)

    def prepare(
        self, image: Image.Image, question: str, max_new_tokens: int, earlier: Sequence[tuple[str, str]] = ()
    ) -> tuple[str, Sequence[tuple[str, str]]]:
        """See :meth:`.Answering.prepare`: question and turns; the prompt is written when its words are there."""
        return question, earlier

    def scene_settings(self, settings: VerbalizerSettings, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.scene_settings`."""
        return {"compat": settings.compat, "map_mode": "never"}

    def build_batch(
        self, images: Sequence[Any], prompts: Sequence[Any], found: Mapping[str, Any], options: Mapping[str, Any]
    ) -> BatchFeature:
        """See :meth:`.Answering.build_batch`; no image is in it."""
        texts = found["auxiliary_text"]
        rows = [self.prompt_ids(said or "", *asked) for said, asked in zip(texts, prompts, strict=True)]
        width, end = max(map(len, rows)), self.tokenizer.eos_token_id
        input_ids = torch.tensor([[end] * (width - len(ids)) + ids for ids in rows])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows])
        return BatchFeature({"input_ids": input_ids, "attention_mask": mask})

    def prompt_ids(self, verbalization: str, question: str, earlier: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Ids of a prompt, piece by piece as in training; `earlier`: questions and answers of the turns before."""
        encode, end = self.tokenizer.sp_model.encode, self.tokenizer.eos_token_id
        ids = [self.tokenizer.bos_token_id, *encode(f"{SYSTEM_PROMPT} "), *encode(verbalization)]
        for asked, answer in earlier:
            ids += [*encode(" USER:"), *encode(f" {asked}"), *encode(" ASSISTANT:"), *encode(f" {answer}"), end]
        return [*ids, *encode(" USER:"), *encode(f" {question}"), *encode(" ASSISTANT:")]

    def _run_generate(self, inputs: BatchFeature, **kwargs: Any) -> Any:
        end = self.tokenizer.eos_token_id
        return super()._run_generate(inputs, **{"eos_token_id": end, "pad_token_id": end} | kwargs)

    def _decode(self, result: Any, inputs: BatchFeature) -> list[str]:
        new_tokens = result.sequences[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]
