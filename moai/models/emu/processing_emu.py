"""EmuProcessor: images and texts in reading order to model inputs. It knows no verbalizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchFeature

from ...processing.image_loading import DEFAULT_MAX_PIXELS, ImageSource
from ..interleaved.processing_interleaved import InterleavedProcessor
from .prompts import CHAT_TEMPLATES, IMAGE_END_TOKEN, IMAGE_START_TOKEN, IMAGE_TOKEN, PROMPTS

__all__ = ["EmuProcessor"]


class EmuProcessor(InterleavedProcessor):
    """Turns interleaved images and texts into a batch for ``EmuForConditionalGeneration``.

    In a prompt one ``<image>`` stands for an image; among the tokens it is ``[IMG]``, ``num_image_tokens`` times
    ``<image>``, ``[/IMG]``. A video is a part ``{"type": "video", "video": [frame, ...]}`` of a message: as many images
    as it has frames, ``num_frames`` of them at most.

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

    control_tokens = (IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_TOKEN)
    prompts = PROMPTS
    templates = CHAT_TEMPLATES

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
        if default_prompt not in PROMPTS:
            raise ValueError(f"`default_prompt` must be one of {', '.join(PROMPTS)}, got {default_prompt!r}.")
        if num_frames < 1 or num_image_tokens < 1:
            raise ValueError(
                f"`num_frames` and `num_image_tokens` must be at least 1, got {num_frames} and {num_image_tokens}."
            )
        self.num_image_tokens, self.default_prompt, self.num_frames = num_image_tokens, default_prompt, num_frames
        templates = chat_template or CHAT_TEMPLATES | {"default": CHAT_TEMPLATES[default_prompt]}
        super().__init__(image_processor, tokenizer, templates, max_image_pixels)

    @property
    def image_token_ids(self) -> tuple[int, int, int]:
        """Ids of ``[IMG]``, ``[/IMG]`` and ``<image>``."""
        ids = self.tokenizer.convert_tokens_to_ids(list(self.control_tokens))
        return ids[0], ids[1], ids[2]

    def prepare_videos(self, conversation: Any) -> Any:
        """See :meth:`.InterleavedProcessor.prepare_videos`: of each, at most ``num_frames`` frames."""
        if isinstance(conversation, (list, tuple)):
            return [self.prepare_videos(item) for item in conversation]
        if not isinstance(conversation, Mapping):
            return conversation
        part = conversation
        if part.get("type") == "video":
            frames = part.get("video")
            if isinstance(frames, (str, bytes)) or not hasattr(frames, "__len__") or not len(frames):
                raise ValueError(
                    f"expected a video as the list of its frames, got {type(frames).__name__}. Read the file's frames "
                    "first: video files are not decoded here."
                )
            count = min(self.num_frames, len(frames))
            # The middle of each of so many equal parts.
            return {**part, "video": [frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count)]}
        return part if isinstance(part.get("content"), str) else {k: self.prepare_videos(v) for k, v in part.items()}

    def encode_prompt(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """See :meth:`.InterleavedProcessor.encode_prompt`; ``<image>`` becomes an image's span."""
        start, end, image = self.image_token_ids
        span = [start, *[image] * self.num_image_tokens, end]
        ids = super().encode_prompt(text, add_special_tokens)
        return [new for token in ids for new in (span if token == image else (token,))]

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
        data = self.pad_ids(rows, "left")
        if images:
            groups = [images, []] if is_guided else [images]
            data |= self.encode_images(groups)
        return BatchFeature(data, tensor_type="pt")
