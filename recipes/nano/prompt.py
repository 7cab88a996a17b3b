"""The fixed ids of moai-nano's prompt."""

from __future__ import annotations

from dataclasses import dataclass

from moai.models.moai.chat_templates import SYSTEM_PROMPT
from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer

__all__ = ["PromptIds", "prompt_ids"]


@dataclass(frozen=True)
class PromptIds:
    """The fixed ids of a prompt: BOS and system sentence; what precedes a question; what follows it."""

    opening: tuple[int, ...]
    before_question: tuple[int, ...]
    after_question: tuple[int, ...]


def prompt_ids(tokenizer: InternLM2Tokenizer) -> PromptIds:
    """Ids around a question, taken from the tokenizer itself."""
    encode = tokenizer.sp_model.encode
    opening = [tokenizer.bos_token_id, *encode(f"{SYSTEM_PROMPT} ")]
    return PromptIds(tuple(opening), tuple(encode(" USER:")), tuple(encode(" ASSISTANT:")))
