"""Phrase recall: training targets for the compressor about every word of a verbalization.

A verbalization is a chain of phrases: "[0.10, 0.20, 0.55, 0.99] cat", "cat is on sofa", "[0.12, 0.3, 0.4, 0.41] EXIT".
A latent that stands for one word of a phrase should know the whole phrase: which name a box has, in which ninth of the
image it lies, who is on whom, how a word goes on. Asking each latent for it is a dense signal that needs no decoder, no
image and no question; questions then only have to find the right latent. Training only: nothing of this is in the
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import nn
from torch.nn import functional as F

from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer
from moai.scenes.questions import REGIONS, region_of
from verbalizers.core.words import BOXES_OPENING, RELATIONS_OPENING, TEXTS_OPENING

__all__ = ["SLOT_GROUPS", "PhraseRecall", "PhraseVocabulary", "places_of_latents"]

#: Columns of a target row: the region's number, then pieces: the box's name (its first piece), four coordinates, a
#: relation's first and last piece, the first six pieces of a line of text, and those two before and two after the word
#: in it: whoever has said a piece of a line can find it by the word and knows what comes next.
SLOT_GROUPS: dict[str, slice] = {
    "region": slice(0, 1),
    "name": slice(1, 2),
    "coordinates": slice(2, 6),
    "relation_ends": slice(6, 8),
    "letters": slice(8, 14),
    "neighbours": slice(14, 18),
}
NUM_SLOTS = 18
_NEIGHBOURS = (-2, -1, 1, 2)
_NONE = -100  # cross_entropy's ignore_index


def _text_of(model: SentencePieceProcessor, piece: int) -> str:
    """What a piece says; one that stands for a byte is written <0x22>."""
    written = model.id_to_piece(piece)
    return chr(int(written[1:-1], 16)) if model.is_byte(piece) else written.replace("▁", " ")


@dataclass(frozen=True)
class PhraseVocabulary:
    """Token ids that open sentences, separate phrases and write coordinates.

    Attributes:
        values: float64 (V,) the coordinate that a piece says, -1 for any other piece.
        opens_box: bool (V,) the piece is a box's first coordinate.
        parts: bool (V,) the piece ends a phrase: ", and" or ".".
        quotes: bool (V,) the piece is a quotation mark, or the space before one.
        opens_number: bool (V,) the piece opens the number of one of several: " (#".
        sentences: Piece -> "boxes", "relations" or "texts", for pieces that open such a sentence.
    """

    values: np.ndarray
    opens_box: np.ndarray
    parts: np.ndarray
    quotes: np.ndarray
    opens_number: np.ndarray
    sentences: dict[int, str]

    @classmethod
    def from_tokenizer(cls, tokenizer: InternLM2Tokenizer) -> PhraseVocabulary:
        """Read it off a tokenizer of :mod:`recipes.nano.tokenizer`."""
        model = tokenizer.sp_model
        texts = [_text_of(model, piece) for piece in range(model.get_piece_size())]
        opens = np.array([text.startswith(" [") for text in texts])
        numbers = [text[2:] if text.startswith((" [", ", ")) else "" for text in texts]
        values = [float(n) if n.replace(".", "", 1).isdigit() else -1.0 for n in numbers]
        openings = {"boxes": BOXES_OPENING, "relations": RELATIONS_OPENING, "texts": TEXTS_OPENING}
        kinds = {opening.strip(): kind for kind, opening in openings.items()}
        sentences = {piece: kinds[text.strip()] for piece, text in enumerate(texts) if text.strip() in kinds}
        values = np.array(values)
        parts, quotes = (np.array([t.strip() in ends for t in texts]) for ends in ((", and", "."), ('"', "")))
        opens_number = np.array([text == " (#" for text in texts])
        return cls(values, opens & (values >= 0), parts, quotes, opens_number, sentences)

    def targets(self, ids: np.ndarray) -> np.ndarray:
        """Targets of each word.

        Args:
            ids: int64 (A,) a verbalization.

        Returns:
            int64 (A, 18), see :data:`SLOT_GROUPS`; -100 where there is nothing to tell.
        """
        rows = np.full((len(ids), NUM_SLOTS), _NONE, np.int64)
        kind, start = None, None
        for place, piece in enumerate([*ids.tolist(), None]):
            opened = self.sentences.get(piece)
            if piece is not None and opened is None and not self.parts[piece]:
                continue
            if kind is not None and start is not None and place > start:
                self._fill(rows, ids, kind, start, place)
            kind = opened or kind
            start = place + 1
        return rows

    def _fill(self, rows: np.ndarray, ids: np.ndarray, kind: str, start: int, end: int) -> None:
        phrase = ids[start:end]
        if kind == "relations":
            numbers = np.flatnonzero(self.opens_number[phrase])
            is_last = len(numbers) > 0 and numbers[-1] >= len(phrase) - 4  # "cat (#2)": the name, not its number
            rows[start:end, 6], rows[start:end, 7] = phrase[0], phrase[numbers[-1] - 1 if is_last else -1]
        elif kind == "texts":
            first = start
            if self._fill_place(rows, phrase, start, end):
                start, phrase = start + 5, phrase[5:]
            letters = phrase[~self.quotes[phrase]][:6]
            rows[first:end, 8 : 8 + len(letters)] = letters
            for slot, offset in enumerate(_NEIGHBOURS, SLOT_GROUPS["neighbours"].start):
                here = slice(max(start, start - offset), min(end, end - offset))
                rows[here, slot] = ids[here.start + offset : here.stop + offset]
        elif self._fill_place(rows, phrase, start, end):
            rows[start:end, 1] = phrase[5]

    def _fill_place(self, rows: np.ndarray, phrase: np.ndarray, start: int, end: int) -> bool:
        """Tell where a phrase's box lies, if it has one: four coordinates, "]", and what is there."""
        if len(phrase) <= 5 or not self.opens_box[phrase[0]]:
            return False
        x0, y0, x1, y1 = self.values[phrase[:4]]
        rows[start:end, 0] = REGIONS.index(region_of(0.5 * (x0 + x1), 0.5 * (y0 + y1)))
        rows[start:end, 2:6] = phrase[:4]
        return True


def places_of_latents(length: int, num_latents: int) -> np.ndarray:
    """The word in the middle of the stretch that each latent's local heads read, int64 (N,)."""
    places = np.floor((np.arange(num_latents) + 0.5) / num_latents * length)
    return places.astype(np.int64).clip(0, max(length - 1, 0))


class PhraseRecall(nn.Module):
    """Heads that predict from each latent its word and the phrase around it.

    The word itself is asked for without any head, by the product with the word embeddings: so latents live in the
    decoder's own embedding space, where a question's word finds them.

    Args:
        hidden_size: Width D.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.region = nn.Linear(hidden_size, len(REGIONS))
        self.pieces = nn.Linear(hidden_size, (NUM_SLOTS - 1 - len(_NEIGHBOURS)) * hidden_size)
        self.neighbours = nn.Linear(hidden_size, len(_NEIGHBOURS) * hidden_size)

    def forward(
        self,
        latents: torch.Tensor,
        embedding: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        vocabulary: PhraseVocabulary,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss and accuracies.

        Args:
            latents: ``(S, N, D)``.
            embedding: ``(V, D)`` word embeddings; they get no gradient from here.
            input_ids: int64 ``(S, A)`` the verbalizations that the latents compress.
            attention_mask: ``(S, A)``.
            vocabulary: How to read them.

        Returns:
            The sum of three mean cross entropies (word, region, pieces), and accuracies by name: "word" and the
            groups of :data:`SLOT_GROUPS` that occur.
        """
        words, rows = [], []
        for ids, length in zip(input_ids.numpy(), attention_mask.sum(dim=1).tolist(), strict=True):
            places = places_of_latents(length, latents.shape[1])
            words.append(ids[places])
            rows.append(vocabulary.targets(ids[:length])[places])
        word, targets = torch.from_numpy(np.stack(words)), torch.from_numpy(np.stack(rows))
        embedding = embedding.detach()
        told_word = F.linear(latents, embedding).float()
        told_region = self.region(latents).float()
        is_asked = targets[..., 1:] >= 0  # (S, N, 17)
        answers = torch.cat([self.pieces(latents), self.neighbours(latents)], dim=-1)
        states = answers.unflatten(-1, (NUM_SLOTS - 1, -1))[is_asked]
        told, pieces = F.linear(states, embedding).float(), targets[..., 1:][is_asked]
        loss = F.cross_entropy(told_word.flatten(0, 1), word.flatten())
        right = {"word": told_word.detach().argmax(-1) == word}
        has_region = targets[..., 0] >= 0
        if has_region.any():
            loss = loss + F.cross_entropy(told_region[has_region], targets[..., 0][has_region])
            right["region"] = told_region.detach()[has_region].argmax(-1) == targets[..., 0][has_region]
        if len(pieces):
            loss = loss + F.cross_entropy(told, pieces)
            is_right, slot = told.detach().argmax(-1) == pieces, is_asked.nonzero()[:, -1] + 1
            for name, group in list(SLOT_GROUPS.items())[1:]:
                if (member := (slot >= group.start) & (slot < group.stop)).any():
                    right[name] = is_right[member]
        return loss, {name: float(hits.float().mean()) for name, hits in right.items()}
