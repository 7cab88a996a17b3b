"""Equality with the released OpenFlamingo code's outputs, every tensor of them; sizes are read from the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sibling_outputs import load_sibling, with_prefix
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from moai.models.cache_names import as_keyword, read_cache
from moai.models.flamingo.configuration_flamingo import FlamingoConfig
from moai.models.flamingo.convert import (
    _GATED,
    _RESAMPLER,
    _rename,
    convert_open_clip_tower,
    convert_open_flamingo,
    looks_like_open_flamingo,
)
from moai.models.flamingo.gated_cross_attention import (
    GatedCrossAttentionBlock,
    MaskedCrossAttention,
    Media,
    count_media,
)
from moai.models.flamingo.injection import find_layers
from moai.models.flamingo.labels import label_interleaved, label_pairs
from moai.models.flamingo.modeling_flamingo import FlamingoForConditionalGeneration
from moai.models.flamingo.resampler import PerceiverResampler
from moai.models.ranking import rank_continuations

NEAR = {"atol": 1e-5, "rtol": 0}


def _build_config(width: int = 32, media_width: int = 32, **fields: Any) -> FlamingoConfig:
    text = {"model_type": "llama", "vocab_size": 8, "hidden_size": width, "num_attention_heads": 1}
    vision = {"model_type": "clip_vision_model", "hidden_size": media_width, "num_attention_heads": 1}
    return FlamingoConfig(vision_config=vision, text_config=text, image_token_id=0, end_of_chunk_token_id=1, **fields)


@pytest.mark.parametrize("name", ["flamingo_resampler_a", "flamingo_resampler_frames_media_embs"])
def test_resampler_equals_release_when_weights_are_its(golden_dir: Path, name: str) -> None:
    account, tensors = load_sibling(golden_dir, name)
    args = account["args"]
    config = _build_config(
        media_width=args["dim"],
        resampler_depth=args["depth"],
        resampler_num_heads=args["heads"],
        resampler_head_dim=args["dim_head"],
        resampler_mult=args.get("ff_mult", 4),
        num_latents=args["num_latents"],
        max_num_media=args.get("max_num_media"),
        max_num_frames=args.get("max_num_frames"),
    )
    resampler = PerceiverResampler(config)
    weights = with_prefix(tensors, "sd.")
    resampler.load_state_dict({_rename(key, _RESAMPLER): value for key, value in weights.items()})
    assert_close(resampler(tensors["x"]), tensors["out"], **NEAR)


def _look(tensors: dict[str, torch.Tensor], only_immediate: bool) -> tuple[Media, Media]:
    """The images as a prompt's tokens see them, and as tokens decoded behind it do."""
    times = tensors["media_locations"].cumsum(dim=1)
    last = times[:, -1:].expand(-1, tensors["x_cached"].shape[1])
    return (
        Media.from_times(tensors["media"], times, only_immediate),
        Media.from_times(tensors["media"], last, only_immediate),
    )


@pytest.mark.parametrize("form", ["immediate", "all_previous"])
def test_cross_attention_equals_release_when_masked_cached_and_free(golden_dir: Path, form: str) -> None:
    account, tensors = load_sibling(golden_dir, "flamingo_masked_cross_attention")
    args = account["args"]
    attention = MaskedCrossAttention(args["dim"], args["dim_visual"], args["heads"], args["dim_head"])
    attention.load_state_dict(with_prefix(tensors, "sd."))
    prompt, decoded = _look(tensors, form == "immediate")
    assert_close(attention(tensors["x"], prompt), tensors[f"{form}.out"], **NEAR)
    assert_close(attention(tensors["x_cached"], decoded), tensors[f"{form}.out_cached"], **NEAR)
    free = attention(tensors["x"], Media(tensors["media"]))
    assert_close(free, tensors[f"{form}.out_no_locations"], **NEAR)


def test_gated_block_equals_release_when_gates_are_open_and_is_identity_when_new(golden_dir: Path) -> None:
    account, tensors = load_sibling(golden_dir, "flamingo_gated_block")
    args = account["args"]
    config = _build_config(
        args["dim"],
        args["dim_visual"],
        cross_attention_num_heads=args["heads"],
        cross_attention_head_dim=args["dim_head"],
        cross_attention_mult=args["ff_mult"],
    )
    block = GatedCrossAttentionBlock(config)
    prompt, decoded = _look(tensors, True)
    assert torch.equal(block(tensors["x"], prompt), tensors["x"])
    weights = with_prefix(tensors, "sd.")
    block.load_state_dict({_rename(key, _GATED): value for key, value in weights.items()})
    assert_close(block(tensors["x"], prompt), tensors["out"], **NEAR)
    assert_close(block(tensors["x_cached"], decoded), tensors["out_cached"], **NEAR)


def test_vision_tower_equals_open_clip_before_its_last_norm_when_converted(golden_dir: Path) -> None:
    account, tensors = load_sibling(golden_dir, "openflamingo_vision")
    args = account["args"]
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=args["width"],
            intermediate_size=int(args["width"] * args["mlp_ratio"]),
            num_hidden_layers=args["layers"],
            num_attention_heads=args["heads"],
            image_size=args["image_size"],
            patch_size=args["patch_size"],
            layer_norm_eps=args["ln_eps"],
            hidden_act="quick_gelu",
        )
    )
    weights = with_prefix(tensors, "sd.visual.")
    tower.load_state_dict(convert_open_clip_tower(weights))
    outputs = tower.eval()(tensors["image"], output_hidden_states=True)
    assert_close(outputs.last_hidden_state[:, 1:], tensors["tokens"], **NEAR)
    assert_close(tower.post_layernorm(outputs.last_hidden_state[:, 1:]), tensors["tokens_ln_post"], **NEAR)
    assert_close(outputs.pooler_output @ weights["proj"], tensors["pooled_projected"], **NEAR)
    for index in range(args["layers"]):
        assert_close(outputs.hidden_states[index + 1], tensors[f"block.{index}"], **NEAR)
    # What the resampler of a Flamingo reads is the former of the two.
    config = _build_config(media_width=args["width"]).to_dict() | {"vision_config": tower.config.to_dict()}
    model = FlamingoForConditionalGeneration(FlamingoConfig(**config)).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    read = []
    model.model.resampler.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    model.get_media_states(tensors["image"][:, None])
    assert_close(read[0][:, 0, 0], tensors["tokens"], **NEAR)


# ---------------------------------------------------------------------- the whole model


@dataclass
class Full:
    """The reference model, converted, and what it was run with."""

    account: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    model: FlamingoForConditionalGeneration

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """Images through the reference's stand-in for a tower, and our resampler."""
        weight = self.tensors["sd.vision_encoder.conv.weight"]
        tokens = torch.nn.functional.conv2d(images.flatten(0, 2), weight, stride=weight.shape[-1])
        tokens = tokens.flatten(2).transpose(1, 2)  # (B * T * F, P, V)
        return self.model.model.resampler(tokens.unflatten(0, images.shape[:3]))

    @property
    def prompt(self) -> dict[str, torch.Tensor]:
        return {name: self.tensors[name] for name in ("input_ids", "attention_mask")} | {
            "media_states": self.look(self.tensors["vision_x"])
        }


@pytest.fixture(scope="module")
def full(golden_dir: Path) -> Full:
    account, tensors = load_sibling(golden_dir, "flamingo_full")
    weights = with_prefix(tensors, "sd.")
    assert looks_like_open_flamingo(weights)
    width = weights["perceiver.latents"].shape[1]
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=1, image_size=16,
            patch_size=8,
        )
    )  # fmt: skip
    decoder = LlamaForCausalLM(LlamaConfig(**account["llama"]))
    checkpoint = {name: tensor for name, tensor in weights.items() if not name.startswith("vision_encoder.")}
    ids = account["ids"]
    converted = convert_open_flamingo(
        checkpoint, decoder, tower, image_token_id=ids["media"], end_of_chunk_token_id=ids["endofchunk"]
    )
    model = FlamingoForConditionalGeneration.from_pretrained(
        None, config=converted.config, state_dict=converted.tensors
    )
    assert converted.config.cross_attention_layers == account["gated"]["layers_with_block"]
    return Full(account, tensors, model.eval())


def test_resampled_images_equal_release_when_full(full: Full) -> None:
    assert_close(full.look(full.tensors["vision_x"]), full.tensors["vis_x"], **NEAR)


@torch.no_grad()
def test_logits_and_layers_equal_release_when_rows_have_0_to_3_images(full: Full) -> None:
    layers: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, given, output: layers.append(output))
        for layer in find_layers(full.model.model.language_model)
    ]
    outputs = full.model(**full.prompt, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    assert_close(outputs.logits, full.tensors["logits"], **NEAR)
    for index, layer in enumerate(layers):
        assert_close(layer, full.tensors[f"layer{index}_out"], **NEAR)
    for index, layer in enumerate(layers[:-1]):
        assert torch.equal(outputs.hidden_states[index + 1], layer)


@torch.no_grad()
def test_losses_and_labels_equal_release_when_documents_and_pairs_are_labelled(full: Full) -> None:
    ids, given = full.account["ids"], full.tensors["input_ids"]
    documents = label_interleaved(given, ids["media"], ids["endofchunk"], ids["pad"])
    pairs = label_pairs(given, ids["media"], ids["pad"])
    assert torch.equal(documents, full.tensors["labels_mmc4"])
    assert torch.equal(pairs, full.tensors["labels_laion"])
    for labels, name in ((documents, "loss_mmc4"), (pairs, "loss_laion_style")):
        assert_close(full.model(**full.prompt, labels=labels).loss, full.tensors[name], **NEAR)


@pytest.mark.parametrize(("name", "num_beams"), [("gen.greedy", 1), ("gen.beam3", 3)])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_equals_release_when_greedy_and_with_beams(
    full: Full, name: str, num_beams: int, use_cache: bool
) -> None:
    expected, ids = full.tensors[name], full.account["ids"]
    prompt = full.tensors["gen.input_ids"]
    sequences = full.model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        media_states=full.look(full.tensors["gen.vision_x"]),
        max_new_tokens=expected.shape[1] - prompt.shape[1],
        num_beams=num_beams,
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=ids["endofchunk"],
        pad_token_id=ids["pad"],
    )
    assert torch.equal(sequences, expected)


@torch.no_grad()
def test_ranking_equals_release_when_prefix_is_cached(full: Full) -> None:
    prompt, following = full.tensors["gen.input_ids"], full.tensors["rank.cont_ids"]
    media = full.look(full.tensors["gen.vision_x"])
    first = full.model(input_ids=prompt, media_states=media, use_cache=True)
    assert_close(first.logits, full.tensors["rank.prefix_logits"], **NEAR)
    times = first.media_times[:, -1:].expand(-1, following.shape[1])
    second = full.model(
        input_ids=following, media_states=media, media_times=times, **as_keyword(read_cache(first)), use_cache=True
    )
    assert_close(second.logits, full.tensors["rank.cont_logits"], **NEAR)
    expected = []
    for row, tokens in enumerate(following):
        logits = torch.cat([full.tensors["rank.prefix_logits"][row, -1:], full.tensors["rank.cont_logits"][row, :-1]])
        expected.append(logits.log_softmax(-1).gather(-1, tokens[:, None]).sum())
    inputs = {"input_ids": prompt, "media_states": media}
    scores = rank_continuations(full.model, inputs, [tokens.tolist() for tokens in following])
    assert_close(scores.diagonal(), torch.stack(expected), **NEAR)
    assert torch.equal(count_media(prompt, full.account["ids"]["media"]), first.media_times)
