"""InternLM2's tokenizer: a sentencepiece BPE model plus the added token ``<image>``.

transformers 5 ships no InternLM2 tokenizer and its conversion of sentencepiece BPE to merges is not exact for every
model, so the sentencepiece library itself does the work here: ids equal ``SentencePieceProcessor.encode`` on every
string without special tokens (https://huggingface.co/internlm/internlm2-7b, file ``tokenizer.model``).

Control tokens need care. InternLM2 keeps its turn markers (``[UNUSED_TOKEN_146]`` opens, ``[UNUSED_TOKEN_145]``
closes) as USER_DEFINED pieces, which sentencepiece matches in ANY text. `tokenize(text, split_special_tokens=True)`
therefore cuts such literals in two: the text survives a round trip, but no control id can come out of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from transformers.tokenization_python import Trie
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from .remote_code import MODULE, InstalledCode, write_remote_code

#: Turn markers of InternLM2 / InternLM-XComposer2 chat: opens a turn, closes a turn.
CHAT_TOKENS: tuple[str, str] = ("[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]")
#: Placeholder of one image (added token of the released MoAI tokenizer).
IMAGE_TOKEN = "<image>"

#: A piece that steers the model rather than spelling text: ``[UNUSED_TOKEN_7]``, ``<|im_start|>``, ``<s>``. A plain
#: newline or run of spaces, which InternLM2 also defines by hand, is text.
_CONTROL_FORM = re.compile(r"<[^\s<>]+>|\[[A-Z][A-Z0-9_]*\]")

# SentencePiece.Type in sentencepiece_model.proto
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

#: name -> (BOS in front, EOS behind)
_LAYOUTS = {"none": (False, False), "bos": (True, False), "eos": (False, True), "bos_eos": (True, True)}


class InternLM2Tokenizer(InstalledCode, SentencePieceBackend):
    """Sentencepiece tokenizer of InternLM2 and of the released MoAI.

    Args:
        vocab_file: Path of the sentencepiece model (``tokenizer.model``).
        unk_token: Unknown piece.
        bos_token: Put in front of every sequence by the default `special_tokens_layout`.
        eos_token: Ends an answer.
        pad_token: Padding; the release pads with ``</s>`` (id 2) and so do we. Masks come from `attention_mask`,
            never from this id.
        image_token: Placeholder for one image. Takes its id from the sentencepiece model if it is a piece of it,
            otherwise the first id after the vocabulary (300 pieces -> id 300). `None` adds none.
        chat_tokens: Turn markers. Those that are pieces of the model become special tokens (skipped by
            `decode(skip_special_tokens=True)`); markers that the model does not know are ignored.
        special_tokens_layout: What `add_special_tokens=True` adds: "bos", "eos", "bos_eos" or "none".
        add_bos_token: InternLM2's own switch in its ``tokenizer_config.json``; overrides the layout when given.
        add_eos_token: Likewise for `eos_token`.
        sp_model_kwargs: Settings of `sentencepiece.SentencePieceProcessor` (for example subword sampling).

    Raises:
        ValueError: `vocab_file` is missing, no file, or no sentencepiece model.
        ImportError: sentencepiece is not installed.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"
    _auto_map = {"AutoTokenizer": [f"{MODULE}.InternLM2Tokenizer", None]}

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        unk_token: str = "<unk>",
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        pad_token: str = "</s>",
        image_token: str | None = IMAGE_TOKEN,
        chat_tokens: Sequence[str] = CHAT_TOKENS,
        special_tokens_layout: str = "bos",
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        sp_model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        pieces = _read_pieces(vocab_file)
        # The parent constructor already adds tokens and fills the trie: these must stand before it runs.
        self._control_pieces = frozenset(
            piece
            for piece, kind in pieces.items()
            if kind in (_UNKNOWN, _CONTROL) or (kind == _USER_DEFINED and _CONTROL_FORM.fullmatch(piece))
        )
        self._user_defined_pieces = frozenset(p for p, kind in pieces.items() if kind == _USER_DEFINED)
        self.special_tokens_layout = _resolve_layout(special_tokens_layout, add_bos_token, add_eos_token)
        extra = kwargs.pop("extra_special_tokens", None) or kwargs.pop("additional_special_tokens", None) or []
        if not isinstance(extra, dict):
            known = {str(token) for token in extra}
            extra = [*extra, *(token for token in chat_tokens if token in pieces and token not in known)]
        # The parent forgets its own name for the layout on save: ours travels instead.
        kwargs["special_tokens_pattern"] = self.special_tokens_layout
        kwargs.pop("legacy", None)
        self.chat_tokens = tuple(chat_tokens)
        super().__init__(
            vocab_file=str(vocab_file),
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            image_token=image_token,
            chat_tokens=list(chat_tokens),
            special_tokens_layout=self.special_tokens_layout,
            sp_model_kwargs=sp_model_kwargs or {},
            extra_special_tokens=extra,
            **kwargs,
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Write the tokenizer's files, and what lets transformers load it with ``trust_remote_code=True``.

        Args:
            save_directory: Folder.
            *args: See :meth:`transformers.PreTrainedTokenizerBase.save_pretrained`.
            **kwargs: Likewise.

        Returns:
            The files written.
        """
        files = super().save_pretrained(save_directory, *args, **kwargs)
        write_remote_code(save_directory)
        return files

    @cached_property
    def _tokenizer(self) -> Any:
        """The vocabulary as a ``tokenizers.Tokenizer``, for decoding only: `transformers serve` streams through it.

        It has no merges: sentencepiece encodes, whose ids a converted tokenizer does not give on every string.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models

        twin = Tokenizer(models.BPE(vocab=self.get_vocab(), merges=[], byte_fallback=True))
        twin.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in self.all_special_tokens]
        )
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.sp_model.id_to_piece(self.sp_model.encode("a"))[0].startswith("\u2581"):  # it puts a space in front
            steps.append(decoders.Strip(" ", 1, 0))
        twin.decoder = decoders.Sequence(steps)
        return twin

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode text without BOS or EOS, as :meth:`encode` does, and tell where each token stands.

        Args:
            text: Any string.

        Returns:
            The ids, and the characters of each, start and end. All bytes of a character stand where it stands.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        place = 0
        for part in self.tokens_trie.split(text):
            if part in self._added_tokens_encoder and part not in self._user_defined_pieces:
                ids.append(self._added_tokens_encoder[part])
                spans.append((place, place + len(part)))
            elif part:
                found, where = _encode_with_offsets(self.sp_model, part)
                ids += found
                spans += [(place + start, place + end) for start, end in where]
            place += len(part)
        return ids, spans

    @property
    def control_tokens(self) -> frozenset[str]:
        """Every literal that steers the model: special and added tokens, turn markers, placeholders."""
        return (
            self._control_pieces
            | set(self.all_special_tokens)
            | {token.content for token in self._added_tokens_decoder.values() if token.special}
        )

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        """Split texts at special tokens, except those sentencepiece splits itself.

        USER_DEFINED pieces inside running text must reach sentencepiece: a model with a dummy prefix would otherwise
        put a space behind each of them, which the release does not.
        """
        wanted = [t.content for t in self._added_tokens_decoder.values()] + self.all_special_tokens
        wanted += unique_no_split_tokens or []
        self.tokens_trie = Trie([token for token in wanted if token not in self._user_defined_pieces])

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Turn text into pieces.

        Args:
            text: Any string.
            **kwargs: `split_special_tokens=True` reads the text as data: no control token comes out of it.

        Returns:
            Pieces, one per id. Characters outside the vocabulary give `unk_token` (or bytes, where the model has
            byte fallback).
        """
        if kwargs.pop("split_special_tokens", self.split_special_tokens):
            return self._tokenize_as_data(text)
        return super().tokenize(text, split_special_tokens=False, **kwargs)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        # Through ids: asking sentencepiece for strings gives an unknown run's surface, which could read "<s>".
        return self.sp_model.id_to_piece(self.sp_model.encode(text, out_type=int))

    def _tokenize_as_data(self, text: str) -> list[str]:
        """Tokenize with every control literal cut after its first character; concatenation keeps the text."""
        literals = sorted(self.control_tokens, key=len, reverse=True)
        pattern = re.compile("|".join(f"(?<={re.escape(t[0])}){re.escape(t[1:])}" for t in literals if len(t) > 1))
        cuts = [match.start() for match in _overlapping(pattern, text)]
        tokens: list[str] = []
        for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            tokens += self._tokenize(text[start:stop]) if start == 0 else self._continue(text[start:stop])
        return tokens

    def _continue(self, text: str) -> list[str]:
        """Tokenize text that follows other text: without the space some models put in front of a string."""
        newline = self._tokenize("\n")
        tokens = self._tokenize("\n" + text)
        return tokens[len(newline) :] if tokens[: len(newline)] == newline else self._tokenize(text)

    def _convert_id_to_token(self, index: int) -> str:
        """The piece of an id; "" for one that a model with more rows than there are pieces may generate."""
        return self.sp_model.id_to_piece(index) if index < self.sp_model.get_piece_size() else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to text: the exact inverse of `tokenize` where no character was unknown."""
        text, run = "", []
        for token in tokens:
            if token in self._added_tokens_encoder and token not in self._user_defined_pieces:
                text += (self.sp_model.decode(run) if run else "") + token
                run = []
            elif token:
                run.append(token)
        return text + (self.sp_model.decode(run) if run else "")


def _encode_with_offsets(sp_model: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and spans by sentencepiece itself: ``SentencePieceText.pieces`` = 2; id = 2, begin = 4, end = 5, in bytes."""
    message = sp_model.encode(text, return_type="serialized_proto")
    pieces = [dict(_wire_fields(bytes(value))) for field, value in _wire_fields(message) if field == 2]
    character = [index for index, letter in enumerate(text) for _ in letter.encode("utf-8")] + [len(text)]
    spans: list[tuple[int, int]] = []
    end = None
    for piece in reversed(pieces):  # of a character in bytes the last one has its width, the others none
        start = int(piece.get(4, 0))
        if end is None or int(piece.get(5, 0)) > start:
            end = int(piece.get(5, 0))
        spans.append((character[start], character[end]))
    return [int(piece[2]) if 2 in piece else 0 for piece in pieces], spans[::-1]


def _resolve_layout(layout: str, add_bos_token: bool | None, add_eos_token: bool | None) -> str:
    """Merge the layout with InternLM2's two switches; ValueError on an unknown layout."""
    if layout not in _LAYOUTS:
        raise ValueError(f"`special_tokens_layout` must be one of {sorted(_LAYOUTS)}, got {layout!r}.")
    has_bos, has_eos = _LAYOUTS[layout]
    has_bos = has_bos if add_bos_token is None else bool(add_bos_token)
    has_eos = has_eos if add_eos_token is None else bool(add_eos_token)
    return {flags: name for name, flags in _LAYOUTS.items()}[has_bos, has_eos]


def _overlapping(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches of a pattern, overlapping ones included (one literal may begin inside another)."""
    position = 0
    while (match := pattern.search(text, position)) is not None:
        yield match
        position = match.start() + 1


def _read_pieces(vocab_file: str | os.PathLike[str] | None) -> dict[str, int]:
    """Read {piece: type} of a sentencepiece model.

    sentencepiece's Python class does not tell USER_DEFINED pieces from learned ones, and its protobuf module needs
    the protobuf package: the wire format (``ModelProto.pieces`` = field 1; ``SentencePiece``: piece = 1, score = 2,
    type = 3; https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto) is short enough.
    """
    if vocab_file is None or not os.path.isfile(vocab_file):
        raise ValueError(
            f"`vocab_file` must be the path of a sentencepiece model (tokenizer.model), got {vocab_file!r}. "
            "Point it at the file that comes with the checkpoint."
        )
    try:
        import sentencepiece  # noqa: F401  (the parent class only says that it is missing, not what to run)
    except ImportError as error:
        raise ImportError(
            "InternLM2Tokenizer needs sentencepiece, which is not installed. Run: pip install sentencepiece"
        ) from error
    pieces: dict[str, int] = {}
    try:
        with open(vocab_file, "rb") as file:
            for field, message in _wire_fields(file.read()):
                if field == 1 and isinstance(message, bytes):
                    entry = dict(_wire_fields(message))
                    pieces[bytes(entry[1]).decode("utf-8")] = int(entry.get(3, _NORMAL))
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        pieces = {}
        cause: Exception | None = error
    else:
        cause = None
    if not pieces:
        raise ValueError(
            f"`vocab_file` must be a sentencepiece model, got {str(vocab_file)!r}, which is not one (a Git LFS pointer "
            "or a damaged download?). Fetch the file again."
        ) from cause
    return pieces


def _wire_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Walk one protobuf message: (field number, varint value or raw bytes)."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        length = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if position + length > len(data):
            raise ValueError("message is cut off")
        yield tag >> 3, data[position : position + length]
        position += length
