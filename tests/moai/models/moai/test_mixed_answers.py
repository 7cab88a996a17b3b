"""`mixer.mixes_answers`: answers read auxiliary tokens and images, wherever the prompt lies, and never what follows."""

from typing import Any

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model, take_single
from transformers import DynamicCache

from mixer import Routing, TokenStream
from moai import MoAIForConditionalGeneration
from moai.models.cache_names import as_keyword, read_cache

NUM_WORDS, NUM_AUXILIARY = (5, 3, 9), (6, 0, 2)
NUM_NEW = 6
GREEDY = {"do_sample": False, "max_new_tokens": NUM_NEW, "eos_token_id": -1}
TOKEN_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids")
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams_return_2": {"num_beams": 3, "num_return_sequences": 2},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "static": {"cache_implementation": "static"},
    "routed": {"routing": torch.tensor([0.7, 0.2, 0.1])},
}


def build(mixes_answers: bool = True, **fields: Any) -> MoAIForConditionalGeneration:
    return build_tiny_model(
        mixer={"mixes_answers": mixes_answers, "qk_norm": True}, plora_rank=4, plora_alpha=8.0, **fields
    )


def build_inputs(model: MoAIForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Three samples, left-padded; one without words."""
    return build_tiny_inputs(model.config, NUM_WORDS, NUM_AUXILIARY)


def append_answers(inputs: dict[str, torch.Tensor], length: int = 4) -> dict[str, torch.Tensor]:
    """The same prompts with answers behind them, and labels for those."""
    batch, prompt = inputs["input_ids"].shape
    answers = torch.randint(8, 40, (batch, length), generator=torch.Generator().manual_seed(3))
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], answers], dim=1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        longer[name] = torch.cat([inputs[name], torch.full((batch, length), value)], dim=1)
    longer["labels"] = longer["input_ids"].masked_fill(torch.arange(prompt + length) < prompt, -100)
    return longer


@pytest.mark.parametrize("mode", MODES)
def test_generate_cached_equals_uncached_when_answers_are_mixed(mode: str) -> None:
    model, bypassing = build(), build(mixes_answers=False)
    inputs = build_inputs(model)
    if mode == "lookup":
        inputs = take_single(inputs, 2)
    without_cache = {name: value for name, value in MODES[mode].items() if "cache" not in name and "lookup" not in name}
    cached = model.generate(**inputs, **GREEDY, **MODES[mode])
    assert torch.equal(cached, model.generate(**inputs, **GREEDY, **without_cache, use_cache=False))
    assert not torch.equal(cached, bypassing.generate(**inputs, **GREEDY, **MODES[mode]))


@pytest.mark.parametrize("mode", ["greedy", "beams_return_2"])
def test_generate_batch_equals_singles_when_answers_are_mixed(mode: str) -> None:
    model = build()
    inputs = build_inputs(model)
    options = GREEDY | MODES[mode]
    together = model.generate(**inputs, **options)[:, -NUM_NEW:]
    per_sample = options.get("num_return_sequences", 1)
    for row in range(3):
        alone = model.generate(**take_single(inputs, row), **options)[:, -NUM_NEW:]
        assert torch.equal(together[row * per_sample : (row + 1) * per_sample], alone), f"row {row}"


@pytest.mark.parametrize("source", ["auxiliary_input_ids", "pixel_values"])
@torch.no_grad()
def test_answers_read_what_their_prompt_did_not_when_it_is_cached(source: str) -> None:
    """With the decoder's cache of one prompt, what is read beside it is told by the memory alone."""
    model = build()
    inputs = take_single(build_inputs(model), 0)
    token = torch.tensor([[9]])
    logits = {}
    for name, value in (("own", inputs[source]), ("other", inputs[source].flip(-1))):
        prompt = model(**inputs | {source: value}, use_cache=True)
        memory = read_cache(prompt).moai_prompt_memory
        cache = read_cache(model(**inputs, use_cache=True))
        cache.moai_prompt_memory = memory
        logits[name] = model(input_ids=token, **as_keyword(cache)).logits
    assert not torch.allclose(logits["own"], logits["other"], atol=1e-5)


@torch.no_grad()
def test_logits_are_those_of_one_pass_when_an_answer_is_read_in_pieces() -> None:
    model = build()
    longer = append_answers(build_inputs(model))
    labels = longer.pop("labels")
    whole = model(**longer).logits
    prompt = int((labels[0] == -100).sum())
    assert torch.allclose(model(**longer, labels=labels).logits, whole, atol=1e-5)
    first = {name: value[:, :prompt] if name in TOKEN_KEYS else value for name, value in longer.items()}
    cache = read_cache(model(**first, use_cache=True))
    for start, end in ((prompt, prompt + 1), (prompt + 1, prompt + 4)):
        given = {"input_ids": longer["input_ids"][:, start:end], "attention_mask": longer["attention_mask"][:, :end]}
        part = model(**given, **as_keyword(cache))
        assert torch.allclose(part.logits, whole[:, start:end], atol=1e-4)


@torch.no_grad()
def test_no_logit_moves_when_a_later_answer_token_changes() -> None:
    model = build()
    longer = append_answers(build_inputs(model))
    base = model(**longer).logits
    for position in range(longer["input_ids"].shape[1] - 4, longer["input_ids"].shape[1]):
        ids = longer["input_ids"].clone()
        ids[:, position] = (ids[:, position] + 7) % 30 + 8
        logits = model(**longer | {"input_ids": ids}).logits
        assert torch.equal(logits[:, :position], base[:, :position])
        assert not torch.equal(logits[:, position], base[:, position])


@torch.no_grad()
def test_a_text_is_the_plain_decoders_when_its_cache_held_a_mixed_prompt() -> None:
    model = build()
    inputs = take_single(build_inputs(model), 0)
    ids = torch.tensor([[9, 10, 11, 12]])
    plain = model.model.language_model(input_ids=ids).last_hidden_state
    cache = DynamicCache(config=model.config.text_config)
    model(**inputs, use_cache=True, **as_keyword(cache))
    cache.reset()
    refilled = DynamicCache(config=model.config.text_config)
    refilled.moai_prompt_memory = cache.moai_prompt_memory
    assert torch.allclose(model.model(input_ids=ids, **as_keyword(refilled)).last_hidden_state, plain, atol=1e-6)


def test_experts_learn_from_answers_alone_when_the_prompt_has_no_loss() -> None:
    """A question's answer teaches the language stream's experts that read sources, and gradients are finite."""
    model = build().train()
    model(**append_answers(build_inputs(model))).loss.backward()
    for layer in model.model.mixers.layers:
        for expert in layer.language_experts[:2]:
            assert expert.query.down.grad.isfinite().all()
            assert expert.query.down.grad.abs().sum() > 0


@torch.no_grad()
def test_answer_reads_as_much_as_the_gate_gives_when_language_has_the_rest() -> None:
    layer = build().model.mixers.layers[0]
    hidden, auxiliary = torch.randn(1, 5, 64), torch.randn(1, 4, 64)
    nothing, answers = (TokenStream.from_roles(torch.full((1, 5), value)) for value in (False, True))

    def read(share: float) -> torch.Tensor:
        routing = Routing("given", weights=torch.tensor([share, 0.0, 1 - share]).expand(1, 1, 2, 3))
        sources = layer.read_sources(hidden, auxiliary, nothing, routing, 0)
        return layer.mix_answers(hidden, answers, sources, routing, 0) - hidden

    assert read(0.5).abs().max() > 0.01
    assert torch.allclose(read(0.5), 2 * read(0.25), atol=1e-5) and read(0.0).abs().max() < 1e-6
