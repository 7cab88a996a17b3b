"""Equality with the released Emu's outputs, every tensor of them; sizes are read from the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sibling_outputs import load_sibling, with_prefix
from torch.testing import assert_close

from moai.models.emu.causal_former import CausalFormer
from moai.models.emu.configuration_emu import EmuConfig
from moai.models.emu.convert import build_config, convert_emu_tensors, looks_like_emu, plan_conversion
from moai.models.emu.losses import find_regression_pairs, label_text
from moai.models.emu.modeling_emu import EmuForConditionalGeneration

NEAR = {"atol": 1e-5, "rtol": 0}


@torch.no_grad()
def test_causal_former_equals_release_and_looks_back_only(golden_dir: Path) -> None:
    account, tensors = load_sibling(golden_dir, "emu_causal_former")
    weights = with_prefix(tensors, "sd.")
    args, sizes = account["args"], account["t5"]
    config = EmuConfig(
        vision_config={"model_type": "beit", "hidden_size": args["vision_width"], "num_attention_heads": 1},
        causal_former_config={"model_type": "t5"} | sizes,
        text_config={"model_type": "llama", "vocab_size": 8, "hidden_size": args["output_dim"]},
        num_image_tokens=args["n_causal"], image_start_token_id=0, image_end_token_id=1, image_token_id=2,
    )  # fmt: skip
    former = CausalFormer(config).eval()
    renamed = {key.replace("cformer.", "stack.", 1): value for key, value in weights.items()}
    unused = [key for key in renamed if key.endswith("embed_tokens.weight")]
    former.load_state_dict({key: value for key, value in renamed.items() if key not in unused})
    before = []
    former.projection.register_forward_pre_hook(lambda module, given: before.append(given[0]))
    out = former(tensors["x"])
    assert_close(out, tensors["out"], **NEAR)
    assert_close(before[0], tensors["before_projection"], **NEAR)
    # The recorded probe: who changes when a learned token is shifted.
    probe = account["max_abs_change_per_output_position_when_causal_token_4_is_shifted"]
    former.causal_tokens.data[0, 4] += 1
    changed = (former(tensors["x"]) - out).abs().amax(dim=(0, 2))
    assert [bool(value) for value in changed] == [bool(value) for value in probe]


@dataclass
class Full:
    """The reference model, converted, and what it was run with."""

    account: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    model: EmuForConditionalGeneration

    @property
    def counts(self) -> list[int]:
        """Images of each row."""
        return self.model.model.count_images(self.tensors["input_ids"]).tolist()

    @property
    def pixel_values(self) -> torch.Tensor:
        """``(B, T, 3, H, W)``, the images as rows have them."""
        rows = self.tensors["image"].split(self.counts)
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        return {name: self.tensors[name] for name in ("input_ids", "attention_mask")} | {
            "pixel_values": self.pixel_values
        }


def _load(golden_dir: Path) -> Full:
    account, tensors = load_sibling(golden_dir, "emu_full")
    weights, ids = with_prefix(tensors, "sd."), account["ids"]
    assert looks_like_emu(weights)
    config = build_config(
        {name: tuple(tensor.shape) for name, tensor in weights.items()},
        num_vision_heads=account["vision"]["width"] // account["vision"]["head_width"],
        relative_attention_max_distance=account["t5"]["relative_attention_max_distance"],
        image_start_token_id=ids["IMG"], image_end_token_id=ids["end_IMG"], image_token_id=ids["image"],
        pad_token_id=ids["pad"],
    )  # fmt: skip
    plan = plan_conversion(weights)
    model = EmuForConditionalGeneration(config).eval()
    model.load_state_dict(dict(convert_emu_tensors(weights.__getitem__, plan)))  # strict: all are there
    used = {*plan.targets, *plan.unused}
    assert used == set(weights)
    return Full(account, tensors, model)


@pytest.fixture(scope="module")
def full(golden_dir: Path) -> Full:
    return _load(golden_dir)


def test_sizes_come_from_shapes(full: Full) -> None:
    config, account = full.model.config, full.account
    assert config.num_image_tokens == account["n_causal"]
    assert config.vision_config.image_size == account["vision"]["image_size"]
    assert config.vision_config.intermediate_size == account["vision"]["mlp_hidden"]
    for name, value in account["llama"].items():
        assert getattr(config.text_config, name) == value
    for name in ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets"):
        assert getattr(config.causal_former_config, name) == account["t5"][name]


@torch.no_grad()
def test_images_equal_release(full: Full) -> None:
    inner, tensors = full.model.model, full.tensors
    features = inner.vision_tower(pixel_values=tensors["image"]).last_hidden_state
    assert_close(features, tensors["visual_features"], **NEAR)
    assert_close(inner.vision_norm(features), tensors["ln_visual"], **NEAR)
    assert_close(inner.encode_images(tensors["image"]), tensors["causal_embeds"], **NEAR)


@torch.no_grad()
def test_sequence_and_losses_equal_release_in_both_forms(full: Full) -> None:
    model, tensors = full.model, full.tensors
    labels = label_text(tensors["input_ids"], model.config, full.account["ids"]["pad"])
    assert torch.equal(labels, tensors["labels"])
    losses = {}
    for form, key in (("images", "regress_mse_without_end_token"), ("released", "regress_mse")):
        model.config.regression_targets = form
        outputs = model(**full.batch, labels=labels)
        losses[form] = outputs.loss
        is_token = tensors["attention_mask"].bool()
        assert_close(outputs.logits[is_token], tensors["logits"][is_token], **NEAR)
        assert_close(outputs.inputs_embeds, tensors["inputs_embeds"], **NEAR)
        assert_close(outputs.text_loss, tensors["llm_loss"], **NEAR)
        assert_close(outputs.regression_loss, tensors[key], **NEAR)
        assert_close(outputs.loss, tensors["llm_loss"] + tensors[key], **NEAR)
    # The released pairs one by one.
    sources, targets = find_regression_pairs(tensors["input_ids"], model.config)
    assert torch.equal(sources, tensors["regress_mask"])
    hidden = model.model(**full.batch).last_hidden_state
    assert_close(model.regression_head(hidden[sources]), tensors["regress_pred"], **NEAR)
    assert_close(outputs.inputs_embeds[targets], tensors["regress_labels"], **NEAR)
    model.config.regression_targets = "images"
    assert losses["images"] != losses["released"]


@torch.no_grad()
def test_all_logits_equal_release_where_padding_is_on_the_right(full: Full) -> None:
    # Also behind the padding, whose tokens nobody reads.
    assert_close(full.model(**full.batch).logits, full.tensors["logits"], **NEAR)


def test_generated_text_equals_release(full: Full) -> None:
    ids, ends = full.tensors["gen.input_ids"], full.account["ids"]
    new = full.tensors["gen.sequences_new_tokens"][0, 1:]  # the released code puts <s> in front of what is new
    for use_cache in (True, False):  # with the released defaults
        out = full.model.generate(
            input_ids=ids, pixel_values=full.tensors["image"][None, :1], eos_token_id=ends["eos"], use_cache=use_cache,
            pad_token_id=ends["pad"], max_new_tokens=50, num_beams=5, do_sample=False, length_penalty=0.0,
        )  # fmt: skip
        assert torch.equal(out[0, ids.shape[1] :], new)


@pytest.mark.parametrize("use_cache", [True, False])
def test_drawn_embeddings_equal_release_from_text_and_from_two_images(full: Full, use_cache: bool) -> None:
    ids, tensors = full.account["ids"], full.tensors
    span = [ids["IMG"], *[ids["image"]] * full.account["n_causal"], ids["end_IMG"]]

    def draw(row: list[int], images: torch.Tensor | None = None) -> torch.Tensor:
        prompt = torch.tensor([[ids["bos"], *row, ids["IMG"]]])
        return full.model.generate_image(prompt, pixel_values=images, use_cache=use_cache)

    # The prompt of the text is not stored: 9, 10, 11 is the only one of three words that gives the stored embeddings.
    assert_close(draw([9, 10, 11]), tensors["t2i.embeds"][:1], **NEAR)
    assert_close(draw([]), tensors["t2i.embeds"][1:], **NEAR)
    assert_close(draw(span + span, tensors["image"][None, :2]), tensors["blend.embeds"], **NEAR)
    padded = torch.tensor([[ids["bos"], 9, 10, 11, ids["IMG"]], [ids["pad"]] * 3 + [ids["bos"], ids["IMG"]]])
    both = full.model.generate_image(padded, (padded != ids["pad"]).long(), use_cache=use_cache)
    assert_close(both, tensors["t2i.embeds"], **NEAR)
