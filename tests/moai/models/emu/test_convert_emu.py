"""The released layouts, written by a builder, become folders that answer and draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from emu_builders import build_emu, build_visual_decoder, make_image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from typer.testing import CliRunner

from moai import Pipeline
from moai.checkpoints.convert import convert
from moai.cli import app
from moai.models.emu.modeling_emu import EmuForConditionalGeneration

#: Shapes do not tell these of a tiny model.
HEADS = {"num_vision_heads": 2, "num_text_heads": 4}


def _publish(model: EmuForConditionalGeneration) -> dict[str, torch.Tensor]:
    """What the released code saves of a model, by its names."""
    state, published = model.state_dict(), {}
    renamed = (
        ("model.vision_tower.embeddings.cls_token", "visual.cls_token"),
        ("model.vision_tower.embeddings.position_embeddings", "visual.pos_embed"),
        ("model.vision_tower.embeddings.patch_embeddings.projection", "visual.patch_embed.proj"),
        ("model.vision_tower.layers", "visual.blocks"),
        ("attention.o_proj", "attn.proj"), ("attention.q_proj.bias", "attn.q_bias"),
        ("attention.v_proj.bias", "attn.v_bias"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
        ("model.vision_norm", "ln_visual"), ("model.causal_former.stack", "cformer.cformer"),
        ("model.causal_former", "cformer"), ("model.language_model", "decoder.lm.model"),
        ("regression_head", "decoder.lm.stu_regress_head"), ("lm_head", "decoder.lm.lm_head"),
    )  # fmt: skip
    for name, tensor in state.items():
        if ".attention." in name and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            continue
        for ours, theirs in renamed:
            name = name.replace(ours, theirs)
        published[name] = tensor
    for layer in range(model.config.vision_config.num_hidden_layers):
        prefix = f"model.vision_tower.layers.{layer}.attention."
        joined = [state[f"{prefix}{part}_proj.weight"] for part in "qkv"]
        published[f"visual.blocks.{layer}.attn.qkv.weight"] = torch.cat(joined)
    width = model.config.vision_config.hidden_size
    published |= {"visual.norm.weight": torch.ones(width), "visual.head.weight": torch.zeros(3, width)}
    published["cformer.cformer.embed_tokens.weight"] = torch.zeros(32, 24)
    published["decoder.lm.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    return {name: tensor.clone() for name, tensor in published.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("release")
    model = build_emu(folder)
    return model, _publish(model), folder / "decoder"


def _same(model: EmuForConditionalGeneration, folder: Path) -> None:
    again = EmuForConditionalGeneration.from_pretrained(folder).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("layout", ["file", "deepspeed", "shards", "bin_shards"])
def test_converted_checkpoint_equals_its_source(built: Any, tmp_path: Path, layout: str) -> None:
    model, published, tokenizer = built
    source = tmp_path / "release"
    source.mkdir()
    names = sorted(published)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    if layout == "file":
        save_file(published, source / "Emu.safetensors")
        source = source / "Emu.safetensors"
    elif layout == "deepspeed":
        torch.save({"module": {f"module.{name}": t for name, t in published.items()}}, source / "pytorch_model.bin")
    else:
        suffix, stem = (".safetensors", "model") if layout == "shards" else (".bin", "pytorch_model")
        weight_map = {}
        for index, half in enumerate(halves):
            file = f"{stem}-{index + 1:05d}-of-00002{suffix}"
            part = {name: published[name] for name in half}
            save_file(part, source / file) if layout == "shards" else torch.save(part, source / file)
            weight_map |= dict.fromkeys(half, file)
        (source / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    report = convert(source, tmp_path / "out", text=tokenizer, **HEADS)
    assert report.kind == "emu" and report.num_source_tensors == len(published)
    left_out = " ".join(report.notes)
    assert "embed_tokens" in left_out and "visual.head.weight" in left_out and "inv_freq" in left_out
    assert not list((tmp_path / "out").glob("*.bin"))
    _same(model, tmp_path / "out")
    pipeline = Pipeline.from_pretrained(tmp_path / "out")
    assert pipeline.processor.default_prompt == "plain"
    assert isinstance(pipeline(make_image(0), "What?", max_new_tokens=3).answer, str)
    with pytest.raises(ValueError, match="visual decoder"):
        pipeline.draw("a red car")


def test_instructed_checkpoint_has_its_lora_merged(tmp_path: Path) -> None:
    model = build_emu(tmp_path, has_turns=True)
    published = _publish(model)
    torch.manual_seed(0)
    adapted = {}
    for name, tensor in published.items():
        name = name.replace("decoder.lm.", "decoder.lm.base_model.model.")
        adapted[name] = tensor
        if name.endswith(("q_proj.weight", "v_proj.weight")) and "decoder" in name:
            stem = name.removesuffix(".weight")
            adapted[f"{stem}.lora_A.default.weight"] = torch.randn(2, tensor.shape[1]) * 0.1
            adapted[f"{stem}.lora_B.default.weight"] = torch.randn(tensor.shape[0], 2) * 0.1
    source = tmp_path / "Emu-instruct.pt"
    torch.save(adapted, source)
    report = convert(source, tmp_path / "out", text=tmp_path / "decoder", **HEADS)
    assert any("LoRA of 4 matrices" in note for note in report.notes)
    state = load_file(tmp_path / "out" / "model.safetensors")
    stem = "decoder.lm.base_model.model.model.layers.1.self_attn.q_proj"
    added = adapted[f"{stem}.lora_B.default.weight"] @ adapted[f"{stem}.lora_A.default.weight"]
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    assert_close(state[name], model.state_dict()[name] + added)
    pipeline = Pipeline.from_pretrained(tmp_path / "out")
    assert pipeline.processor.default_prompt == "chat"
    text = pipeline.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": make_image(0)}, {"type": "text", "text": "Who?"}]}]
    )
    assert text.startswith("You will be presented with an image: [IMG]ImageContent[/IMG].")
    assert text.endswith(" [USER]: <image>Who? [ASSISTANT]:")


def test_released_folder_draws(built: Any, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the extra `generate` is not installed")
    model, published, tokenizer = built
    source = tmp_path / "pretrain"
    decoder = build_visual_decoder()
    decoder.save_pretrained(source)
    # As diffusers 0.15 wrote it: pickled, and with the autoencoder's attention under its old names.
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for part in ("unet", "vae"):
        file = source / part / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        if part == "vae":
            for new, former in old.items():
                tensors = {name.replace(new, former): tensor for name, tensor in tensors.items()}
            assert any(".query." in name for name in tensors)
        torch.save(tensors, file.with_suffix(".bin"))
        file.unlink()
    (source / "multimodal_encoder").mkdir()
    torch.save(published, source / "multimodal_encoder" / "pytorch_model.bin")
    for name in ("safety_checker", "feature_extractor"):
        (source / name).mkdir()
    # Through the command, whose shapes tell no heads: a config of the tiny model's is not needed for the message.
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "no"), "--text", str(tokenizer)])
    assert result.exit_code == 1 and "num_vision_heads" in result.output and not (tmp_path / "no").exists()
    report = convert(source, tmp_path / "out", text=tokenizer, **HEADS)
    assert any("safety_checker" in note for note in report.notes)
    assert "visual_decoder/unet/diffusion_pytorch_model.safetensors" in report.files
    assert not list((tmp_path / "out").rglob("*.bin"))
    pipeline = Pipeline.from_pretrained(tmp_path / "out")
    options = {"steps": 2, "seed": 3}
    (image,) = pipeline.draw("a red car", options=options).parts
    batch = pipeline.processor.encode_drawing(["a red car"])
    embeds = model.generate_image(**batch)
    generator = torch.Generator().manual_seed(3)
    (expected,) = decoder.draw(embeds[:1], embeds[1:], num_inference_steps=2, generator=generator)
    assert image.tobytes() == expected.tobytes()


def test_conversion_names_what_is_wrong(built: Any, tmp_path: Path) -> None:
    model, published, tokenizer = built
    name = "cformer.cformer.block.1.layer.2.DenseReluDense.wo.weight"
    for change, message in (
        ({"visual.blocks.0.attn.extra": torch.zeros(1)}, "visual.blocks.0.attn.extra"),
        ({name: None}, "causal_former.stack.block.1.layer.2.DenseReluDense.wo.weight"),
        ({name: torch.zeros(3, 3)}, r"\(3, 3\) for"),
    ):
        changed = {key: tensor for key, tensor in (published | change).items() if tensor is not None}
        file = tmp_path / "Emu.safetensors"
        save_file(changed, file)
        with pytest.raises(ValueError, match=message):
            convert(file, tmp_path / "out", text=tokenizer, **HEADS)
        assert not (tmp_path / "out").exists()
    save_file(published, tmp_path / "Emu.safetensors")
    report = convert(tmp_path / "Emu.safetensors", tmp_path / "out", image_start_token_id=259, image_end_token_id=260,
                     image_token_id=261, pad_token_id=0, **HEADS)  # fmt: skip
    assert any("no tokenizer" in note for note in report.notes)
    torch.save({"a": Path("x")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="weights_only"):
        convert(tmp_path / "evil.pt", tmp_path / "no", kind="emu", text=tokenizer)
