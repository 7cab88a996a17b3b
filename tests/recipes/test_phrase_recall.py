"""What the compressor is asked for, and experts that start by finding it."""

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from moai.models.moai.configuration_moai import MoAIConfig
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.scenes.questions import REGIONS
from recipes.nano.expert_initialisation import start_with_reading_order, start_with_word_matching
from recipes.nano.phrase_recall import SLOT_GROUPS, PhraseRecall, PhraseVocabulary, places_of_latents
from recipes.nano.tokenizer import train_nano_tokenizer

BOXES = "The image includes bounding box coordinates and their objects: "
RELATIONS = "The image includes relationships between objects: "
TEXTS = "The image includes text descriptions: "


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_nano_tokenizer(tmp_path_factory.mktemp("tokenizer"), vocab_size=900, num_scenes=150)


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> PhraseVocabulary:
    return PhraseVocabulary.from_tokenizer(tokenizer)


def targets_of(text: str, tokenizer, vocabulary) -> tuple[list[int], np.ndarray]:
    ids = tokenizer.sp_model.encode(text)
    return ids, vocabulary.targets(np.array(ids))


def test_targets_tell_name_and_region_when_a_word_belongs_to_a_box(tokenizer, vocabulary):
    text = f"{BOXES}[0.00, 0.00, 0.20, 0.10] dog, and [0.70, 0.80, 0.90, 1.00] cat."
    ids, rows = targets_of(text, tokenizer, vocabulary)
    first_name = {name: tokenizer.sp_model.encode(f" {name}")[0] for name in ("dog", "cat")}
    dog, cat = ids.index(first_name["dog"]), ids.index(first_name["cat"])
    assert [REGIONS[rows[place, 0]] for place in (dog, cat)] == ["top left", "bottom right"]
    assert rows[dog, 1] == first_name["dog"]
    # The first coordinate of the second box already knows whose it is.
    assert rows[ids.index(tokenizer.sp_model.encode(" [0.70")[0]), 1] == first_name["cat"]
    assert rows[cat, 2:6].tolist() == ids[cat - 5 : cat - 1]
    assert (rows[0] == -100).all()


@pytest.mark.parametrize("said", ["dog is on grass", "dog (#1) is on grass", "dog (#3) is on grass (#12)"])
def test_targets_tell_both_ends_when_a_word_belongs_to_a_relation(tokenizer, vocabulary, said):
    ids, rows = targets_of(f"{RELATIONS}{said}, and cat is beside dog.", tokenizer, vocabulary)
    ends = [tokenizer.sp_model.encode(f" {name}") for name in ("dog", "grass")]
    on = ids.index(tokenizer.sp_model.encode(" on")[0])
    assert rows[on, SLOT_GROUPS["relation_ends"]].tolist() == [ends[0][0], ends[1][-1]]
    assert (rows[on, :6] == -100).all()


@pytest.mark.parametrize("lines", ["EXIT, and OPEN", '"EXIT", and "OPEN"'])
def test_targets_spell_a_line_when_a_piece_belongs_to_it(tokenizer, vocabulary, lines):
    _, rows = targets_of(f"{TEXTS}{lines}.", tokenizer, vocabulary)
    spelt = [tokenizer.sp_model.decode(row[row >= 0].tolist()).strip() for row in rows[:, SLOT_GROUPS["letters"]]]
    assert list(dict.fromkeys(filter(None, spelt))) == ["EXIT", "OPEN"]
    assert (rows[[bool(text) for text in spelt], :8] == -100).all()


def test_targets_tell_where_a_line_is_when_its_box_stands_before_it(tokenizer, vocabulary):
    ids, rows = targets_of(
        f'{TEXTS}[0.70, 0.80, 0.90, 1.00] "EXIT", and [0.00, 0.00, 0.20, 0.10] "A".', tokenizer, vocabulary
    )
    first = ids.index(tokenizer.sp_model.encode(" [0.70")[0])
    assert [REGIONS[rows[place, 0]] for place in (first, first + 7)] == ["bottom right"] * 2
    assert rows[first, 1] == -100 and rows[first, 2:6].tolist() == ids[first : first + 4]
    letters = rows[first, SLOT_GROUPS["letters"]]  # who knows the place knows the line
    assert tokenizer.sp_model.decode(letters[letters >= 0].tolist()).strip() == "EXIT"
    assert (rows[first : first + 5, SLOT_GROUPS["neighbours"]] == -100).all()  # which are a line's alone


def test_targets_tell_what_comes_before_and_after_when_a_piece_belongs_to_a_line(tokenizer, vocabulary):
    ids, rows = targets_of(f'{TEXTS}"EXIT WAY", and "A".', tokenizer, vocabulary)
    neighbours = rows[:, SLOT_GROUPS["neighbours"]]
    is_line = (rows[:, SLOT_GROUPS["letters"]] >= 0).any(axis=1)
    starts, ends = ((np.diff(is_line.astype(int)) == step).nonzero()[0] + 1 for step in (1, -1))
    assert len(starts) == len(ends) == 2 and (neighbours[~is_line] == -100).all()
    for start, end in zip(starts, ends, strict=True):
        line = [-100, -100, *ids[start:end], -100, -100]
        for place, row in enumerate(neighbours[start:end], 2):
            assert row.tolist() == [line[place + offset] for offset in (-2, -1, 1, 2)]


def test_targets_are_empty_when_nothing_was_said(vocabulary):
    assert vocabulary.targets(np.zeros(0, np.int64)).shape == (0, 18)


def test_places_cover_the_text_when_it_is_longer_or_shorter_than_the_latents():
    assert places_of_latents(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert places_of_latents(12, 4).tolist() == [1, 4, 7, 10]


def tiny_model(vocab_size: int) -> MoAIForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = MoAIForConditionalGeneration(
        MoAIConfig(
            vision_config=vision,
            text_config=text,
            compressor={"num_latents": 8, "num_layers": 1, "num_heads": 2, "head_dim": 32},
            mixer={"layers": [0], "num_heads": 2, "rank": 48, "use_activation": False},
            image_token_id=3,
            tie_word_embeddings=True,
        )
    )
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=3.0)
    model.recall = PhraseRecall(64)
    return model.eval()


def attention_of(expert, tokens: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    query, key = expert._heads(expert.query, tokens), expert._heads(expert.key, source)
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(dim=1)


def test_words_look_at_their_own_latents_when_started_with_word_matching():
    model = tiny_model(200)
    ids = torch.randint(10, 200, (24, 12))
    latents = torch.randn(24, 8, 64)

    def run() -> list[torch.Tensor]:
        model(input_ids=ids, mm_token_type_ids=torch.full_like(ids, 2), auxiliary_states=latents)
        return list(ids)

    explained = start_with_word_matching(model, run)
    assert explained[0] > 0.9
    words = torch.nn.functional.rms_norm(model.get_input_embeddings().weight.detach(), (64,))
    expert, recorded = model.model.mixers.layers[0].language_experts[0], []
    hook = expert.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs))
    said = words[ids[:, :8]]  # latent k stands for the question's word k
    model(input_ids=ids, mm_token_type_ids=torch.full_like(ids, 2), auxiliary_states=said)
    hook.remove()
    attention = attention_of(expert, *recorded[0][:2])[:, :8]
    is_same = ids[:, :8, None] == ids[:, None, :8]
    assert (attention * is_same).sum(-1).mean() > 0.9


def test_patches_look_at_their_own_stretch_when_started_with_reading_order():
    model = tiny_model(200)
    ids = torch.tensor([[3] * 16 + [50]]).repeat(16, 1)
    roles = torch.tensor([[1] * 16 + [2]]).repeat(16, 1)
    places = torch.randn(8, 64)

    def run() -> torch.Tensor:
        latents = places + 0.3 * torch.randn(16, 8, 64)
        model(input_ids=ids, mm_token_type_ids=roles, auxiliary_states=latents, pixel_values=torch.randn(16, 3, 64, 64))
        return latents

    explained = start_with_reading_order(model, run)
    assert min(explained[0]) > 0.5
    expert, recorded = model.model.mixers.layers[0].image_experts[0], []
    hook = expert.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs))
    run()
    hook.remove()
    attention = attention_of(expert, *recorded[0][:2]).mean(dim=0)  # (16 patches, 8 latents)
    centres = (attention * torch.arange(8)).sum(-1)
    assert torch.corrcoef(torch.stack([centres, torch.arange(16.0)]))[0, 1] > 0.9
