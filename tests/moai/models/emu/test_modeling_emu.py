"""What is Emu's own: images in a sequence, images drawn, what learns. The rest is in test_model_invariants.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conversation_builders import CONVERSATIONS, ask, make_image
from emu_builders import NUM_TOKENS, build_emu, build_processor
from torch.testing import assert_close
from transformers import BeitModel, LogitsProcessorList

from moai.models.emu.configuration_emu import EmuConfig
from moai.models.emu.losses import label_text
from moai.models.emu.modeling_emu import EmuForConditionalGeneration
from moai.models.emu.processing_emu import EmuProcessor

NEAR = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def emu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("emu")
    return build_emu(folder), build_processor(folder)


@torch.no_grad()
def test_images_matter_behind_them_only(emu: Any) -> None:
    model, processor = emu
    batch = processor(conversations=CONVERSATIONS[:1])
    before = model(**batch).logits
    starts = (batch["input_ids"][0] == model.config.image_start_token_id).nonzero()[:, 0].tolist()
    assert len(starts) == 3
    for index, place in enumerate(starts):
        changed = dict(batch) | {"pixel_values": batch["pixel_values"].clone()}
        changed["pixel_values"][0, index] = 0
        differs = (model(**changed).logits - before).abs().amax(dim=-1)[0] > 1e-5
        assert not differs[: place + 1].any() and differs[place + 1 :].all()


# ---------------------------------------------------------------------- images out


def _drawing(processor: EmuProcessor) -> list[Any]:
    parts = ["a red car", make_image(0)], [make_image(1), make_image(2)], ["like ", make_image(3), " but blue"]
    return [processor.encode_drawing(each) for each in parts]


def test_drawn_embeddings_equal_the_uncached_loop(emu: Any) -> None:
    model, processor = emu
    for batch in _drawing(processor):
        cached = model.generate_image(**batch)
        assert cached.shape == (2, NUM_TOKENS, model.config.text_config.hidden_size)
        assert_close(cached, model.generate_image(**batch, use_cache=False), **NEAR)
        # Each row alone: padding changes nothing.
        is_token = batch["attention_mask"][0].bool()
        single = {"input_ids": batch["input_ids"][:1, is_token], "pixel_values": batch["pixel_values"][:1]}
        assert_close(model.generate_image(**single)[0], cached[0], **NEAR)
        assert not torch.allclose(cached[0], cached[1])


def test_texts_are_followed_by_images_where_the_model_says_so(emu: Any) -> None:
    model, processor = emu
    ids, config = processor(conversations=CONVERSATIONS[1:2]), model.config
    calls = []

    class Start:
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            calls.append(input_ids.shape[1])
            allowed = scores[:, config.image_start_token_id] > -torch.inf
            scores[allowed, config.image_start_token_id] = 1e4 if len(calls) % 3 == 0 else -1e4
            return scores

    found = model.generate_parts(
        **ids, max_new_tokens=9, min_new_tokens=1, max_new_images=2, logits_processor=LogitsProcessorList([Start()])
    )
    kinds = [part.dim() for part in found.parts]
    assert kinds[:4] == [1, 2, 1, 2] and kinds.count(2) == 2 and all(len(p) for p in found.parts)
    # What was drawn is read again: the whole answer, said at once, predicts the same embeddings.
    with torch.no_grad():
        outputs = model.model(input_ids=found.input_ids, image_embeds=found.image_embeds)
    is_source = found.input_ids[:, 1:] == config.image_token_id
    predicted = model.regression_head(outputs.last_hidden_state[:, :-1][is_source]).unflatten(0, (3, NUM_TOKENS))
    assert_close(predicted[1:], found.image_embeds[0, 1:], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="one prompt"):
        model.generate_parts(**processor(conversations=CONVERSATIONS), max_new_tokens=2)


def test_what_is_drawn_is_read_again_when_images_are_padded(emu: Any) -> None:
    """A row of a batch in which another has more images."""
    model, processor = emu
    batch, start = processor(conversations=CONVERSATIONS[:1]), model.config.image_start_token_id
    length, pixels = batch["input_ids"].shape[1], batch["pixel_values"]

    def draw_first(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == length:
            scores[:, start] = 1e4
        return scores

    settings = {"max_new_tokens": 6, "max_new_images": 1, "logits_processor": LogitsProcessorList([draw_first])}
    alone = model.generate_parts(**batch, **settings)
    batch["pixel_values"] = torch.cat([pixels, torch.zeros_like(pixels)], dim=1)
    padded = model.generate_parts(**batch, **settings)
    assert [part.dim() for part in alone.parts] == [2, 1]
    assert padded.parts[1].tolist() == alone.parts[1].tolist()
    assert_close(padded.image_embeds, alone.image_embeds, atol=1e-5, rtol=1e-5)


def test_sampled_text_holds_no_token_of_an_image(emu: Any) -> None:
    model, processor = emu
    torch.manual_seed(0)
    batch = processor(conversations=CONVERSATIONS[:1])
    new = model.generate(
        **batch, max_new_tokens=60, do_sample=True, temperature=50.0, num_return_sequences=8, eos_token_id=-1
    )
    config = model.config
    silent = {config.image_start_token_id, config.image_end_token_id, config.image_token_id}
    assert not silent & set(new[:, batch["input_ids"].shape[1] :].flatten().tolist())


def test_error_says_what_a_drawing_prompt_ends_with(emu: Any) -> None:
    model, processor = emu
    with pytest.raises(ValueError, match=r"end with \[IMG\]"):
        model.generate_image(**processor(conversations=CONVERSATIONS[2:]))


# ---------------------------------------------------------------------- files, learning, errors


def _learn(model: EmuForConditionalGeneration, processor: EmuProcessor, pad: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batch = processor(conversations=CONVERSATIONS, padding_side="right")
    outputs = model(**batch, labels=label_text(batch["input_ids"], model.config, pad))
    assert_close(outputs.loss, outputs.text_loss + model.config.regression_weight * outputs.regression_loss)
    outputs.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_part_learns_and_checkpointing_changes_nothing(tmp_path: Path) -> None:
    model, processor = build_emu(tmp_path, regression_weight=0.5).train(), build_processor(tmp_path)
    pad = processor.tokenizer.pad_token_id
    plain = _learn(model, processor, pad)
    assert plain.keys() == {name for name, _ in model.named_parameters()}
    assert all(gradient.abs().sum() > 0 for gradient in plain.values())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in _learn(model, processor, pad).items():
        assert_close(gradient, plain[name], atol=1e-4, rtol=1e-3)


def test_images_alone_are_learned_without_text_and_text_alone_at_weight_0(emu: Any) -> None:
    model, processor = emu
    batch = processor(conversations=[ask(make_image(0), make_image(1))])
    outputs = model(**batch, labels=torch.full_like(batch["input_ids"], -100))
    assert outputs.text_loss == 0 and outputs.regression_loss > 0
    model.config.regression_weight = 0.0
    assert model(**batch, labels=batch["input_ids"]).regression_loss is None
    model.config.regression_weight = 1.0
    text = processor(conversations=CONVERSATIONS[2:])
    assert model(**text, labels=text["input_ids"]).regression_loss == 0


def test_error_names_both_numbers_when_images_do_not_match(emu: Any) -> None:
    model, processor = emu
    batch = processor(conversations=CONVERSATIONS[:1])
    with pytest.raises(ValueError, match="got 3 spans and 2 images"):
        model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"][:, :2])
    with pytest.raises(ValueError, match="got 3 spans and 2 images"):
        model.generate(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"][:, :2])
    with pytest.raises(ValueError, match="pixel_values"):
        model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"][0])
    with pytest.raises(ValueError, match="got none"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="cut inside an image"):
        model(input_ids=batch["input_ids"][:, 1:4], pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match="three ids below"):
        EmuConfig(**model.config.to_dict() | {"image_token_id": 10**6})


def test_another_tower_and_a_loaded_decoder_are_taken(emu: Any) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14))
    decoder = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=20))
    former = emu[0].config.causal_former_config.to_dict()
    model = EmuForConditionalGeneration.from_backbones(tower, decoder, causal_former_config=former, num_image_tokens=3)
    config = model.config
    assert (config.image_start_token_id, config.image_end_token_id, config.image_token_id) == (20, 21, 22)
    assert decoder.config.vocab_size == 20 and config.text_config.vocab_size == 23
    assert torch.equal(model.lm_head.weight[:20], decoder.lm_head.weight)
    with torch.no_grad():
        assert model.model.encode_images(torch.rand(2, 3, 28, 28)).shape == (2, 3, 16)


def test_parameters_are_as_many_as_published() -> None:
    with torch.device("meta"):
        model = EmuForConditionalGeneration(EmuConfig())
        tower = BeitModel(model.config.vision_config, add_pooling_layer=False)

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(model.model.causal_former) == pytest.approx(129.0e6, rel=1e-3)
    # The published file holds T5's word table too, which nobody reads.
    assert count(model.model.causal_former) + 32128 * 768 == pytest.approx(153.7e6, rel=1e-3)
    assert count(tower) == count(model.model.vision_tower) == pytest.approx(1.01e9, rel=2e-2)
    assert count(model) == pytest.approx(14.2e9, rel=5e-3)
    assert model.regression_head.weight.shape == (5120, 5120)
