"""Patch recall: training targets for the vision tower about every patch of an image.

A question's answer is a weak teacher for a tower: one word about a whole image, once in a dozen questions a colour.
Scenes know what every pixel shows. So every projected patch is asked for the pieces of the names and colours that it
shows, by the product with the word embeddings and without any head: patches live in the decoder's own embedding
space, where a question's word finds them, as latents do (:mod:`.phrase_recall`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer
from moai.scenes.scenes import SceneSample
from moai.scenes.vocabulary import OBJECT_CLASSES, PAINTS, STUFF_NAMES

__all__ = ["PatchPieces", "PieceVocabulary", "patch_pieces"]

#: Less of a patch than this is not seen.
_LEAST_SHARE = 0.04
#: A thing is worth so many times its area of ground.
_THING_WEIGHT = 4.0


@dataclass(frozen=True)
class PieceVocabulary:
    """Pieces of everything that a patch can show.

    Attributes:
        names: Name -> its pieces, with a leading space as in a verbalization; colours are names too.
        is_thing: bool (V,) a name of a thing begins with the piece.
        is_colour: bool (V,) a colour begins with the piece.
    """

    names: dict[str, tuple[int, ...]]
    is_thing: torch.Tensor
    is_colour: torch.Tensor

    @classmethod
    def from_tokenizer(cls, tokenizer: InternLM2Tokenizer) -> PieceVocabulary:
        """Read it off a tokenizer."""
        encode = tokenizer.sp_model.encode
        names = {name: tuple(encode(f" {name}")) for name in (*OBJECT_CLASSES, *STUFF_NAMES, *PAINTS)}
        is_thing, is_colour = (
            torch.zeros(len(tokenizer), dtype=torch.bool).index_fill_(
                0, torch.tensor([names[n][0] for n in group]), True
            )
            for group in (OBJECT_CLASSES, PAINTS)
        )
        return cls(names, is_thing, is_colour)


@dataclass(frozen=True)
class PatchPieces:
    """What the patches of an image show, as a sparse matrix.

    Attributes:
        patches: int64 (K,) number of the patch, row by row.
        pieces: int64 (K,) a piece of a name or colour that it shows.
        shares: float32 (K,) the piece's share; those of a patch add up to 1.
    """

    patches: torch.Tensor
    pieces: torch.Tensor
    shares: torch.Tensor


def patch_pieces(sample: SceneSample, patch_size: int, vocabulary: PieceVocabulary) -> PatchPieces:
    """Read off the truth what each patch shows.

    Args:
        sample: A scene whose side is a multiple of ``patch_size``.
        patch_size: Height and width of a patch in pixels.
        vocabulary: Pieces of names.
    """
    layout, side = sample.layout, sample.image_size // patch_size
    num_stuff, num_entities = len(layout.stuff), len(layout.stuff) + len(layout.objects)
    blocks = sample.entities.entity_map.reshape(side, patch_size, side, patch_size).swapaxes(1, 2)
    place = np.arange(side * side)[:, None] * (num_entities + 1)
    counts = np.bincount((blocks.reshape(side * side, -1) + place).ravel(), minlength=place.size * (num_entities + 1))
    areas = counts.reshape(side * side, -1)[:, 1:] / patch_size**2  # (P, E)
    areas = np.where(areas >= _LEAST_SHARE, areas, 0.0) * np.where(
        np.arange(num_entities) < num_stuff, 1, _THING_WEIGHT
    )
    areas /= areas.sum(axis=1, keepdims=True).clip(1e-9)
    sees_colour = sample.image_noise is None or not sample.image_noise.is_grey
    rows: list[tuple[int, int, float]] = []
    for patch, entity in zip(*areas.nonzero(), strict=True):
        colour = layout.objects[entity - num_stuff].colour if entity >= num_stuff and sees_colour else ""
        said = [layout.entity_name(entity), *([colour] if colour else [])]
        for word in said:
            pieces = vocabulary.names[word]
            rows += [(patch, piece, areas[patch, entity] / len(said) / len(pieces)) for piece in pieces]
    patches, pieces, shares = zip(*rows, strict=True) if rows else ((), (), ())
    return PatchPieces(
        torch.tensor(patches, dtype=torch.long),
        torch.tensor(pieces, dtype=torch.long),
        torch.tensor(shares, dtype=torch.float32),
    )
