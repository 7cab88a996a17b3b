"""FlamingoProcessor: images and texts in reading order to model inputs. It knows no verbalizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from ...processing.control_tokens import ControlTokenGuard
from ...processing.image_loading import DEFAULT_MAX_PIXELS, ImageSource, load_image
from ...processing.pixel_values import compute_pixel_values
from ...processing.sample_batching import as_list, group_images_by_placeholders, pad_rows, unique_objects
from ...processing.several_images import insert_images
from ...processing.token_roles import IGNORE_INDEX
from ..shots import Shot
from .prompts import CHAT_TEMPLATES, END_OF_CHUNK_TOKEN, IMAGE_TOKEN, PROMPTS

__all__ = ["FlamingoProcessor"]


class FlamingoProcessor(ProcessorMixin):
    """Turns interleaved images and texts into a batch for ``FlamingoForConditionalGeneration``.

    Args:
        image_processor: Makes ``pixel_values``.
        tokenizer: The decoder's, with ``<image>`` and ``<|endofchunk|>``.
        chat_template: Templates by name; None = OpenFlamingo's prompts, :data:`.prompts.CHAT_TEMPLATES`.
        max_image_pixels: Largest image that is decoded, in pixels.

    Raises:
        ValueError: The tokenizer lacks one of the two tokens.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        max_image_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        for token in (IMAGE_TOKEN, END_OF_CHUNK_TOKEN):
            if token not in tokenizer.get_vocab():
                raise ValueError(
                    f"expected a tokenizer with {token}, got one without. Take it from "
                    "moai.models.flamingo.backbones.load_tokenizer."
                )
        self.max_image_pixels = max_image_pixels
        self.image_token = IMAGE_TOKEN
        super().__init__(image_processor, tokenizer, chat_template=chat_template or dict(CHAT_TEMPLATES))

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a full batch."""
        return ["input_ids", "attention_mask", "pixel_values", "media_mask"]

    @property
    def image_token_id(self) -> int:
        """Id of ``<image>``."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    @property
    def end_of_chunk_token_id(self) -> int:
        """Id of ``<|endofchunk|>``."""
        return self.tokenizer.convert_tokens_to_ids(END_OF_CHUNK_TOKEN)

    @property
    def guard(self) -> ControlTokenGuard:
        """The line between prompt and data."""
        cached = self.__dict__.get("_guard")
        if cached is None or cached.tokenizer is not self.tokenizer:
            cached = self.__dict__["_guard"] = ControlTokenGuard(self.tokenizer, (IMAGE_TOKEN, END_OF_CHUNK_TOKEN))
        return cached

    # ------------------------------------------------------------------ prompts

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Render conversations; see :meth:`transformers.ProcessorMixin.apply_chat_template`.

        A user's turn asks, an assistant's turn is the answer of a demonstration; a conversation that ends with the
        user waits for an answer.

        Args:
            conversation: One or several. Images are parts ``{"type": "image", "image": ...}``; control tokens inside
                a text are text.
            chat_template: Name in :data:`.prompts.PROMPTS`, or a template; None = "default".
            sanitize_control_tokens: Whether control tokens inside texts are kept from steering.
            **kwargs: As in transformers (``tokenize``, ``return_dict``, ...).
        """
        if sanitize_control_tokens:
            conversation = self._escape(conversation)
        return super().apply_chat_template(conversation, chat_template=chat_template, **kwargs)

    def _escape(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._escape(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        message = dict(value)
        for key in ("content", "text"):
            if isinstance(message.get(key), str):
                message[key] = self.guard.escape(message[key])
            elif key in message:
                message[key] = self._escape(message[key])
        return message

    def build_conversation(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        question: str | Sequence[Mapping[str, Any]],
        shots: Sequence[Shot] = (),
        context: str | None = None,
    ) -> list[dict[str, Any]]:
        """The conversation of a question with demonstrations in front of it.

        Args:
            images: What is asked about.
            question: Data; or messages whose last one asks, with a part ``{"type": "image"}`` per image.
            shots: Demonstrations; without images they are OpenFlamingo's "zero-shot" prompt.
            context: What verbalizers say about the images; stands between them and the question.
        """
        messages = []
        for image, asked, answer in shots:
            messages += [_ask([] if image is None else [image], asked), {"role": "assistant", "content": answer}]
        given = [] if images is None else as_list(images)
        if isinstance(question, str):
            return [*messages, _ask(given, question, context)]
        asked = insert_images(question, given)
        if context:
            parts = asked[-1]["content"]
            place = max((i for i, part in enumerate(parts) if part["type"] == "image"), default=-1) + 1
            parts.insert(place, {"type": "text", "text": f"{context}\n"})
        return [*messages, *asked]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        conversations: Sequence[Any] | None = None,
        prompt: str | None = None,
        answers: Sequence[str] | None = None,
        padding_side: str = "left",
        max_length: int | None = None,
        allow_urls: bool = False,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Build model inputs.

        Args:
            images: With ``text``: one image, a flat list, or a list per prompt, in reading order.
            text: Prompts whose control tokens and placeholders COUNT (from :meth:`apply_chat_template`).
            conversations: Instead of both: message lists, whose texts are data and whose images stand in them.
            prompt: How ``conversations`` are written, one of :data:`.prompts.PROMPTS`.
            answers: Training targets, as data, one per prompt; adds ``labels``.
            padding_side: "left" or "right".
            max_length: Longest sequence in tokens, answer included; None sets no bound.
            allow_urls: Whether http(s) addresses among the images are followed.
            return_tensors: "pt".
            **kwargs: ``padding`` (always on), ``add_special_tokens``.

        Returns:
            ``input_ids``, ``attention_mask`` ``(B, L)`` int64; with images ``pixel_values`` ``(B, T, 3, H, W)``
            float32, and where rows have different numbers of them ``media_mask`` ``(B, T)`` int64; with ``answers``
            ``labels`` ``(B, L)`` int64: each answer and its ``<|endofchunk|>``, -100 elsewhere.

        Raises:
            ValueError: Counts do not match, a text is empty or too long, or an image cannot be read.
            TypeError: An argument is unknown.
        """
        add_special_tokens = kwargs.pop("add_special_tokens", True)
        known = {"padding", "return_attention_mask", "return_mm_token_type_ids"}
        if unknown := sorted(name for name, value in kwargs.items() if value is not None and name not in known):
            raise TypeError(f"FlamingoProcessor got unknown arguments {unknown}. See help(FlamingoProcessor.__call__).")
        if (text is None) == (conversations is None):
            raise ValueError("expected either `text` (with `images`) or `conversations`, got both or none.")
        if conversations is not None:
            if prompt is not None and prompt not in PROMPTS:
                raise ValueError(f"`prompt` must be one of {sorted(PROMPTS)}, got {prompt!r}.")
            text = self.apply_chat_template(list(conversations), chat_template=prompt)
            images = [_list_images(messages) for messages in conversations]
        prompts = as_list(text)
        groups = group_images_by_placeholders(images, [item.count(IMAGE_TOKEN) for item in prompts], IMAGE_TOKEN)
        prefix = self.guard.prefix_ids if add_special_tokens else []
        rows = [[*prefix, *self.guard.encode(item)] for item in prompts]
        labels = None
        if answers is not None:
            if len(answers) != len(rows):
                raise ValueError(f"expected {len(rows)} answers, one per prompt, got {len(answers)}.")
            said = [
                [*self.guard.encode_continuation(self.guard.escape(answer)), self.end_of_chunk_token_id]
                for answer in answers
            ]
            labels = [[IGNORE_INDEX] * len(row) + target for row, target in zip(rows, said, strict=True)]
            rows = [row + target for row, target in zip(rows, said, strict=True)]
        for index, row in enumerate(rows):
            if not row:
                raise ValueError(f"prompt {index} must not be empty, got {prompts[index]!r}. Ask something.")
            if max_length is not None and len(row) > max_length:
                raise ValueError(
                    f"prompt {index} has {len(row)} tokens (answer included), the bound is {max_length}. Shorten it, "
                    "or give fewer demonstrations."
                )
        data: dict[str, Any] = {
            "input_ids": pad_rows(rows, self._pad_id, padding_side),
            "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, padding_side),
        }
        if labels is not None:
            data["labels"] = pad_rows(labels, IGNORE_INDEX, padding_side)
        if any(groups):
            data |= self._encode_images(groups, allow_urls)
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.end_of_chunk_token_id if pad is None else pad

    def _encode_images(self, groups: Sequence[Sequence[Any]], allow_urls: bool) -> dict[str, Any]:
        """Pixels of each row's images, zeros where a row has fewer than another."""
        given, places = unique_objects([image for group in groups for image in group])
        loaded = [load_image(image, self.max_image_pixels, allow_urls, allow_data_urls=True) for image in given]
        pixels = compute_pixel_values(self.image_processor, loaded)[places]
        counts = [len(group) for group in groups]
        values = np.zeros((len(groups), max(counts), *pixels.shape[1:]), dtype=np.float32)
        mask = np.arange(max(counts))[None] < np.array(counts)[:, None]
        values[mask] = pixels
        return {"pixel_values": values} | ({} if mask.all() else {"media_mask": mask.astype(np.int64)})

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Text of token ids; see transformers."""
        return self.tokenizer.batch_decode(*args, **kwargs)


def _ask(images: Sequence[Any], question: str, context: str | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    if context:
        parts.append({"type": "text", "text": f"{context}\n"})
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def _list_images(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Images of a conversation in reading order."""
    parts = [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
    images = []
    for part in parts:
        if part["type"] == "image":
            source = next((part[key] for key in ("image", "url", "path") if part.get(key) is not None), None)
            if source is None and isinstance(part.get("base64"), str):
                source = "data:image;base64," + part["base64"]
            if source is None:
                raise ValueError(f"expected an image in {{'type': 'image', 'image': ...}}, got {sorted(part)}.")
            images.append(source)
    return images
