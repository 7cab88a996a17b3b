"""What is Flamingo's own: identity at first, who sees which image, who learns. The rest: test_model_invariants.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conversation_builders import CONVERSATIONS
from flamingo_builders import DECODERS, build_flamingo, build_processor, save_decoder, save_tower
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from moai.models.cache_names import as_keyword, read_cache
from moai.models.flamingo.configuration_flamingo import FlamingoConfig, every_nth_layer
from moai.models.flamingo.modeling_flamingo import FlamingoForConditionalGeneration
from moai.models.flamingo.processing_flamingo import FlamingoProcessor

NEAR = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llama")
    return build_flamingo(folder), build_processor(folder)


@pytest.mark.parametrize("family", DECODERS)
def test_new_flamingo_says_what_its_decoder_says_when_gates_are_closed(tmp_path: Path, family: str) -> None:
    decoder, tower = save_decoder(tmp_path / "decoder", family), save_tower(tmp_path / "tower")
    model = FlamingoForConditionalGeneration.from_backbones(tower, decoder, every=1)
    processor = build_processor(tmp_path)
    batch = processor(conversations=CONVERSATIONS[:1])
    plain = AutoModelForCausalLM.from_pretrained(decoder)
    ids = batch["input_ids"].clone()
    ids[ids >= plain.config.vocab_size] = 0
    model.resize_token_embeddings(plain.config.vocab_size + 4)  # rows of new tokens do not matter here
    media = model.get_media_states(batch["pixel_values"])
    times = torch.ones_like(ids)
    with torch.no_grad():
        ours = model(input_ids=ids, media_states=media, media_times=times).logits[..., : plain.config.vocab_size]
        assert torch.equal(ours, plain(ids).logits)
    assert model.config.cross_attention_layers == [0, 1, 2, 3]


@torch.no_grad()
def test_images_matter_to_their_text_only_when_masked(llama: Any) -> None:
    model, processor = llama
    batch = processor(conversations=CONVERSATIONS[:1])
    before = model(**batch).logits
    places = (batch["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    for index, place in enumerate(places):
        changed = dict(batch) | {"pixel_values": batch["pixel_values"].clone()}
        changed["pixel_values"][0, index] = 0
        differs = (model(**changed).logits - before).abs().amax(dim=-1)[0] > 1e-4
        assert not differs[:place].any() and differs[place]  # no look ahead; <image> belongs to its image


@pytest.mark.parametrize("only_immediate", [True, False])
@torch.no_grad()
def test_cached_steps_equal_one_pass_when_times_are_handed_on(tmp_path: Path, only_immediate: bool) -> None:
    model = build_flamingo(tmp_path, only_attend_immediate_media=only_immediate)
    batch = build_processor(tmp_path)(conversations=CONVERSATIONS)
    assert batch["pixel_values"].shape[:2] == (3, 3) and batch["media_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [0] * 3]
    whole = model(**batch)
    media = {"media_mask": batch["media_mask"], "media_states": whole.media_states}
    cut = batch["input_ids"].shape[1] - 4
    ids, mask = batch["input_ids"], batch["attention_mask"]
    first = model(
        input_ids=ids[:, :cut], attention_mask=mask[:, :cut], media_times=whole.media_times[:, :cut], use_cache=True,
        **media,
    )  # fmt: skip
    second = model(
        input_ids=ids[:, cut:], attention_mask=mask, media_times=whole.media_times[:, cut:],
        **as_keyword(read_cache(first)), **media,
    )  # fmt: skip
    assert_close(torch.cat([first.logits, second.logits], dim=1), whole.logits, **NEAR)
    for row, conversation in enumerate(CONVERSATIONS):  # the other form pads without trace too
        single = model(**build_processor(tmp_path)(conversations=[conversation])).logits[0]
        assert_close(whole.logits[row, -len(single) :], single, **NEAR)
    with pytest.raises(ValueError, match="media_times"):
        model(input_ids=ids[:, cut:], media_states=whole.media_states, **as_keyword(read_cache(first)))


def _learn(model: FlamingoForConditionalGeneration, processor: FlamingoProcessor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batch = processor(conversations=CONVERSATIONS, answers=["yes", "no", "maybe"], padding_side="right")
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "qwen2", "mpt"])  # apart, and tied
def test_only_new_parts_and_new_rows_get_gradients_when_pretrained_rest(tmp_path: Path, family: str) -> None:
    model, processor = build_flamingo(tmp_path, family).train(), build_processor(tmp_path)
    model.freeze_pretrained()
    gradients = _learn(model, processor)
    embedding = model.get_input_embeddings().weight
    table = next(name for name, parameter in model.named_parameters() if parameter is embedding)
    new = {name for name, _ in model.named_parameters() if name.startswith(("model.resampler.", "model.gated_blocks."))}
    assert gradients.keys() == new | {table}
    assert all(gradients[name].abs().sum() > 0 for name in new)
    rows = gradients[table].abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert set(rows) <= {model.config.image_token_id, model.config.end_of_chunk_token_id}
    assert model.config.image_token_id in rows


def test_gradients_are_equal_when_checkpointed(tmp_path: Path) -> None:
    model, processor = build_flamingo(tmp_path).train(), build_processor(tmp_path)
    model.freeze_pretrained()
    passes = []
    model.model.gated_blocks["1"].register_forward_hook(lambda *args: passes.append(1))
    plain = _learn(model, processor)
    assert len(passes) == 1
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in _learn(model, processor).items():
        assert_close(gradient, plain[name], **NEAR)
    assert len(passes) == 3  # once more in the backward pass


@torch.no_grad()
def test_loaded_backbones_and_videos_are_taken_when_the_tower_has_no_class_token() -> None:
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
            patch_size=14,
        )
    )  # fmt: skip
    decoder = LlamaForCausalLM(LlamaConfig(vocab_size=20, **DECODERS["llama"]))
    model = FlamingoForConditionalGeneration.from_backbones(tower, decoder, every=2, max_num_frames=2, num_latents=3)
    assert model.config.vision_feature_select_strategy == "full"
    assert (model.config.end_of_chunk_token_id, model.config.image_token_id, model.config.text_config.vocab_size) == (
        20, 21, 22,
    )  # fmt: skip
    assert decoder.config.vocab_size == 20
    assert torch.equal(model.lm_head.weight[:20], decoder.lm_head.weight)
    videos = torch.rand(1, 1, 2, 3, 28, 28)
    swapped = model.get_media_states(videos.flip(2))
    assert swapped.shape == (1, 1, 3, 16) and not torch.allclose(swapped, model.get_media_states(videos))
    with pytest.raises(ValueError, match="max_num_frames"):
        model.get_media_states(torch.rand(1, 1, 3, 3, 28, 28))
    with pytest.raises(ValueError, match="'full'"):
        FlamingoConfig(**model.config.to_dict() | {"vision_feature_select_strategy": "default"})
    with pytest.raises(ValueError, match="cross_attention_layers"):
        FlamingoConfig(**model.config.to_dict() | {"cross_attention_layers": [4]})
    with pytest.raises(ValueError, match="image_token_id"):
        FlamingoConfig(**model.config.to_dict() | {"image_token_id": 22})


def test_error_names_both_numbers_when_images_do_not_match(llama: Any) -> None:
    model, processor = llama
    batch = processor(conversations=CONVERSATIONS[:1])
    with pytest.raises(ValueError, match="got 3 tokens and 2 images"):
        model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"][:, :2])
    with pytest.raises(ValueError, match="got 3 tokens and 2 images"):
        model.generate(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"][:, :2])
    with pytest.raises(ValueError, match="pixel_values"):
        model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"][0])


def _count(model: torch.nn.Module, *parts: str) -> int:
    return sum(
        p.numel() for name, p in model.named_parameters() if name.startswith(tuple(f"model.{x}." for x in parts))
    )


@pytest.mark.parametrize(
    ("width", "layers", "every", "block", "trainable"),
    [(2048, 24, 1, 36.7e6, 944e6), (2560, 32, 2, 56.1e6, 961e6), (4096, 32, 4, 139.5e6, 1.18e9)],
)
def test_parameters_are_as_many_as_published_when_sizes_are(
    width: int, layers: int, every: int, block: float, trainable: float
) -> None:
    text = {"model_type": "mpt", "vocab_size": 50280, "d_model": width, "n_heads": 16, "n_layers": layers}
    config = FlamingoConfig(text_config=text, cross_attention_layers=every_nth_layer(layers, every))
    with torch.device("meta"):
        model = FlamingoForConditionalGeneration(config)
    assert _count(model, "resampler") == pytest.approx(63.0e6, rel=2e-3)
    blocks = _count(model, "gated_blocks")
    assert blocks / len(config.cross_attention_layers) == pytest.approx(block, rel=2e-3)
    assert blocks + _count(model, "resampler") == pytest.approx(trainable, rel=3e-3)
