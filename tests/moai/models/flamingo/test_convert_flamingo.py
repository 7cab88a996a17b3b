"""OpenFlamingo's published layout, written by a builder, becomes a folder that answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from flamingo_builders import build_flamingo, make_image
from transformers import AutoModelForCausalLM

from moai import Pipeline
from moai.checkpoints.convert import convert
from moai.models.flamingo.modeling_flamingo import FlamingoForConditionalGeneration

#: The decoder's names in OpenFlamingo, and those that its files leave out.
_LAYERS = {"llama": "model.layers", "gpt_neox": "gpt_neox.layers", "mpt": "transformer.blocks"}
_PREFIX = {"llama": "model.", "gpt_neox": "gpt_neox.", "mpt": "transformer."}


def _publish(model: FlamingoForConditionalGeneration, family: str) -> dict[str, torch.Tensor]:
    """What the released code saves of a model, by its names."""
    published = {}
    embedding = next(name for name, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    for name, tensor in model.state_dict().items():
        if name.startswith("model.resampler."):
            name = re.sub(r"(layers\.\d+)\.attention\.", r"\1.0.", name.removeprefix("model.resampler."))
            published["perceiver." + re.sub(r"(layers\.\d+)\.feed_forward\.", r"\1.1.", name)] = tensor
        elif name.startswith("model.gated_blocks."):
            layer, inner = name.removeprefix("model.gated_blocks.").split(".", 1)
            inner = inner.replace("attention_gate", "attn_gate").replace("feed_forward_gate", "ff_gate")
            inner = inner.replace("attention.", "attn.").replace("feed_forward.", "ff.")
            published[f"lang_encoder.{_LAYERS[family]}.{layer}.gated_cross_attn_layer.{inner}"] = tensor
        elif name == embedding:
            published[f"lang_encoder.{_PREFIX[family]}{name.removeprefix('model.language_model.')}"] = tensor
        elif name == "lm_head.weight" and family == "gpt_neox":
            published["lang_encoder.embed_out.weight"] = tensor
    if family == "gpt_neox":
        published[f"lang_encoder.{_LAYERS[family]}.0.decoder_layer.attention.masked_bias"] = torch.tensor(-1e9)
    return published


@pytest.fixture
def source(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    family = getattr(request, "param", "mpt")
    sizes = {"resampler_num_heads": 8, "cross_attention_num_heads": 8}
    model = build_flamingo(tmp_path, family, **sizes)
    model.resize_token_embeddings(model.config.end_of_chunk_token_id + 2)  # as many as the tokenizer has
    with torch.no_grad():
        for row in (model.config.end_of_chunk_token_id, model.config.image_token_id):
            model.get_input_embeddings().weight[row].normal_()
    return model, _publish(model, family), tmp_path


@pytest.mark.parametrize("source", list(_LAYERS), indirect=True)
def test_converted_checkpoint_equals_its_source_when_parts_are_joined(source: Any) -> None:
    model, published, folder = source
    (folder / "release").mkdir()
    torch.save(published, folder / "release" / "checkpoint.pt")
    report = convert(
        folder / "release", folder / "out", text=folder / "decoder", vision=str(folder / "tower"), dtype="float32"
    )
    assert report.kind == "open-flamingo" and report.num_source_tensors == len(published)
    converted = FlamingoForConditionalGeneration.from_pretrained(folder / "out")
    expected = model.state_dict()
    is_untrained_head = model.config.text_config.model_type == "llama"
    for name, tensor in converted.state_dict().items():
        if name == "lm_head.weight" and is_untrained_head:  # not published: the decoder's, new rows are their mean
            assert torch.equal(tensor[:-2], expected[name][:-2])
        else:
            assert torch.equal(tensor, expected[name]), name
    assert bool(report.notes) == is_untrained_head
    assert converted.config.cross_attention_layers == model.config.cross_attention_layers
    answer = Pipeline.from_pretrained(folder / "out")(make_image(0), "What is this?", max_new_tokens=4)
    assert answer.error is None
    assert (folder / "out" / "README.md").read_text().count("OpenFlamingo") >= 1


def test_whole_state_dict_of_training_converts_alike_when_it_holds_decoder_and_tower(source: Any) -> None:
    model, published, folder = source
    decoder = AutoModelForCausalLM.from_pretrained(folder / "decoder")
    with torch.no_grad():
        decoder.transformer.norm_f.weight.mul_(2)  # what the checkpoint holds wins
    inner = r"\1.\2.decoder_layer."
    whole = {
        "lang_encoder." + re.sub(r"(transformer\.blocks)\.(\d+)\.", inner, name): tensor
        for name, tensor in decoder.state_dict().items()
        if name not in ("transformer.wte.weight", "lm_head.weight")
    }
    whole |= {f"lang_encoder.gated_cross_attn_layers.1.{i}": torch.zeros(1) for i in ("attn_gate", "ff_gate")}
    state = {f"module.{name}": tensor for name, tensor in (whole | published).items()}
    torch.save({"epoch": 1, "model_state_dict": state}, folder / "checkpoint_1.pt")
    convert(folder / "checkpoint_1.pt", folder / "out", text=folder / "decoder", vision=folder / "tower")
    converted = FlamingoForConditionalGeneration.from_pretrained(folder / "out")
    assert torch.equal(converted.model.language_model.norm_f.weight, model.model.language_model.norm_f.weight * 2)


def test_conversion_names_what_is_wrong_when_parts_do_not_fit(source: Any) -> None:
    _, published, folder = source
    file, out = folder / "checkpoint.pt", folder / "out"
    parts = {"text": folder / "decoder", "vision": folder / "tower"}

    def fails(tensors: dict[str, torch.Tensor], match: str, **given: Any) -> None:
        torch.save(tensors, file)
        with pytest.raises(ValueError, match=match):
            convert(file, out, **(given or parts))
        assert not out.exists()

    fails(published, "--text", vision=folder / "tower")
    fails(published, "--vision", text=folder / "decoder")
    fails(published | {"lang_encoder.extra": torch.zeros(1)}, "lang_encoder.extra")
    lacking = dict(published)
    del lacking["perceiver.norm.bias"]
    fails(lacking, "no source key fills: model.resampler.norm.bias")
    fails(published | {"perceiver.norm.bias": torch.zeros(3)}, "of the wrong shape: model.resampler.norm.bias")
    lacking = {name: tensor for name, tensor in published.items() if not name.endswith("wte.weight")}
    fails(lacking, "word embeddings")
    fails(published | {"lang_encoder.transformer.wte.weight": torch.zeros(3, 32)}, "Give the decoder")
    (folder / "strange").mkdir()
    (folder / "strange" / "config.json").write_text('{"model_type": "mosaic_gpt", "auto_map": {"AutoConfig": "a.B"}}')
    fails(published, "decoder that transformers has", **parts | {"text": folder / "strange"})
    with pytest.raises(ValueError, match="got text. Leave them out"):
        convert(folder / "decoder", out, kind="official-moai", text="x")
