"""InterleavedProcessor: images and texts in reading order to model inputs. It knows no verbalizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from transformers import BatchFeature

from ...processing.conversation_parts import escape_texts, list_images
from ...processing.guarded_processor import GuardedProcessor
from ...processing.image_loading import DEFAULT_MAX_PIXELS, ImageSource
from ...processing.image_rows import stack_images
from ...processing.sample_batching import as_list, group_images_by_placeholders, pad_rows
from ...processing.several_images import insert_images
from ...processing.token_roles import IGNORE_INDEX
from ..shots import Shot

__all__ = ["InterleavedProcessor"]


class InterleavedProcessor(GuardedProcessor):
    """Turns interleaved images and texts into a batch.

    Attributes:
        control_tokens: Tokens that the tokenizer must have and that no text may give.
        prompts: Ways to write a question, by name: those of the chat templates.
        templates: Chat templates by name; "default" is among them.

    Args:
        image_processor: Makes ``pixel_values``.
        tokenizer: The decoder's, with the control tokens.
        chat_template: Templates by name; None = ``templates``.
        max_image_pixels: Largest image that is decoded, in pixels.

    Raises:
        ValueError: The tokenizer lacks a control token.
    """

    prompts: ClassVar[Collection[str]]
    templates: ClassVar[Mapping[str, str]]
    image_token = "<image>"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        max_image_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        vocabulary = tokenizer.get_vocab()
        if lacking := [token for token in self.control_tokens if token not in vocabulary]:
            raise ValueError(
                f"expected a tokenizer with {', '.join(lacking)}, got one without. Take it from the function "
                "load_tokenizer in the model's backbones.py."
            )
        self.max_image_pixels = max_image_pixels
        super().__init__(image_processor, tokenizer, chat_template=chat_template or dict(self.templates))

    @property
    def answer_end_id(self) -> int:
        """Id of the token that ends an answer."""
        return self.tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        """Id of padding; the answer's end where the tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return self.answer_end_id if pad is None else pad

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
            chat_template: Name in ``prompts``, or a template; None = "default".
            sanitize_control_tokens: Whether control tokens inside texts are kept from steering.
            **kwargs: As in transformers (``tokenize``, ``return_dict``, ...).
        """
        conversation = self.prepare_videos(conversation)
        if sanitize_control_tokens:
            conversation = escape_texts(conversation, self.guard)
        return super().apply_chat_template(conversation, chat_template=chat_template, **kwargs)

    def prepare_videos(self, conversation: Any) -> Any:
        """Conversations whose videos are those that the model reads; as they are, for a model that reads none.

        Raises:
            ValueError: There is one that the model does not read.
        """
        if isinstance(conversation, (list, tuple)):
            for item in conversation:
                self.prepare_videos(item)
        elif isinstance(conversation, Mapping):
            if conversation.get("type") == "video":
                raise ValueError(
                    "expected texts and images, got a video, which this model does not read. Give frames as images."
                )
            self.prepare_videos(conversation.get("content"))
        return conversation

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
            shots: Demonstrations; their images may be None, and what verbalizers say about one is a text.
            context: What verbalizers say about the images; stands between them and the question.
        """
        messages = []
        for image, asked, answer, *said in shots:
            turn = _ask([] if image is None else [image], asked, *said)
            messages += [turn, {"role": "assistant", "content": answer}]
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
            prompt: How ``conversations`` are written, one of ``prompts``.
            answers: Training targets, as data, one per prompt; adds ``labels``.
            padding_side: "left" or "right".
            max_length: Longest sequence in tokens, answer included; None sets no bound.
            allow_urls: Whether http(s) addresses among the images are followed.
            return_tensors: "pt".
            **kwargs: ``padding`` (always on), ``add_special_tokens``.

        Returns:
            ``input_ids``, ``attention_mask`` ``(B, L)`` int64; with images what :meth:`encode_images` returns; with
            ``answers`` ``labels`` ``(B, L)`` int64: each answer and its end, -100 elsewhere.

        Raises:
            ValueError: Counts do not match, a text is empty or too long, or an image cannot be read.
            TypeError: An argument is unknown.
        """
        add_special_tokens = kwargs.pop("add_special_tokens", True)
        known = {"padding", "return_attention_mask", "return_mm_token_type_ids"}
        if unknown := sorted(name for name, value in kwargs.items() if value is not None and name not in known):
            name = type(self).__name__
            raise TypeError(f"{name} got unknown arguments {unknown}. See help({name}.__call__).")
        if (text is None) == (conversations is None):
            raise ValueError("expected either `text` (with `images`) or `conversations`, got both or none.")
        if conversations is not None:
            if prompt is not None and prompt not in self.prompts:
                raise ValueError(f"`prompt` must be one of {sorted(self.prompts)}, got {prompt!r}.")
            conversations = self.prepare_videos(list(conversations))
            text = self.apply_chat_template(conversations, chat_template=prompt)
            images = [list_images(messages) for messages in conversations]
        texts, token = as_list(text), self.image_token
        groups = group_images_by_placeholders(images, [item.count(token) for item in texts], token)
        rows = [self.encode_prompt(item, add_special_tokens) for item in texts]
        labels = None
        if answers is not None:
            if len(answers) != len(rows):
                raise ValueError(f"expected {len(rows)} answers, one per prompt, got {len(answers)}.")
            said = [[*self.encode_answer(answer), self.answer_end_id] for answer in answers]
            labels = [[IGNORE_INDEX] * len(row) + target for row, target in zip(rows, said, strict=True)]
            rows = [row + target for row, target in zip(rows, said, strict=True)]
        for index, row in enumerate(rows):
            if not row:
                raise ValueError(f"prompt {index} must not be empty, got {texts[index]!r}. Ask something.")
            if max_length is not None and len(row) > max_length:
                raise ValueError(
                    f"prompt {index} has {len(row)} tokens (images and answer included), the bound is {max_length}. "
                    "Shorten it, or give fewer demonstrations or images."
                )
        data = self.pad_ids(rows, padding_side)
        if labels is not None:
            data["labels"] = pad_rows(labels, IGNORE_INDEX, padding_side)
        if any(groups):
            data |= self.encode_images(groups, allow_urls)
        return BatchFeature(data, tensor_type=return_tensors)

    def encode_prompt(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a prompt whose control tokens count.

        Args:
            text: For example from :meth:`apply_chat_template`.
            add_special_tokens: Whether the tokenizer's beginning of text stands in front.
        """
        return [*(self.guard.prefix_ids if add_special_tokens else []), *self.guard.encode(text)]

    def encode_answer(self, answer: str) -> list[int]:
        """Ids of an answer, which is data, behind a prompt."""
        return self.guard.encode_continuation(self.guard.escape(answer))

    def encode_images(self, groups: Sequence[Sequence[Any]], allow_urls: bool = False) -> dict[str, Any]:
        """Model inputs of each row's images: ``pixel_values`` ``(B, T, 3, H, W)`` float32, zeros behind the last.

        Args:
            groups: Images of B rows; not all empty.
            allow_urls: Whether http(s) addresses among them are followed.
        """
        return {"pixel_values": stack_images(groups, self.image_processor, self.max_image_pixels, allow_urls)[0]}


def _ask(images: Sequence[Any], question: str, context: str | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    if context:
        parts.append({"type": "text", "text": f"{context}\n"})
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
