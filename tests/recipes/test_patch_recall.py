"""What each patch of an image is asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from moai.scenes.noise import ImageNoise
from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import COLOURS
from recipes.nano.patch_recall import PieceVocabulary, patch_pieces
from recipes.nano.tokenizer import train_nano_tokenizer


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> PieceVocabulary:
    return PieceVocabulary.from_tokenizer(
        train_nano_tokenizer(tmp_path_factory.mktemp("tokenizer"), vocab_size=900, num_scenes=150)
    )


def dense(pieces, num_patches: int, vocabulary: PieceVocabulary) -> torch.Tensor:
    shown = torch.zeros(num_patches, len(vocabulary.is_thing))
    return shown.index_put((pieces.patches, pieces.pieces), pieces.shares, accumulate=True)


def test_patches_show_what_the_map_says_when_read_pixel_by_pixel(vocabulary):
    for sample in Scenes("train", image_size=64, num_objects=(3, 7), length=5):
        shown = dense(patch_pieces(sample, 16, vocabulary), 16, vocabulary)
        torch.testing.assert_close(shown.sum(1), torch.ones(16))  # every pixel of a scene is of something
        entities, num_stuff = sample.entities.entity_map, len(sample.layout.stuff)
        for patch, said in enumerate(shown):
            row, column = divmod(patch, 4)
            block = entities[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            numbers, counts = np.unique(block, return_counts=True)
            seen = {int(n) - 1 for n, count in zip(numbers, counts, strict=True) if n and count >= 0.04 * 256}
            names = {sample.layout.entity_name(entity) for entity in seen}
            names |= {sample.layout.objects[entity - num_stuff].colour for entity in seen if entity >= num_stuff} - {""}
            assert set(said.nonzero().flatten().tolist()) == {p for name in names for p in vocabulary.names[name]}


def test_patches_show_no_colour_when_the_image_is_grey(vocabulary):
    stream = Scenes("train", image_size=64, num_objects=(5, 7), length=20)
    sample = next(sample for sample in stream if any(thing.colour for thing in sample.layout.objects))
    grey = replace(sample, image_noise=ImageNoise(is_grey=True))
    colours = {vocabulary.names[name][0] for name in COLOURS}
    coloured, without = (set(patch_pieces(one, 16, vocabulary).pieces.tolist()) for one in (sample, grey))
    assert coloured & colours and not without & colours


def test_patches_show_nothing_when_they_lie_in_a_frame(vocabulary):
    stream = Scenes("train", image_size=64, image_noise=1.0, length=60)
    framed = next(sample for sample in stream if (sample.entities.entity_map[:16, :16] == 0).all())
    pieces = patch_pieces(framed, 16, vocabulary)
    assert 0 not in pieces.patches.tolist() and len(pieces.patches)
