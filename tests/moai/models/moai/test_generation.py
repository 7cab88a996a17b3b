"""generate: every mode of the library, one encoding per call, and equality with single and uncached runs."""

import copy
from typing import Any

import pytest
import torch
from builders import (
    FAMILIES,
    FIRST_WORD_ID,
    IMAGE_TOKEN_ID,
    build_tiny_config,
    build_tiny_inputs,
    build_tiny_model,
    take_single,
)
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache, TextStreamer

from moai import MoAIForConditionalGeneration
from moai.models.cache_names import read_cache

NUM_WORDS, NUM_AUXILIARY = (5, 3, 9), (6, 0, 2)
NUM_NEW = 6
GREEDY = {"do_sample": False, "max_new_tokens": NUM_NEW, "eos_token_id": -1}
TOKEN_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids")


def build(family: str = "llama", **fields: Any) -> MoAIForConditionalGeneration:
    return build_tiny_model(family, **{"plora_rank": 4, "plora_alpha": 8.0} | fields)


def build_inputs(model: MoAIForConditionalGeneration, **options: Any) -> dict[str, torch.Tensor]:
    return build_tiny_inputs(model.config, NUM_WORDS, NUM_AUXILIARY, **options)


class Calls:
    """Count the forwards of the parts that must run once per call."""

    def __init__(self, model: MoAIForConditionalGeneration) -> None:
        self.counts = {"vision_tower": 0, "compressor": 0, "language_model": 0, "mixers": 0}
        self.rows = dict(self.counts)
        for name in self.counts:
            getattr(model.model, name).register_forward_hook(self._count(name), with_kwargs=True)

    def _count(self, name: str):
        def hook(module, args, kwargs, output) -> None:
            self.counts[name] += 1
            first = args[0] if args else kwargs.get("inputs_embeds")
            self.rows[name] = max(self.rows[name], first.shape[0])

        return hook


MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams_return_2": {"num_beams": 3, "num_return_sequences": 2},
    "repetition": {"repetition_penalty": 1.3},
}


@pytest.mark.parametrize(
    ("family", "mode"), [*((family, "greedy") for family in FAMILIES), *(("llama", mode) for mode in list(MODES)[2:])]
)
def test_generate_batch_equals_singles_when_prompts_are_unequal(family: str, mode: str) -> None:
    model = build(family)
    inputs = build_inputs(model)
    options = GREEDY | MODES[mode]
    together = model.generate(**inputs, **options)[:, -NUM_NEW:]
    per_sample = options.get("num_return_sequences", 1)
    for row in range(3):
        alone = model.generate(**take_single(inputs, row), **options)[:, -NUM_NEW:]
        assert torch.equal(together[row * per_sample : (row + 1) * per_sample], alone), f"row {row}"
    assert len({tuple(sequence) for sequence in together.tolist()}) > 1  # the samples differ at all


@pytest.mark.parametrize("mode", ["beams_return_2", "repetition"])
def test_generate_cached_equals_uncached_when_compared(mode: str) -> None:
    model = build()
    inputs = build_inputs(model)
    cached = model.generate(**inputs, **GREEDY, **MODES[mode])
    uncached = model.generate(**inputs, **GREEDY, **MODES[mode], use_cache=False)
    assert torch.equal(cached, uncached)


@pytest.mark.gpu
def test_generate_equals_the_default_cache_when_that_is_offloaded() -> None:
    model = build().cuda()
    inputs = {name: value.cuda() for name, value in build_inputs(model).items()}
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation="offloaded"), expected)


def test_generate_equals_greedy_by_hand_when_stepped() -> None:
    model = build()
    inputs = take_single(build_inputs(model), 2)
    got = model.generate(**inputs, **GREEDY)[0, -NUM_NEW:]
    ids, roles = inputs["input_ids"], inputs["mm_token_type_ids"]
    rest = {name: value for name, value in inputs.items() if name not in TOKEN_KEYS}
    with torch.no_grad():
        for step in range(NUM_NEW):
            token = model(input_ids=ids, mm_token_type_ids=roles, **rest).logits[:, -1].argmax(-1, keepdim=True)
            assert token.item() == got[step]
            ids, roles = torch.cat([ids, token], dim=1), torch.cat([roles, torch.zeros_like(token)], dim=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"use_cache": False},
        {"num_beams": 2, "use_cache": False},
        {"prompt_lookup_num_tokens": 2},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_images_and_findings_are_encoded_once_when_generating(options: dict) -> None:
    model = build()
    inputs = build_inputs(model)
    if "prompt_lookup_num_tokens" in options:
        inputs = take_single(inputs, 2)
    num_samples = inputs["input_ids"].shape[0]
    calls = Calls(model)
    model.generate(**inputs, **GREEDY | options)
    # The images once, the panoptic maps once, few of both together; the compressor once; none of them per beam.
    assert calls.counts["vision_tower"] == (1 if num_samples == 1 else 2) and calls.counts["compressor"] == 1
    assert calls.rows["vision_tower"] == max(num_samples, 2) and calls.rows["compressor"] == num_samples
    assert calls.counts["language_model"] > 1
    num_mixers = len(model.config.mixer["layers"])
    passes_over_prompt = calls.counts["language_model"] if options.get("use_cache") is False else 1
    assert calls.counts["mixers"] == num_mixers * passes_over_prompt, "the mixture ran on decoded tokens"


def test_sampling_of_several_sequences_equals_a_repeated_batch_when_seeded() -> None:
    model = build()
    inputs = build_inputs(model)
    options = {"do_sample": True, "max_new_tokens": NUM_NEW, "eos_token_id": -1}
    torch.manual_seed(1)
    expanded = model.generate(**inputs, **options, num_return_sequences=2)
    torch.manual_seed(1)
    repeated = model.generate(**{name: value.repeat_interleave(2, 0) for name, value in inputs.items()}, **options)
    assert torch.equal(expanded, repeated)


class WordTokenizer:
    """As much of a tokenizer as a streamer needs: every id is a word."""

    def decode(self, ids, **_: Any) -> str:
        return "".join(f"<{int(index)}> " for index in ids)


class Collect(TextStreamer):
    """A streamer that keeps its text."""

    def __init__(self) -> None:
        super().__init__(WordTokenizer(), skip_prompt=True)
        self.parts: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.parts.append(text)


def test_streamer_hears_every_token_when_generating() -> None:
    model, streamer = build(), Collect()
    inputs = take_single(build_inputs(model), 0)
    ids = model.generate(**inputs, **GREEDY, streamer=streamer)[0, -NUM_NEW:]
    assert "".join(streamer.parts).split() == [f"<{index}>" for index in ids.tolist()]
    assert len([part for part in streamer.parts if part]) > 1


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_prompt_lookup_equals_greedy_when_candidates_are_verified(family: str) -> None:
    model = build(family)
    inputs = take_single(build_inputs(model), 2)
    inputs["input_ids"][0, -4:] = inputs["input_ids"][0, -8:-4]  # something to look up
    options = GREEDY | {"max_new_tokens": 20}
    calls = Calls(model)
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, prompt_lookup_num_tokens=3), expected)
    assert calls.counts["language_model"] < 40, "no candidate was ever accepted: the test shows nothing"


def test_moai_assistant_equals_greedy_when_given() -> None:
    model = build()
    inputs = take_single(build_inputs(model), 2)
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=build()), expected)
    other = build(seed=3)
    assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=other), expected)


def plain_decoder(model: MoAIForConditionalGeneration, vocab_size: int) -> PreTrainedModel:
    """The model's own decoder and head, without mixture and images, perhaps without the placeholder's row."""
    config = copy.deepcopy(model.config.text_config)
    config.vocab_size = vocab_size
    decoder = AutoModelForCausalLM.from_config(config).eval()
    state = model.model.language_model.state_dict()
    state["embed_tokens.weight"] = state["embed_tokens.weight"][:vocab_size]
    decoder.model.load_state_dict({name: state[name] for name in decoder.model.state_dict()})
    decoder.lm_head.weight.data = model.lm_head.weight.data[:vocab_size].clone()
    return decoder


@pytest.mark.parametrize("vocab_size", [256, IMAGE_TOKEN_ID])
def test_text_only_assistant_equals_greedy_when_given(vocab_size: int) -> None:
    model = build(plora_rank=0)
    inputs = take_single(build_inputs(model), 0)
    options = GREEDY | {"max_new_tokens": 16}
    expected = model.generate(**inputs, **options)
    assistant = plain_decoder(model, vocab_size)
    calls = Calls(model)
    seen: list[torch.Tensor] = []
    assistant.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    assert torch.equal(model.generate(**inputs, **options, assistant_model=assistant), expected)
    assert calls.counts["vision_tower"] == 1 and calls.counts["compressor"] == 1
    assert seen and all((ids != IMAGE_TOKEN_ID).all() for ids in seen)  # it is not shown the image
    assert calls.counts["language_model"] < 16, "no draft was ever accepted: the test shows nothing"
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), inputs["attention_mask"]], 1)
    padded = inputs | {"attention_mask": mask}
    for name in ("input_ids", "mm_token_type_ids"):
        padded[name] = torch.cat([torch.zeros(1, 3, dtype=torch.long), inputs[name]], 1)
    assert torch.equal(model.generate(**padded, **options, assistant_model=assistant)[:, 3:], expected)


def test_text_only_assistant_drafts_samples_of_the_model_when_sampling() -> None:
    model = build(plora_rank=0)
    inputs = take_single(build_inputs(model), 0)
    for vocab_size in (256, IMAGE_TOKEN_ID):
        assistant = plain_decoder(model, vocab_size)
        new = model.generate(**inputs, **GREEDY | {"do_sample": True}, assistant_model=assistant)
        assert new.shape[1] == inputs["input_ids"].shape[1] + NUM_NEW
        assert (new[:, inputs["input_ids"].shape[1] :] != IMAGE_TOKEN_ID).all()


def test_assistant_is_refused_when_its_vocabulary_differs() -> None:
    model = build()
    other = AutoModelForCausalLM.from_config(build_tiny_config(text={"vocab_size": 300}).text_config)
    with pytest.raises(ValueError, match="different tokenizers"):
        model.generate(**take_single(build_inputs(model), 0), **GREEDY, assistant_model=other)


def test_assistant_is_refused_when_its_width_differs() -> None:
    model, wide = build(), build(text={"hidden_size": 128, "head_dim": 32})
    with pytest.raises(ValueError, match="hidden_size"):
        model.generate(**take_single(build_inputs(model), 0), **GREEDY, assistant_model=wide)


def test_chunked_prefill_is_refused_when_asked() -> None:
    model = build()
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**build_inputs(model), **GREEDY, prefill_chunk_size=4)


@pytest.mark.parametrize(("shape", "num_beams"), [((3,), 2), ((2, 2, 3), 1), ((3, 2, 2, 3), 1), ((3, 2, 2, 3), 3)])
def test_routing_weights_follow_their_sample_when_expanded(shape: tuple[int, ...], num_beams: int) -> None:
    model = build()
    inputs = build_inputs(model)
    weights = torch.rand(shape) ** 4 + 0.01
    options = GREEDY | {"num_beams": num_beams}
    together = model.generate(**inputs, **options, routing=weights)[:, -NUM_NEW:]
    for row in range(3):
        own = weights[row : row + 1] if shape == (3, 2, 2, 3) else weights
        alone = model.generate(**take_single(inputs, row), **options, routing=own)[:, -NUM_NEW:]
        assert torch.equal(together[row : row + 1], alone), f"row {row}"


def test_routing_changes_the_answer_when_overridden() -> None:
    model = build()
    inputs = build_inputs(model)
    answers = {
        tuple(model.generate(**inputs, **GREEDY, routing=torch.eye(3)[expert]).flatten().tolist())
        for expert in range(3)
    }
    assert len(answers) == 3


def test_routing_is_refused_when_its_batch_differs() -> None:
    model = build()
    with pytest.raises(ValueError, match="batch of 3, got 2"):
        model.generate(**build_inputs(model), **GREEDY, routing=torch.rand(2, 2, 2, 3), num_beams=2)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}, {"do_sample": True}], ids=str)
def test_output_routing_returns_the_prompts_gates_when_asked(options: dict) -> None:
    model = build()
    inputs = build_inputs(model)
    output = model.generate(
        **inputs, **GREEDY | options, output_routing=True, return_dict_in_generate=True, routing={"top_k": 2}
    )
    expected = model(**inputs, routing={"top_k": 2}, output_routing=True).routing
    repeats = options.get("num_beams", 1)
    for layer, reference in zip(output.routing, expected, strict=True):
        assert layer.layer_idx == reference.layer_idx
        assert torch.allclose(layer.image, reference.image.repeat_interleave(repeats, 0), atol=1e-5)
        assert torch.allclose(layer.language, reference.language.repeat_interleave(repeats, 0), atol=1e-5)
    with pytest.raises(ValueError, match="return_dict_in_generate"):
        model.generate(**inputs, **GREEDY, output_routing=True)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("gives_features", [False, True])
def test_several_images_stay_with_their_sample_when_beams_expand(num_beams: int, gives_features: bool) -> None:
    model = build(plora_alpha=256.0)
    slots = [IMAGE_TOKEN_ID] * model.config.num_image_tokens
    rows = [[*slots, 9, *slots, 8, 7], [0] * len(slots) + [11, *slots, 12, 13]]
    ids = torch.tensor(rows)
    mask = (ids != 0).long()
    pixels = torch.randn(3, 3, 28, 28)
    options = GREEDY | {"num_beams": num_beams}

    def inputs_of(images: torch.Tensor) -> dict[str, torch.Tensor]:
        if not gives_features:
            return {"pixel_values": images}
        return {"image_features": model.get_image_features(images, return_dict=True).pooler_output}

    together = model.generate(input_ids=ids, attention_mask=mask, **inputs_of(pixels), **options)[:, -NUM_NEW:]
    first = model.generate(input_ids=ids[:1], **inputs_of(pixels[:2]), **options)[:, -NUM_NEW:]
    second = model.generate(input_ids=ids[1:, len(slots) :], **inputs_of(pixels[2:]), **options)[:, -NUM_NEW:]
    assert torch.equal(together, torch.cat([first, second]))
    swapped = model.generate(input_ids=ids[:1], **inputs_of(pixels[:2].flip(0)), **options)[:, -NUM_NEW:]
    assert not torch.equal(first, swapped)


def test_generate_needs_no_roles_when_ids_are_given() -> None:
    model = build()
    inputs = build_inputs(model)
    expected = model.generate(**inputs, **GREEDY)
    del inputs["mm_token_type_ids"]
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)


def test_generate_equals_encoded_states_when_those_are_given() -> None:
    model = build()
    inputs = build_inputs(model)
    expected = model.generate(**inputs, **GREEDY, num_beams=2)
    states = model.get_auxiliary_states(**{name: inputs.pop(name) for name in list(inputs) if "auxiliary" in name})
    assert torch.equal(model.generate(**inputs, auxiliary_states=states, **GREEDY, num_beams=2), expected)


@pytest.mark.parametrize("kind", ["text", "image", "findings"])
def test_generate_answers_when_a_modality_is_absent(kind: str) -> None:
    model = build()
    inputs = take_single(build_inputs(model), 0)
    if kind != "findings":
        inputs = {name: value for name, value in inputs.items() if not name.startswith("auxiliary")}
    if kind != "image":
        inputs.pop("pixel_values")
        kept = inputs["input_ids"] != IMAGE_TOKEN_ID
        inputs |= {name: inputs[name][kept][None] for name in TOKEN_KEYS}
    cached = model.generate(**inputs, **GREEDY)
    assert cached.shape[1] == inputs["input_ids"].shape[1] + NUM_NEW
    assert torch.equal(cached, model.generate(**inputs, **GREEDY, use_cache=False))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("repeats_inputs", [False, True])
def test_generate_continues_where_it_stopped_when_given_its_cache(kind: str, repeats_inputs: bool) -> None:
    model = build()
    inputs = build_inputs(model)
    expected = model.generate(**inputs, **GREEDY)
    text = model.config.text_config
    cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(config=text, max_cache_len=64)
    half = model.generate(
        **inputs,
        **GREEDY | {"max_new_tokens": NUM_NEW // 2},
        past_key_values=cache,
        return_dict_in_generate=True,
    )
    assert read_cache(half) is cache
    num_new = half.sequences.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, num_new, dtype=torch.long)], dim=1)
    # Images and findings are in the cache; giving them again must not hurt, as chat loops do.
    again = {name: value for name, value in inputs.items() if name not in TOKEN_KEYS} if repeats_inputs else {}
    rest = model.generate(
        input_ids=half.sequences,
        attention_mask=mask,
        cache=cache,
        **again,
        **GREEDY | {"max_new_tokens": NUM_NEW // 2},
    )
    assert torch.equal(rest, expected)


def test_new_images_are_refused_when_the_cache_is_filled() -> None:
    model = build()
    inputs = take_single(build_inputs(model), 0)
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, inputs["input_ids"]], dim=1)
    with pytest.raises(ValueError, match="filled cache"):
        model.generate(input_ids=ids, pixel_values=inputs["pixel_values"], cache=read_cache(first), **GREEDY)


def test_a_second_turn_bypasses_the_mixture_when_continued_from_a_cache() -> None:
    # The same as one prompt whose later words carry role 0.
    model = build()
    inputs = take_single(build_inputs(model), 0)
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    question = torch.tensor([[FIRST_WORD_ID + 5, FIRST_WORD_ID + 9, FIRST_WORD_ID + 2]])
    ids = torch.cat([first.sequences, question], dim=1)
    roles = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, ids.shape[1] - inputs["input_ids"].shape[1]))
    continued = model.generate(input_ids=ids, cache=read_cache(first), **GREEDY)
    whole = {name: value for name, value in inputs.items() if name not in TOKEN_KEYS}
    assert torch.equal(continued, model.generate(input_ids=ids, mm_token_type_ids=roles, **whole, **GREEDY))


def test_placeholder_is_never_decoded_when_it_would_win() -> None:
    model = build()
    with torch.no_grad():
        model.lm_head.weight[IMAGE_TOKEN_ID] = 1e3 * model.lm_head.weight[20]
    inputs = build_inputs(model)
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "temperature": 5.0}):
        new = model.generate(**inputs, **GREEDY | options)[:, inputs["input_ids"].shape[1] :]
        assert (new != IMAGE_TOKEN_ID).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_generate_runs_when_half_precision(dtype: torch.dtype) -> None:
    model = build().to(dtype)
    inputs = build_inputs(model)
    for options in ({}, {"num_beams": 2}, {"do_sample": True}):
        assert model.generate(**inputs, **GREEDY | options).shape == (3, inputs["input_ids"].shape[1] + NUM_NEW)
