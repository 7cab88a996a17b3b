"""Answers piece by piece: for a callback in the same thread, and as an iterator with the work in another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import StoppingCriteria, TextStreamer

__all__ = ["AnswerStream", "CallbackStreamer"]


class CallbackStreamer(TextStreamer):
    """Hands every finished piece of new text to a function.

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
    """Ends a generation when its reader has left."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class AnswerStream:
    """An answer that is being written. Iterate once; then ``output`` holds the whole of it.

    Args:
        answer: Called in a thread of its own with ``stream`` (a callback) and ``stopping_criteria``; returns the
            output.

    Attributes:
        output: What ``answer`` returned; None until the iteration has ended.
    """

    def __init__(self, answer: Callable[..., Any]) -> None:
        self.output: Any = None
        self._pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._answer = answer
        self._iterator = self._read()

    def __iter__(self) -> Iterator[str]:
        """Iterate over pieces of text."""
        return self._iterator

    def __next__(self) -> str:
        return next(self._iterator)

    def close(self) -> None:
        """Stop writing; what was written so far has been handed over."""
        self._iterator.close()
        self._stop.set()

    def _read(self) -> Iterator[str]:
        # The thread starts with the first piece asked for, so that a stream nobody reads costs nothing.
        worker = threading.Thread(target=self._work, name="moai-answer", daemon=True)
        worker.start()
        try:
            while isinstance(piece := self._pieces.get(), str):
                yield piece
            if isinstance(piece, BaseException):
                raise piece
        finally:
            self._stop.set()
            worker.join()

    def _work(self) -> None:
        try:
            self.output = self._answer(stream=self._pieces.put, stopping_criteria=[_StopWhenSet(self._stop)])
            self._pieces.put(None)
        except Exception as error:  # noqa: BLE001 - raised again in the reader's thread
            self._pieces.put(error)
