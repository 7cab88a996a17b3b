"""PromptedProcessor: the processor of another model, with the verbalization as text in the user's turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, BatchFeature

from ...processing.image_loading import DEFAULT_MAX_PIXELS
from ...processing.token_roles import IGNORE_INDEX
from .scenes_prompted import STYLES

__all__ = ["PROMPT_FILE", "PromptSettings", "PromptedProcessor"]

PROMPT_FILE = "prompt.json"
_PLACES = ("before", "after")


@dataclass(frozen=True)
class PromptSettings:
    """How a verbalization stands in a prompt; the content of ``prompt.json``.

    Attributes:
        style: How scenes are written, one of :data:`.scenes_prompted.STYLES`.
        place: Where they stand: "before" or "after" the images of the turn.
        introduction: What tells the model what it reads; a line of its own in front of it.
    """

    style: str = "sentences"
    place: str = "after"
    introduction: str = (
        "Computer vision models looked at the image and report (boxes are left, top, right, bottom as fractions of the "
        "image; a report may be incomplete or wrong, quoted text is what is written in the image):"
    )

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"`style` must be one of {STYLES}, got {self.style!r}.")
        if self.place not in _PLACES:
            raise ValueError(f"`place` must be one of {_PLACES}, got {self.place!r}.")

    @classmethod
    def load(cls, folder: str | Path) -> PromptSettings:
        """Read a checkpoint folder's ``prompt.json``; the defaults where it has none.

        Raises:
            ValueError: The file does not say what it should; the message names it.
        """
        path = Path(folder) / PROMPT_FILE
        if not path.is_file():
            return cls()
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no valid file of prompt settings: {error}") from error


class PromptedProcessor:
    """Conversations with images, and what verbalizers found in them, to the inputs of an unmodified model.

    Args:
        processor: The model's own processor, with a chat template.
        settings: How the verbalization is written.
        max_image_pixels: Largest image that is decoded, in pixels.

    Raises:
        ValueError: The processor has no chat template: how its model wants to be asked is not known.
    """

    def __init__(
        self,
        processor: Any,
        settings: PromptSettings | None = None,
        max_image_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(
                f"expected a processor with a chat template, got {type(processor).__name__} without one. Take the "
                "model's instruction-tuned version, or set `processor.chat_template`."
            )
        self.processor, self.settings, self.max_image_pixels = processor, settings or PromptSettings(), max_image_pixels

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, settings: PromptSettings | None = None, **kwargs: Any
    ) -> PromptedProcessor:
        """Load a model's processor.

        Args:
            name_or_path: Folder or hub name.
            settings: None = the folder's ``prompt.json``, or the defaults.
            **kwargs: To ``AutoProcessor.from_pretrained``.
        """
        chosen = settings or PromptSettings.load(name_or_path)
        return cls(AutoProcessor.from_pretrained(name_or_path, **kwargs), chosen)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor and ``prompt.json``."""
        self.processor.save_pretrained(folder)
        text = json.dumps(asdict(self.settings), indent=2, ensure_ascii=False) + "\n"
        (Path(folder) / PROMPT_FILE).write_text(text, encoding="utf-8")

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.processor.tokenizer

    def insert_context(
        self, messages: Sequence[Mapping[str, Any]], context: str | None, place: str | None = None
    ) -> list[dict[str, Any]]:
        """A conversation with a verbalization in its first user turn.

        Args:
            messages: The conversation, as transformers writes them; a content may be a string.
            context: None or "" leaves the conversation as it is.
            place: "before" or "after" the images; None = as in the settings.
        """
        messages = [{**message, "content": _as_parts(message["content"])} for message in messages]
        if not context:
            return messages
        index = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
        if index is None:
            raise ValueError("expected a conversation with a user's turn, got none. Ask a question.")
        parts = messages[index]["content"]
        report = {"type": "text", "text": f"{self.settings.introduction}\n{context}\n\n"}
        last_image = max((i for i, part in enumerate(parts) if part["type"] == "image"), default=-1)
        at = 0 if (place or self.settings.place) == "before" else last_image + 1
        messages[index]["content"] = _join_texts([*parts[:at], report, *parts[at:]])
        return messages

    def __call__(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        context: Sequence[str | None] | None = None,
        answers: Sequence[str] | None = None,
        padding_side: str = "left",
        max_length: int | None = None,
        place: str | None = None,
        chat_template: str | None = None,
    ) -> BatchFeature:
        """Encode conversations.

        Control tokens that stand in their texts or in the context are text: they open no turn and show no image.

        Args:
            conversations: B conversations that end with the user; images are parts ``{"type": "image", "image": ...}``
                that hold a loaded image.
            context: A verbalization per conversation; None = none.
            answers: What the assistant is to say, to learn from; adds ``labels``.
            padding_side: "left" or "right".
            max_length: Longest sequence in tokens, answer included; None sets no bound.
            place: Where the context stands; None = as in the settings.
            chat_template: Template (name); None = the processor's own.

        Returns:
            What the model's own processor makes, on the CPU; with ``answers`` also ``labels`` ``(B, L)`` int64, -100
            but on the answer and the tokens that end its turn.

        Raises:
            ValueError: Counts do not match, a sequence is too long, or the chat template writes a finished
                conversation otherwise than the prompt that it begins with.
        """
        context = [None] * len(conversations) if context is None else list(context)
        if len(context) != len(conversations):
            raise ValueError(f"expected {len(conversations)} contexts, one per conversation, got {len(context)}.")
        asked = [self.insert_context(*pair, place) for pair in zip(conversations, context, strict=True)]
        if answers is None:
            batch = self._render(asked, padding_side, add_generation_prompt=True, chat_template=chat_template)
            self._check_lengths(batch, max_length)
            return batch
        if len(answers) != len(asked):
            raise ValueError(f"expected {len(asked)} answers, one per conversation, got {len(answers)}.")
        turns = [{"role": "assistant", "content": _as_parts(answer)} for answer in answers]
        whole = [[*messages, turn] for messages, turn in zip(asked, turns, strict=True)]
        batch = self._render(whole, padding_side, chat_template=chat_template)
        self._check_lengths(batch, max_length)
        prompts = self._render(asked, padding_side, add_generation_prompt=True, chat_template=chat_template)
        batch["labels"] = _label_answers(batch, prompts)
        return batch

    def count_tokens(self, messages: Sequence[Mapping[str, Any]], chat_template: str | None = None) -> int:
        """Tokens of a conversation as it stands.

        Args:
            messages: See :meth:`__call__`.
            chat_template: Likewise.
        """
        return self._render([list(messages)], "left", chat_template=chat_template)["input_ids"].shape[1]

    def _render(self, conversations: list[Any], padding_side: str, **kwargs: Any) -> BatchFeature:
        return self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,
            processor_kwargs={"padding": True, "padding_side": padding_side},
            **kwargs,
        )

    def _check_lengths(self, batch: Mapping[str, torch.Tensor], max_length: int | None) -> None:
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for index, length in enumerate(lengths):
            if max_length is not None and length > max_length:
                raise ValueError(
                    f"conversation {index} has {length} tokens (images and verbalization included), the bound is "
                    f"{max_length}. Shorten the question, or let fewer verbalizers speak."
                )

    def batch_decode(self, ids: torch.Tensor, **kwargs: Any) -> list[str]:
        """Text of token ids; see transformers."""
        return self.processor.batch_decode(ids, **kwargs)


def _as_parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [dict(part) for part in content]


def _join_texts(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parts with neighbouring texts joined: some templates put a space or a line break between parts."""
    joined: list[dict[str, Any]] = []
    for part in parts:
        if joined and part["type"] == joined[-1]["type"] == "text":
            joined[-1] = {"type": "text", "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(dict(part))
    return joined


def _label_answers(whole: Mapping[str, torch.Tensor], prompts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Ids where a sequence goes on behind its prompt, -100 elsewhere."""
    labels = torch.full_like(whole["input_ids"], IGNORE_INDEX)
    for row in range(len(labels)):
        places = whole["attention_mask"][row].nonzero()[:, 0]
        prompt = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
        ids = whole["input_ids"][row][places]
        if len(prompt) >= len(ids) or not torch.equal(ids[: len(prompt)], prompt):
            raise ValueError(
                "expected a chat template that writes a finished conversation as its prompt and the answer behind it, "
                "got one that changes the prompt. Answers cannot be told from prompts; give the processor another "
                "template."
            )
        answer = places[len(prompt) :]
        labels[row, answer] = whole["input_ids"][row, answer]
    return labels
