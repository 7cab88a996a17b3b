"""Operations are counted while a call runs; here they are derived by hand, and both must be equal to the last one."""

import re

import pytest
import torch
from torch.nn import functional as F

from benchmarks.flops import count_flops, describe_moai_7b
from benchmarks.forward_variants import (
    BACKBONE,
    NUM_ANSWER_TOKENS,
    OURS,
    RELEASE,
    Sizes,
    build_runners,
)

SIZES = Sizes(hidden_size=64, num_layers=4, image_grid=3, num_text_tokens=20, num_auxiliary_words=5, vocab_size=128)
WIDTH, RANK = SIZES.hidden_size, 64
NUM_LATENTS, COMPRESSOR_LAYERS, COMPRESSOR_WIDTH = 64, 4, 4 * 64


def decoder(length: int, num_logits: int) -> tuple[int, int, int]:
    """Matrix products, attention over the pairs a causal mask lets through, attention over all: one row."""
    narrow = WIDTH * SIZES.num_key_value_heads // SIZES.num_heads
    layer = 2 * WIDTH**2 + 2 * WIDTH * narrow + 3 * WIDTH * (7 * WIDTH // 2)  # q and o; k and v; feed-forward
    products = 2 * length * SIZES.num_layers * layer + 2 * num_logits * WIDTH * SIZES.vocab_size
    per_pair = 2 * 2 * WIDTH * SIZES.num_layers  # a score and its share of the sum
    return products, per_pair * length * (length + 1) // 2, per_pair * length**2


def expert(num_tokens: int, num_source: int) -> tuple[int, int]:
    """Products of four low-rank pairs, two over the tokens and two over the source; attention over every pair."""
    return 2 * (2 * num_tokens + 2 * num_source) * 2 * WIDTH * RANK, 2 * 2 * num_tokens * num_source * WIDTH


def mixer(num_image: int, num_language: int) -> tuple[int, int]:
    """Three experts and a gate for each stream."""
    products, attention = 0, 0
    for num_tokens, num_other in ((num_image, num_language), (num_language, num_image)):
        experts = [expert(num_tokens, num_source) for num_source in (NUM_LATENTS, num_other, num_tokens)]
        products += sum(count for count, _ in experts) + 2 * num_tokens * WIDTH * 3
        attention += sum(count for _, count in experts)
    return products, attention


def perceiver(num_auxiliary: int) -> tuple[int, int]:
    """Latents attend to auxiliary tokens and latents; then a feed-forward of their own width."""
    num_source = num_auxiliary + NUM_LATENTS
    key_value = num_source * WIDTH * 2 * COMPRESSOR_WIDTH
    query_output = 2 * NUM_LATENTS * WIDTH * COMPRESSOR_WIDTH
    feed_forward = 2 * NUM_LATENTS * WIDTH**2
    products = 2 * COMPRESSOR_LAYERS * (key_value + query_output + feed_forward)
    return products, COMPRESSOR_LAYERS * 2 * 2 * NUM_LATENTS * num_source * COMPRESSOR_WIDTH


def mixture(num_language: int) -> tuple[int, int]:
    """Compressor and mixers of one prompt."""
    num_image = SIZES.num_image_tokens
    (mixing, listening), (compressing, reading) = mixer(num_image, num_language), perceiver(num_image + 5)
    return SIZES.num_mixers * mixing + compressing, SIZES.num_mixers * listening + reading


@pytest.mark.parametrize("batch", [1, 3])
def test_prefill_count_equals_the_closed_form_when_small(batch: int) -> None:
    runners = build_runners(SIZES, batch, torch.device("cpu"))
    length = SIZES.num_image_tokens + SIZES.num_text_tokens
    products, causal, full = decoder(length, num_logits=1)
    more_products, more_attention = mixture(SIZES.num_text_tokens)

    backbone = count_flops(runners[BACKBONE].prefill)
    assert backbone.products == batch * products
    assert backbone.attention == batch * causal
    assert backbone.attention_in_full == batch * full
    ours = count_flops(runners[OURS].prefill)
    assert ours.products == batch * (products + more_products)
    assert ours.attention == batch * (causal + more_attention)
    assert ours.attention_in_full == batch * (full + more_attention)
    assert ours.total == ours.products + ours.attention and ours.total_in_full > ours.total

    release = count_flops(runners[RELEASE].prefill)  # spelled out: it computes what the causal mask then hides
    assert (release.products, release.attention) == (ours.products, ours.attention_in_full)


def test_training_count_equals_the_closed_form_when_small() -> None:
    """Backward, every product has two of its size, attention five where forward it had two."""
    runner = build_runners(SIZES, 1, torch.device("cpu"))[OURS]
    length = SIZES.num_image_tokens + SIZES.num_text_tokens
    products, causal, _ = decoder(length, num_logits=length)
    more_products, more_attention = mixture(SIZES.num_text_tokens - NUM_ANSWER_TOKENS)
    counted = count_flops(runner.training)
    assert counted.attention == (causal + more_attention) * 7 // 2
    assert counted.products == 3 * (products + more_products)


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_count_is_the_same_when_heads_share_keys(is_causal: bool) -> None:
    query, key = torch.randn(2, 8, 30, 16), torch.randn(2, 2, 30, 16)
    counted = count_flops(lambda: F.scaled_dot_product_attention(query, key, key, is_causal=is_causal, enable_gqa=True))
    in_full = 2 * 2 * 2 * 8 * 30 * 30 * 16
    assert counted.products == 0 and counted.attention_in_full == in_full
    assert counted.attention == (in_full * 31 // 60 if is_causal else in_full)


def test_count_is_nothing_when_nothing_is_multiplied() -> None:
    counted = count_flops(lambda: torch.ones(3) + 1)
    assert (counted.total, counted.total_in_full) == (0, 0)


@pytest.mark.slow
def test_whole_model_is_counted_without_memory_when_described() -> None:
    printed = describe_moai_7b()
    decoder, mixers, compressor = (float(number) for number in re.findall(r"(\d+\.\d\d)(?: TFLOP)?[,;]", printed)[-3:])
    # Seven thousand million parameters, two operations each, 1,289 tokens; and attention.
    assert 2 * 6.9e9 * 1289 / 1e12 < decoder < 2 * 7.8e9 * 1289 / 1e12
    assert f"a / c = {(decoder + mixers + compressor) / decoder:.2f}" in printed and mixers > compressor > 0
