"""Train a small sentencepiece model of InternLM2's kind: BPE, byte fallback, identity normalisation, single digits.

The chat control tokens and the image token are reserved as sentencepiece CONTROL pieces: sentencepiece itself never
produces them from text, only the tokenizer's own special-token split does. Settings follow InternLM2's published
`tokenizer.model` (https://huggingface.co/internlm/internlm2-7b) except for that, and for the vocabulary size.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from moai.models.moai.tokenization_internlm2 import CHAT_TOKENS, IMAGE_TOKEN, InternLM2Tokenizer

#: 256 byte pieces + <unk>, <s>, </s> + newline; everything below this leaves no room for text.
_NUM_FIXED_PIECES = 256 + 3 + 1


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    out_dir: str | os.PathLike[str],
    *,
    chat_tokens: Sequence[str] = CHAT_TOKENS,
    image_token: str = IMAGE_TOKEN,
    user_defined_symbols: Sequence[str] = (),
    required_characters: str = "",
    num_threads: int = 1,
) -> InternLM2Tokenizer:
    """Train a BPE vocabulary on `texts` and save it as an `InternLM2Tokenizer` folder.

    Args:
        texts: Training sentences, consumed once. Newlines inside a text are kept (newline is its own piece).
        vocab_size: Rows of the embedding table: `len(tokenizer) == vocab_size` exactly, image token included.
        out_dir: Folder that receives `tokenizer.model` and the tokenizer's JSON files; created when missing.
        chat_tokens: Literals that open and close a turn. Reserved right after `<unk>`, `<s>`, `</s>`.
        image_token: Placeholder literal for one image. Reserved after the chat tokens.
        user_defined_symbols: Strings that always become one piece of ordinary text (fixed phrases, say). A space
            inside one may be written as a space.
        required_characters: Characters that get a piece of their own even where `texts` lack them; others that are
            lacking are spelt in bytes.
        num_threads: Threads of the trainer; the result is deterministic for the default of 1.

    Returns:
        The tokenizer, loaded back from `out_dir`.

    Raises:
        ValueError: `texts` is empty, `vocab_size` leaves no room for text, or `texts` are too few for it.
        ImportError: sentencepiece is missing.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError(
            "training a tokenizer needs sentencepiece, which is not installed. Run: pip install sentencepiece"
        ) from error

    control_symbols = [*chat_tokens, image_token]
    text_symbols = [symbol.replace(" ", "\u2581") for symbol in user_defined_symbols]
    smallest = _NUM_FIXED_PIECES + len(control_symbols) + len(text_symbols) + 1
    if vocab_size < smallest:
        raise ValueError(
            f"`vocab_size` must be at least {smallest} (256 bytes, {len(control_symbols)} control tokens, "
            f"{len(text_symbols)} user-defined symbols, special tokens and "
            f"at least one letter), got {vocab_size}. Choose a larger vocabulary."
        )
    sentences = [text for text in texts if text]
    if not sentences:
        raise ValueError("`texts` must hold at least one non-empty string, got none. Pass the training sentences.")
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    longest = max(len(text.encode("utf-8")) for text in sentences)
    try:
        # Into memory: a file name would be kept inside the model, and with it a path of the machine.
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            character_coverage=1.0,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=control_symbols,
            user_defined_symbols=["\n", *text_symbols],
            required_chars=required_characters,
            max_sentence_length=longest + 1,
            num_threads=num_threads,
            minloglevel=2,
        )
        (folder / "tokenizer.model").write_bytes(written.getvalue())
    except RuntimeError as error:
        raise ValueError(
            f"sentencepiece could not build {vocab_size} pieces from {len(sentences)} texts ({error}). Pass more or "
            "longer texts, or a smaller `vocab_size`."
        ) from error
    tokenizer = InternLM2Tokenizer(
        vocab_file=str(folder / "tokenizer.model"), image_token=image_token, chat_tokens=list(chat_tokens)
    )
    tokenizer.save_pretrained(folder)
    return InternLM2Tokenizer.from_pretrained(folder)
