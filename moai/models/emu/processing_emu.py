"""EmuProcessor: images and texts in reading order to model inputs. It knows no verbalizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from ...processing.control_tokens import ControlTokenGuard
from ...processing.conversation_parts import escape_texts, list_images
from ...processing.image_loading import DEFAULT_MAX_PIXELS, ImageSource
from ...processing.image_rows import stack_images
from ...processing.sample_batching import as_list, group_images_by_placeholders, pad_rows
from ...processing.several_images import insert_images
from ...processing.token_roles import IGNORE_INDEX
from ..shots import Shot
from .prompts import CHAT_TEMPLATES, IMAGE_END_TOKEN, IMAGE_START_TOKEN, IMAGE_TOKEN, PROMPTS

__all__ = ["EmuProcessor"]


class EmuProcessor(ProcessorMixin):
    """Turns interleaved images and texts into a batch for ``EmuForConditionalGeneration``.

    In a prompt one ``<image>`` stands for an image; among the tokens it is ``[IMG]``, ``num_image_tokens`` times
    ``<image>``, ``[/IMG]``. A video is as many images as it has frames, ``num_frames`` of them at most.

    Args:
        image_processor: Makes ``pixel_values``.
        tokenizer: The decoder's, with ``[IMG]``, ``[/IMG]`` and ``<image>``.
        chat_template: Templates by name; None = :data:`.prompts.CHAT_TEMPLATES`.
        num_image_tokens: Embeddings that an image becomes, as the model's.
        default_prompt: How conversations are written, one of :data:`.prompts.PROMPTS`.
        num_frames: Of a longer video so many frames are taken, evenly.
        max_image_pixels: Largest image that is decoded, in pixels.

    Raises:
        ValueError: The tokenizer lacks a token, or there is no such prompt.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        num_image_tokens: int = 32,
        default_prompt: str = "plain",
        num_frames: int = 8,
        max_image_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        vocabulary = tokenizer.get_vocab()
        if lacking := [t for t in (IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_TOKEN) if t not in vocabulary]:
            raise ValueError(
                f"expected a tokenizer with {', '.join(lacking)}, got one without. Take it from "
                "moai.models.emu.backbones.load_tokenizer."
            )
        if default_prompt not in PROMPTS:
            raise ValueError(f"`default_prompt` must be one of {', '.join(PROMPTS)}, got {default_prompt!r}.")
        if num_frames < 1 or num_image_tokens < 1:
            raise ValueError(
                f"`num_frames` and `num_image_tokens` must be at least 1, got {num_frames} and {num_image_tokens}."
            )
        self.num_image_tokens, self.default_prompt, self.num_frames = num_image_tokens, default_prompt, num_frames
        self.max_image_pixels = max_image_pixels
        self.image_token = IMAGE_TOKEN
        templates = chat_template or CHAT_TEMPLATES | {"default": CHAT_TEMPLATES[default_prompt]}
        super().__init__(image_processor, tokenizer, chat_template=templates)

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a full batch."""
        return ["input_ids", "attention_mask", "pixel_values"]

    @property
    def image_token_ids(self) -> tuple[int, int, int]:
        """Ids of ``[IMG]``, ``[/IMG]`` and ``<image>``."""
        ids = self.tokenizer.convert_tokens_to_ids([IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_TOKEN])
        return ids[0], ids[1], ids[2]

    @property
    def guard(self) -> ControlTokenGuard:
        """The line between prompt and data."""
        cached = self.__dict__.get("_guard")
        if cached is None or cached.tokenizer is not self.tokenizer:
            literals = (IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_TOKEN)
            cached = self.__dict__["_guard"] = ControlTokenGuard(self.tokenizer, literals)
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

        Args:
            conversation: One or several. Images are parts ``{"type": "image", "image": ...}``, videos
                ``{"type": "video", "video": [frame, ...]}``; control tokens inside a text are text.
            chat_template: Name in :data:`.prompts.PROMPTS`, or a template; None = ``default_prompt``.
            sanitize_control_tokens: Whether control tokens inside texts are kept from steering.
            **kwargs: As in transformers (``tokenize``, ``return_dict``, ...).
        """
        conversation = self._sample_frames(conversation)
        if sanitize_control_tokens:
            conversation = escape_texts(conversation, self.guard)
        return super().apply_chat_template(conversation, chat_template=chat_template, **kwargs)

    def _sample_frames(self, value: Any) -> Any:
        """Conversations whose videos have at most ``num_frames`` frames."""
        if isinstance(value, (list, tuple)):
            return [self._sample_frames(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        if value.get("type") == "video":
            frames = value.get("video")
            if isinstance(frames, (str, bytes)) or not hasattr(frames, "__len__") or not len(frames):
                raise ValueError(
                    f"expected a video as the list of its frames, got {type(frames).__name__}. Read the file's frames "
                    "first: video files are not decoded here."
                )
            count = min(self.num_frames, len(frames))
            # The middle of each of so many equal parts.
            return {**value, "video": [frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count)]}
        return value if isinstance(value.get("content"), str) else {k: self._sample_frames(v) for k, v in value.items()}

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
            shots: Demonstrations; their images may be None.
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

    # ------------------------------------------------------------------ batches

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
            float32, zeros behind a row's last image; with ``answers`` ``labels`` ``(B, L)`` int64: each answer and
            the end of text, -100 elsewhere.

        Raises:
            ValueError: Counts do not match, a text is empty or too long, or an image cannot be read.
            TypeError: An argument is unknown.
        """
        add_special_tokens = kwargs.pop("add_special_tokens", True)
        known = {"padding", "return_attention_mask", "return_mm_token_type_ids"}
        if unknown := sorted(name for name, value in kwargs.items() if value is not None and name not in known):
            raise TypeError(f"EmuProcessor got unknown arguments {unknown}. See help(EmuProcessor.__call__).")
        if (text is None) == (conversations is None):
            raise ValueError("expected either `text` (with `images`) or `conversations`, got both or none.")
        if conversations is not None:
            if prompt is not None and prompt not in PROMPTS:
                raise ValueError(f"`prompt` must be one of {sorted(PROMPTS)}, got {prompt!r}.")
            conversations = self._sample_frames(list(conversations))
            text = self.apply_chat_template(conversations, chat_template=prompt)
            images = [list_images(messages) for messages in conversations]
        prompts = as_list(text)
        groups = group_images_by_placeholders(images, [item.count(IMAGE_TOKEN) for item in prompts], IMAGE_TOKEN)
        rows = [self.encode_prompt(item, add_special_tokens) for item in prompts]
        labels = None
        if answers is not None:
            if len(answers) != len(rows):
                raise ValueError(f"expected {len(rows)} answers, one per prompt, got {len(answers)}.")
            said = [[*self.encode_answer(answer), self.tokenizer.eos_token_id] for answer in answers]
            labels = [[IGNORE_INDEX] * len(row) + target for row, target in zip(rows, said, strict=True)]
            rows = [row + target for row, target in zip(rows, said, strict=True)]
        for index, row in enumerate(rows):
            if not row:
                raise ValueError(f"prompt {index} must not be empty, got {prompts[index]!r}. Ask something.")
            if max_length is not None and len(row) > max_length:
                raise ValueError(
                    f"prompt {index} has {len(row)} tokens (images and answer included), the bound is {max_length}. "
                    f"Shorten it; an image takes {self.num_image_tokens + 2}."
                )
        data = self._pad(rows, padding_side)
        if labels is not None:
            data["labels"] = pad_rows(labels, IGNORE_INDEX, padding_side)
        if any(groups):
            data["pixel_values"] = stack_images(groups, self.image_processor, self.max_image_pixels, allow_urls)[0]
        return BatchFeature(data, tensor_type=return_tensors)

    def encode_prompt(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a prompt whose control tokens count; ``<image>`` becomes an image's span.

        Args:
            text: For example from :meth:`apply_chat_template`.
            add_special_tokens: Whether the tokenizer's beginning of text stands in front.
        """
        start, end, image = self.image_token_ids
        span = [start, *[image] * self.num_image_tokens, end]
        ids = [*(self.guard.prefix_ids if add_special_tokens else []), *self.guard.encode(text)]
        return [new for token in ids for new in (span if token == image else (token,))]

    def encode_answer(self, answer: str) -> list[int]:
        """Ids of an answer, which is data, behind a prompt."""
        return self.guard.encode_continuation(self.guard.escape(answer))

    def encode_drawing(self, parts: Sequence[str | ImageSource], is_guided: bool = True) -> BatchFeature:
        """Inputs of ``generate_image``: a prompt of texts and images, and the empty one that guidance compares with.

        Args:
            parts: In reading order, joined without anything between them; texts are data.
            is_guided: Whether the empty prompt is the second row.

        Returns:
            ``input_ids``, ``attention_mask`` ``(2, L)``, each row ending with ``[IMG]``; ``pixel_values`` ``(2, T,
            3, H, W)`` where there are images.

        Raises:
            ValueError: There is nothing to draw, or an image cannot be read.
        """
        if not any(part.strip() if isinstance(part, str) else True for part in parts):
            raise ValueError("expected a text or images to draw from, got nothing. Say what is to be drawn.")
        text = "".join(self.guard.escape(part) if isinstance(part, str) else IMAGE_TOKEN for part in parts)
        images = [part for part in parts if not isinstance(part, str)]
        start = self.image_token_ids[0]
        rows = [[*self.encode_prompt(item), start] for item in ([text, ""] if is_guided else [text])]
        data = self._pad(rows, "left")
        if images:
            groups = [images, []] if is_guided else [images]
            data["pixel_values"] = stack_images(groups, self.image_processor, self.max_image_pixels)[0]
        return BatchFeature(data, tensor_type="pt")

    def _pad(self, rows: Sequence[Sequence[int]], side: str) -> dict[str, Any]:
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        mask = [[1] * len(row) for row in rows]
        return {"input_ids": pad_rows(rows, pad, side), "attention_mask": pad_rows(mask, 0, side)}

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Text of token ids; see transformers."""
        return self.tokenizer.batch_decode(*args, **kwargs)


def _ask(images: Sequence[Any], question: str, context: str | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    if context:
        parts.append({"type": "text", "text": f"{context}\n"})
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
