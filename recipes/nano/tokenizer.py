"""The vocabulary of moai-nano: small, with one piece for each two-decimal coordinate and each fixed phrase.

A decoder of a few million parameters spends its time on sequence length. Boxes are most of a verbalization, so that
" [0.12" and ", 0.34" are single pieces; so are the phrases that open the sentences and the prompt. All of them are
user-defined pieces of ordinary text: the tokenizer stays an InternLM2 tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

from moai.models.moai.chat_templates import SYSTEM_PROMPT
from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer
from moai.scenes.scenes import Scenes, add_noise
from moai.scenes.signs import sign_words
from recipes.nano.tokenization_training import train_tokenizer
from verbalizers.core.scene import verbalize_scene
from verbalizers.core.words import BOXES_OPENING, RELATIONS_OPENING, TEXTS_OPENING

__all__ = ["fixed_pieces", "train_nano_tokenizer"]


def fixed_pieces() -> list[str]:
    """Strings that are always one piece, leading space included where text has one."""
    phrases = [f"{SYSTEM_PROMPT} ", " USER:", " ASSISTANT:"]
    openings = [opening.rstrip() for opening in (BOXES_OPENING, RELATIONS_OPENING, TEXTS_OPENING)]
    phrases += [*openings, *(f" {opening}" for opening in openings), ", and"]
    coordinates = [f"{value / 100:.2f}" for value in range(101)]
    # Quotes alone, so that a quoted line of a sign begins with the same pieces as the answer that reads it.
    phrases += [' "', '"']
    return [*phrases, *(f" [{value}" for value in coordinates), *(f", {value}" for value in coordinates)]


def _training_texts(num_scenes: int, seed: int) -> Iterator[str]:
    for index, sample in enumerate(Scenes("train", seed=seed, image_size=64, length=num_scenes)):
        # Without the fixed pieces: counting them would take merges away from words.
        yield verbalize_scene(add_noise(sample.truth, Random(index)))
        for question in sample.questions:
            yield f" {question.question}"
            yield f" {question.answer}"
    # A sample of the words that signs may carry: merges of letters, not whole words, must read the others.
    for word in Random(seed).sample(sign_words("train"), min(num_scenes, len(sign_words("train")))):
        for spelling in (word.capitalize(), word.upper()):
            yield f' "{spelling}"'


def train_nano_tokenizer(
    out_dir: str | os.PathLike[str], vocab_size: int, num_scenes: int = 3000, seed: int = 1_000_003
) -> InternLM2Tokenizer:
    """Train the tokenizer on scenes whose seed no training scene shares.

    Args:
        out_dir: Folder that receives it.
        vocab_size: Number of pieces.
        num_scenes: Scenes to learn merges from.
        seed: Seed of those scenes.

    Returns:
        The tokenizer, loaded from ``out_dir``.
    """
    return train_tokenizer(_training_texts(num_scenes, seed), vocab_size, out_dir, user_defined_symbols=fixed_pieces())
