"""What transformers promises of every model, asked of MoAI: forward, training, generation, processor.

The other half of test_transformers_contract.py. What stands elsewhere is not repeated: roles, routing and
labels (test_modeling_moai.py), encoding once, assistants and chat turns (test_generation.py), one compiled graph
(test_decoder_families.py), the processor's keywords (test_processor_arguments.py) and prompts (test_processing_*.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from builders import IMAGE_TOKEN_ID, add_labels, build_tiny_inputs, build_tiny_model
from processing_builders import PATCHES, RED

from moai import MoAIForConditionalGeneration, MoAIProcessor

FAMILIES = ("llama", "qwen3")
NUM_WORDS, NUM_AUXILIARY = (5, 3, 9), (6, 0, 2)
NUM_NEW = 6
GREEDY = {"do_sample": False, "max_new_tokens": NUM_NEW, "eos_token_id": -1}
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "beam sampling": {"do_sample": True, "num_beams": 2},
}
# Flex attention is compiled on its first call: seconds, and a compiler.
FLEX = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention needs a C++ compiler")]
# Plain rotary positions are relative: they would forgive padding that is counted as words. These do not.
LENGTH_SENSITIVE = {
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "max_position_embeddings": 8,
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def build(family: str, **fields: Any) -> MoAIForConditionalGeneration:
    return build_tiny_model(family, **{"plora_rank": 4, "plora_alpha": 8.0} | fields)


def build_inputs(model: MoAIForConditionalGeneration) -> dict[str, torch.Tensor]:
    return build_tiny_inputs(model.config, NUM_WORDS, NUM_AUXILIARY)


def said(model: MoAIForConditionalGeneration, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
    """Logits of the words before the placeholder at the positions that are tokens, (tokens, 255)."""
    with torch.no_grad():
        logits = model(**inputs, **options).logits
    mask = inputs.get("attention_mask")
    return (logits.flatten(0, 1) if mask is None else logits[mask.bool()])[:, :IMAGE_TOKEN_ID]


def pad(rows: list[list[int]], side: str, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids ``(B, L)`` and mask of unequal rows, padded on one side."""
    longest = max(map(len, rows)) + extra
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def flatten(output: Any) -> Iterator[torch.Tensor]:
    """The tensors of nested tuples, in order; caches are compared elsewhere."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, tuple):
        for entry in output:
            yield from flatten(entry)


# ---------------------------------------------------------------- forward


@every_family
@pytest.mark.parametrize("asks", [{}, {"output_hidden_states": True, "output_attentions": True}], ids=["plain", "all"])
def test_tuple_holds_what_the_output_holds_when_no_dictionary_is_returned(family: str, asks: dict) -> None:
    whole = build(family)
    whole.set_attn_implementation("eager")
    inputs = build_inputs(whole)
    for model in (whole, whole.model):
        with torch.no_grad():
            named = model(**inputs, **asks)
            bare = model(**inputs, **asks, return_dict=False)
            model.config.return_dict = False
            by_configuration = model(**inputs, **asks)
            model.config.return_dict = True
        expected = list(flatten(named.to_tuple()))
        # Of the decoder and, within `image_outputs`, of the vision tower.
        assert len(expected) == (3 + 2) + ((5 + 4) + (3 + 2) if asks else 0)
        for output in (bare, by_configuration):
            assert type(output) is tuple and len(output) == len(named)
            tensors = list(flatten(output))
            assert len(tensors) == len(expected)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, expected, strict=True))


@every_family
def test_hidden_states_and_attentions_come_when_the_decoders_configuration_asks(family: str) -> None:
    model = build(family)
    model.set_attn_implementation("eager")
    inputs = build_inputs(model)
    asked = model(**inputs, output_hidden_states=True, output_attentions=True)
    model.config.text_config.output_hidden_states = model.config.text_config.output_attentions = True
    output = model(**inputs)
    batch, length = inputs["input_ids"].shape
    assert [tuple(states.shape) for states in output.hidden_states] == [(batch, length, 64)] * 5
    assert [tuple(weights.shape) for weights in output.attentions] == [(batch, 4, length, length)] * 4
    assert all(torch.equal(a, b) for a, b in zip(output.hidden_states, asked.hidden_states, strict=True))
    last = output.hidden_states[-1]
    assert torch.equal(model.lm_head(last)[..., :IMAGE_TOKEN_ID], output.logits[..., :IMAGE_TOKEN_ID])
    kept = inputs["attention_mask"].bool()
    for weights in output.attentions:  # (B, H, L, L): rows sum to 1, nothing ahead, no padding
        assert torch.allclose(weights.sum(-1).transpose(1, 2)[kept], torch.ones(int(kept.sum()), 4), atol=1e-5)
        assert not weights.triu(1).transpose(1, 2)[kept].any()
        assert not weights.masked_select(~kept[:, None, None] & kept[:, None, :, None]).any()


@every_family
def test_gradients_can_be_kept_when_hidden_states_and_attentions_are_returned(family: str) -> None:
    model = build(family)
    model.set_attn_implementation("eager")
    output = model(**build_inputs(model), output_hidden_states=True, output_attentions=True)
    for tensor in (*output.hidden_states, *output.attentions):
        tensor.retain_grad()
    output.logits[:, -1, :IMAGE_TOKEN_ID].square().sum().backward()
    for tensor in (*output.hidden_states, *output.attentions):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("family", "implementation"),
    [*((family, "eager") for family in FAMILIES), pytest.param("llama", {"text_config": "flex_attention"}, marks=FLEX)],
    ids=str,
)
def test_logits_are_the_same_when_attention_is_computed_otherwise(family: str, implementation: Any) -> None:
    model = build(family)
    inputs = build_inputs(model)
    expected = said(model, inputs)
    model.set_attn_implementation(implementation)
    assert model.get_decoder().config._attn_implementation != "sdpa"
    assert torch.allclose(said(model, inputs), expected, atol=1e-4)


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("extra", "text"), [(0, {}), (3, {}), (3, LENGTH_SENSITIVE)])
def test_row_equals_itself_alone_when_images_words_and_findings_differ(
    family: str, side: str, extra: int, text: dict
) -> None:
    model = build(family, text=text)
    slots = [IMAGE_TOKEN_ID] * model.config.num_image_tokens
    rows = [[*slots, 9, *slots, 8, 7], [11, 12, 13], [*slots, 21, 22, 23, 24, 25], [31, *slots]]
    findings = [[5, 6, 7], [8], [], [14, 15, 16, 17, 18]]
    counts = [row.count(IMAGE_TOKEN_ID) // len(slots) for row in rows]
    pixels = torch.randn(sum(counts), 3, 28, 28)
    ids, mask = pad(rows, side, extra)
    auxiliary_ids, auxiliary_mask = pad(findings, side, extra)
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    batch |= {"auxiliary_input_ids": auxiliary_ids, "auxiliary_attention_mask": auxiliary_mask}
    together = said(model, batch)
    alone, start = [], 0
    for row, words, count in zip(rows, findings, counts, strict=True):
        single: dict[str, Any] = {"input_ids": torch.tensor([row])}
        single["auxiliary_input_ids"] = torch.tensor([words], dtype=torch.long)
        if count:
            single["pixel_values"] = pixels[start : start + count]
        alone.append(said(model, single))
        start += count
    assert [len(logits) for logits in alone] == [len(row) for row in rows]
    assert torch.allclose(together, torch.cat(alone), atol=2e-4)


@every_family
def test_mask_of_four_dimensions_means_the_same_when_given(family: str) -> None:
    model = build(family)
    inputs = {name: value[:1] for name, value in build_tiny_inputs(model.config, (5,), (6,)).items()}
    length = inputs["input_ids"].shape[1]
    causal = torch.full((1, 1, length, length), torch.finfo(torch.float32).min).triu(1)
    expected = said(model, inputs)
    inputs |= {"attention_mask": causal, "position_ids": torch.arange(length)[None]}
    with torch.no_grad():
        got = model(**inputs).logits[0, :, :IMAGE_TOKEN_ID]
        everything_seen = model(**inputs | {"attention_mask": torch.zeros_like(causal)}).logits[0, :, :IMAGE_TOKEN_ID]
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(everything_seen, expected, atol=1e-2)


@every_family
def test_logits_are_those_positions_when_chosen(family: str) -> None:
    model = build(family)
    inputs = build_inputs(model)
    with torch.no_grad():
        full = model(**inputs).logits
        for keep, positions in ((1, [-1]), (3, [-3, -2, -1]), (torch.tensor([2, 5]), [2, 5])):
            chosen = model(**inputs, logits_to_keep=keep).logits
            assert torch.allclose(chosen, full[:, positions], atol=1e-5)


# ---------------------------------------------------------------- training


def gradients_of(model: MoAIForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs, use_cache=False).loss.backward()
    return {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}


@every_family
@pytest.mark.parametrize("arguments", [None, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
@pytest.mark.parametrize("door", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:MoAI is checkpointed:UserWarning")
def test_gradients_are_equal_when_checkpointed_through_either_door(family: str, door: str, arguments: Any) -> None:
    model = build(family).train()
    inputs = add_labels(build_inputs(model))
    expected = gradients_of(model, inputs)
    getattr(model, door)(arguments)
    assert model.is_gradient_checkpointing
    runs: list[int] = []
    handle = model.get_decoder().layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    got = gradients_of(model, inputs)
    assert len(runs) == 2, "nothing was recomputed"
    assert got.keys() == expected.keys()
    assert all(torch.allclose(got[name], gradient, atol=1e-6) for name, gradient in expected.items())
    getattr(model, door.replace("enable", "disable"))()
    assert not model.is_gradient_checkpointing
    runs.clear()
    gradients_of(model, inputs)
    handle.remove()
    assert len(runs) == 1


@every_family
@pytest.mark.parametrize("checkpoints", [False, True])
def test_every_parameter_gets_gradient_when_trained(family: str, checkpoints: bool) -> None:
    model = build(family, plora_rank=0).train()
    if checkpoints:
        model.activation_checkpointing_enable({"use_reentrant": False})
    inputs = add_labels(build_inputs(model))
    gradients = gradients_of(model, inputs)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    silent = {name for name, _ in model.named_parameters() if not gradients.get(name, torch.zeros(1)).any()}
    # Only CLIP's pooled output passes through its last norm, which MoAI does not read.
    assert silent == {f"model.vision_tower.post_layernorm.{name}" for name in ("weight", "bias")}


@every_family
def test_inputs_require_gradient_when_adapters_ask_for_it(family: str) -> None:
    # What PEFT does before it checkpoints a frozen model: else the first layers would have no graph.
    model = build(family).train().requires_grad_(False)
    head = model.lm_head.requires_grad_(True)
    inputs = add_labels(build_inputs(model))
    seen: list[bool] = []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    model(**inputs)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model(**inputs).loss.backward()
    model.disable_input_require_grads()
    assert seen[:2] == [False, True] and head.weight.grad.abs().sum() > 0


@every_family
def test_batch_is_learned_by_heart_when_trained_on_it(family: str) -> None:
    model = build(family).train()
    inputs = add_labels(build_inputs(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# ---------------------------------------------------------------- generation


@every_family
@pytest.mark.parametrize("mode", MODES)
def test_answer_is_the_same_when_the_cache_or_the_prompts_form_differs(family: str, mode: str) -> None:
    model = build(family)
    inputs = build_inputs(model)
    length = inputs["input_ids"].shape[1]
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    without_ids = {name: value for name, value in inputs.items() if name != "input_ids"}

    def answer(inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        torch.manual_seed(3)
        return model.generate(**inputs, **GREEDY | MODES[mode] | options)[:, -NUM_NEW:]

    expected = answer(inputs)
    assert expected.shape == (3, NUM_NEW) and length > NUM_NEW
    assert torch.equal(answer(inputs, use_cache=False), expected)
    for implementation in ("dynamic", "static"):
        assert torch.equal(answer(inputs, cache_implementation=implementation), expected), implementation
    assert torch.equal(answer(without_ids | {"inputs_embeds": embeds}), expected)
    # Beside embeddings ids are only what the answer is appended to.
    assert torch.equal(answer(inputs | {"inputs_embeds": embeds}), expected)


@every_family
@pytest.mark.parametrize("num_beams", [1, 2])
def test_steps_are_told_when_generation_returns_a_dictionary(family: str, num_beams: int) -> None:
    model = build(family)
    model.set_attn_implementation("eager")
    inputs = build_inputs(model)
    asks = ("output_scores", "output_logits", "output_hidden_states", "output_attentions", "return_dict_in_generate")
    output = model.generate(**inputs, **GREEDY, num_beams=num_beams, **dict.fromkeys(asks, True))
    rows, length = 3 * num_beams, inputs["input_ids"].shape[1]
    assert torch.equal(output.sequences, model.generate(**inputs, **GREEDY, num_beams=num_beams))
    for entries in (output.scores, output.logits, output.hidden_states, output.attentions):
        assert len(entries) == NUM_NEW
    assert all(scores.shape == (rows, 256) for scores in (*output.scores, *output.logits))
    for step, (states, weights) in enumerate(zip(output.hidden_states, output.attentions, strict=True)):
        queries, keys = (1, length + step) if step else (length, length)
        assert [tuple(state.shape) for state in states] == [(rows, queries, 64)] * 5
        assert [tuple(weight.shape) for weight in weights] == [(rows, 4, queries, keys)] * 4


# ---------------------------------------------------------------- processor


def ask(words: str, num_images: int = 1) -> list[dict[str, Any]]:
    images = [{"type": "image", "image": RED}] * num_images
    return [{"role": "user", "content": [*images, {"type": "text", "text": words}]}]


def test_conversations_are_one_batch_when_the_template_tokenizes(processor: MoAIProcessor) -> None:
    conversations = [ask("How many dogs?"), ask("Two dogs, yes. How many dogs here?", num_images=2), ask("yes", 0)]
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
    together = processor.apply_chat_template(conversations, **options)
    assert together["pixel_values"].shape == (3, 3, 28, 42)
    assert (together["input_ids"] == processor.image_token_id).sum(1).tolist() == [PATCHES, 2 * PATCHES, 0]
    for row, conversation in enumerate(conversations):
        alone = processor.apply_chat_template([conversation], **options)
        length = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][row, -length:], alone["input_ids"][0])
        assert together["attention_mask"][row].sum() == length
    texts = processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
    assert torch.equal(processor(text=texts, images=[RED] * 3)["input_ids"], together["input_ids"])
