"""Emu behind a pipeline: answers in text, choices among given ones, images drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.utils import cached_file

from ...checkpoints.io.adapter_files import find_adapter_base
from ...checkpoints.io.hub_download import download_files
from ..answering import GeneratedAnswer, tell_streamer
from ..interleaved.answering_interleaved import InterleavedAnswering
from .modeling_emu import EmuForConditionalGeneration
from .processing_emu import EmuProcessor
from .prompts import INSTRUCT_TOKENS, cut_answer
from .visual_decoder import VisualDecoder

__all__ = ["EmuAnswering"]

#: Where a checkpoint keeps its visual decoder.
VISUAL_DECODER_FOLDER = "visual_decoder"
#: Options of drawing: how they are read, and what they must be.
_GUIDANCE = 7.5
_TOO_LARGE = 2**63  # for a seed of torch's
_DRAWING = {"steps": (int, 1), "guidance": (float, 0), "seed": (int, 0), "height": (int, 1), "width": (int, 1)}


class EmuAnswering(InterleavedAnswering):
    """An Emu with its processor, and its visual decoder where the checkpoint has one.

    Options of an answer beside those of :class:`.InterleavedAnswering`:

    * ``images``: how many images an answer may hold, drawn where the model says ``[IMG]``; 0 by default.
    * ``steps``, ``guidance``, ``seed``, ``height``, ``width``: of drawing; 50, 7.5, 0 and the decoder's own size.

    Args:
        model: The model.
        processor: Its processor.
        visual_decoder: Its visual decoder, or what loads it in a dtype when something is first drawn; None = it draws
            nothing.

    Raises:
        ValueError: They do not belong together, or the model has a learned prompt.
    """

    option_names = (*InterleavedAnswering.option_names, "images", *_DRAWING)
    served_options = ("prompt", "choices", "images", "steps", "guidance", "seed")
    model_class = EmuForConditionalGeneration
    processor_class = EmuProcessor

    def __init__(
        self,
        model: EmuForConditionalGeneration,
        processor: EmuProcessor,
        visual_decoder: VisualDecoder | Callable[[torch.dtype], VisualDecoder] | None = None,
    ) -> None:
        super().__init__(model, processor)
        if hasattr(model, "get_base_model") and model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"expected an Emu, perhaps with a LoRA, got one with {model.active_peft_config.peft_type.value}: a "
                "learned prompt hands over embeddings, in which the places of images do not show, and drawing would "
                "leave it out. Train a LoRA."
            )
        config = model.config
        wanted = (config.image_start_token_id, config.image_end_token_id, config.image_token_id)
        wanted, got = (*wanted, config.num_image_tokens), (*processor.image_token_ids, processor.num_image_tokens)
        if wanted != got:
            raise ValueError(
                f"expected a processor whose ids of [IMG], [/IMG] and <image> and length of an image are {wanted}, as "
                f"the model's, got {got}. Load both from one folder."
            )
        self._visual_decoder = visual_decoder

    @classmethod
    def load(cls, name_or_path: str, *, revision: str | None = None, **model_kwargs: Any) -> Self:
        """See :meth:`.Answering.load`; the visual decoder is looked for beside the weights."""
        answering = super().load(name_or_path, revision=revision, **model_kwargs)
        found, base = _find_visual_decoder(name_or_path, revision), find_adapter_base(name_or_path, revision)
        if found is None and base is not None:  # an adapter draws with its base's
            found = _find_visual_decoder(base.name, base.revision)
        answering._visual_decoder = found
        return answering

    def save(self, folder: Path) -> None:
        """See :meth:`.Answering.save`."""
        super().save(folder)
        if self._visual_decoder is not None:
            self.visual_decoder.save_pretrained(folder / VISUAL_DECODER_FOLDER)

    @property
    def visual_decoder(self) -> VisualDecoder:
        """What draws, on the model's device.

        Raises:
            ValueError: The checkpoint has none, or it does not fit.
            ImportError: diffusers is not installed.
        """
        if self._visual_decoder is None:
            raise ValueError(
                "expected a checkpoint with a visual decoder (visual_decoder/unet, vae and scheduler), got one "
                "without: it answers in text only. `moai convert` takes a released Emu with its decoder."
            )
        if not isinstance(self._visual_decoder, VisualDecoder):
            self._visual_decoder = self._visual_decoder(self.model.dtype)
        width, wanted = self._visual_decoder.unet.config.cross_attention_dim, self.model.config.text_config.hidden_size
        if width != wanted:
            raise ValueError(
                f"expected a visual decoder for embeddings of width {wanted}, as the model's, got one for {width}. "
                "Load both from one folder."
            )
        return self._visual_decoder.to(self.model.device)

    # ------------------------------------------------------------------ text out

    @property
    def shortest_prompt(self) -> int:
        """See :attr:`.Answering.shortest_prompt`."""
        return self.model.config.num_span_tokens

    def finish_text(self, text: str, options: Mapping[str, Any]) -> str:
        """See :meth:`.Answering.finish_text`."""
        return cut_answer(text)

    def list_stops(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`.Answering.list_stops`."""
        return INSTRUCT_TOKENS

    def pool_features(self, outputs: Any) -> torch.Tensor:
        """See :meth:`.InterleavedAnswering.pool_features`: the mean of the normed tokens."""
        return self.inner_model.vision_norm(outputs.last_hidden_state).float().mean(dim=1)

    @classmethod
    def parse_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`.Answering.parse_options`."""
        chosen = super().parse_options(options)
        for name, (kind, least) in ({"images": (int, 0)} | _DRAWING).items():
            if name in chosen:
                chosen[name] = _parse_number(name, chosen[name], kind, least)
        if "choices" in chosen and chosen.get("images"):
            raise ValueError("expected `choices` or `images`, got both: a choice is text. Leave one out.")
        return chosen

    def generate(
        self, inputs: BatchFeature, options: Mapping[str, Any], is_reporting: bool, **generate_kwargs: Any
    ) -> list[GeneratedAnswer]:
        """See :meth:`.Answering.generate`. With ``choices`` the likeliest of them is the answer."""
        if generate_kwargs.get("num_beams", 1) > 1:  # as the released evaluation sets it
            prompt = options.get("prompt", self.processor.default_prompt)
            generate_kwargs.setdefault("length_penalty", -1.0 if prompt == "vqa" else 0.0)
        if not options.get("images"):
            return super().generate(inputs, options, is_reporting, **generate_kwargs)
        streamer = generate_kwargs.pop("streamer", None)  # an image interrupts the text
        self.visual_decoder  # noqa: B018 - that there is none is told before the model runs
        rows = range(len(inputs["input_ids"]))
        answers = [self._generate_parts(inputs, row, options, generate_kwargs) for row in rows]
        tell_streamer(streamer, answers[0])
        return answers

    def _generate_parts(
        self, inputs: BatchFeature, row: int, options: Mapping[str, Any], generate_kwargs: Mapping[str, Any]
    ) -> GeneratedAnswer:
        mask = inputs["attention_mask"][row].bool()
        given = {"input_ids": inputs["input_ids"][row][mask][None]}
        given |= {n: inputs[n][row : row + 1] for n in ("pixel_values",) if inputs.get(n) is not None}
        found = self.model.generate_parts(**given, max_new_images=options["images"], **generate_kwargs)
        parts: list[str | Image.Image] = []
        for part in found.parts:
            if part.dim() == 1:
                parts.append(self.processor.tokenizer.decode(part, skip_special_tokens=True))
            else:
                parts.append(self._decode_image(part[None], options))
        return GeneratedAnswer(tuple(part for part in parts if part != ""))

    # ------------------------------------------------------------------ images out

    def draw(self, parts: Sequence[str | Image.Image], options: Mapping[str, Any]) -> Image.Image:
        """See :meth:`.Answering.draw`: a text is drawn, images are blended, both are a prompt in context."""
        if strangers := sorted(set(options) - set(_DRAWING)):
            raise ValueError(f"expected options of drawing ({', '.join(_DRAWING)}), got {', '.join(strangers)}.")
        decoder = self.visual_decoder  # that there is none is told before the model runs
        is_guided = options.get("guidance", _GUIDANCE) > 1
        batch = self.processor.encode_drawing(parts, is_guided)
        config, length = self.model.config, batch["input_ids"].shape[1]
        longest = config.max_positions
        if longest is not None and length + config.num_image_tokens > longest:
            raise ValueError(
                f"expected a prompt of at most {longest - config.num_image_tokens} tokens (each image is "
                f"{config.num_span_tokens}), got {length}. Shorten it."
            )
        embeds = self.model.generate_image(**batch.to(self.model.device, dtype=self.model.dtype))
        return _decode(decoder, embeds[:1], embeds[1:] if is_guided else None, options)

    def _decode_image(self, embeds: torch.Tensor, options: Mapping[str, Any]) -> Image.Image:
        """An image inside an answer; guidance leads away from what follows nothing, as in :meth:`draw`."""
        unconditional = None
        if options.get("guidance", _GUIDANCE) > 1:
            ids = [*self.processor.guard.prefix_ids, self.processor.image_token_ids[0]]
            unconditional = self.model.generate_image(torch.tensor([ids], device=self.model.device))
        return _decode(self.visual_decoder, embeds, unconditional, options)


def _decode(
    decoder: VisualDecoder, embeds: torch.Tensor, unconditional: torch.Tensor | None, options: Mapping[str, Any]
) -> Image.Image:
    (image,) = decoder.draw(
        embeds,
        unconditional,
        height=options.get("height"),
        width=options.get("width"),
        num_inference_steps=options.get("steps", 50),
        guidance_scale=options.get("guidance", _GUIDANCE),
        generator=torch.Generator().manual_seed(options.get("seed", 0)),
    )
    return image


def _parse_number(name: str, given: Any, kind: type, least: int) -> int | float:
    try:
        value = kind(given)
        is_well = least <= value < _TOO_LARGE and math.isfinite(value) and (kind is float or value == float(given))
    except (TypeError, ValueError, OverflowError):
        is_well = False
    if not is_well or isinstance(given, bool):
        raise ValueError(
            f"`{name}` must be {'a' if kind is float else 'a whole'} number from {least}, below 2**63, got {given!r}."
        )
    return value


def _find_visual_decoder(name_or_path: str, revision: str | None) -> Callable[[torch.dtype], VisualDecoder] | None:
    """What loads a checkpoint's visual decoder when something is first drawn; None = it has none."""
    silent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(name_or_path, f"{VISUAL_DECODER_FOLDER}/unet/config.json", revision=revision, **silent)
    if file is None:
        return None

    def load(dtype: torch.dtype) -> VisualDecoder:
        folder = Path(file).parent.parent
        if not Path(name_or_path).is_dir():
            folder = download_files(name_or_path, (f"{VISUAL_DECODER_FOLDER}/*",), revision) / folder.name
        return VisualDecoder.from_pretrained(folder, dtype)

    return load
