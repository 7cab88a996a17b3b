"""Streaming of answers: to a callback in the same thread, or as an iterator over the text of another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import StoppingCriteria, TextIteratorStreamer, TextStreamer

__all__ = ["AnswerStream", "CallbackStreamer"]


class CallbackStreamer(TextStreamer):
    """Streamer that calls a function with every finished piece of new text.

    Args:
        tokenizer: Decodes.
        callback: Called with each non-empty piece.
    """

    def __init__(self, tokenizer: Any, callback: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.callback = callback

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass a piece on; see :class:`transformers.TextStreamer`."""
        if text:
            self.callback(text)


class _StopWhenSet(StoppingCriteria):
    """Stopping criterion: an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class AnswerStream:
    """Stream of an answer's text. Iterate once; then ``output`` holds the whole answer.

    Args:
        answer: Called in a thread of its own with ``streamer`` and ``stopping_criteria`` for ``generate``; returns the
            output.
        tokenizer: Decodes the pieces.

    Attributes:
        output: What ``answer`` returned; None until the iteration has ended.
    """

    def __init__(self, answer: Callable[..., Any], tokenizer: Any) -> None:
        self.output: Any = None
        self._answer = answer
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._iterator = self._read()

    def __iter__(self) -> Iterator[str]:
        """Iterate over pieces of text."""
        return self._iterator

    def __next__(self) -> str:
        return next(self._iterator)

    def close(self) -> None:
        """Stop generating; what was generated so far has been handed over."""
        self._iterator.close()
        self._stop.set()

    def _read(self) -> Iterator[str]:
        # The thread starts with the first piece asked for, so that a stream nobody reads costs nothing.
        worker = threading.Thread(target=self._work, name="moai-answer", daemon=True)
        worker.start()
        try:
            yield from filter(None, self._streamer)
        finally:
            self._stop.set()
            worker.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            self.output = self._answer(streamer=self._streamer, stopping_criteria=[_StopWhenSet(self._stop)])
        except Exception as error:  # noqa: BLE001 - raised again in the reader's thread
            self._error = error
        finally:
            self._streamer.on_finalized_text("", stream_end=True)  # a generation that failed has not ended the stream
