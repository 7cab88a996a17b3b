"""TCL as a model of transformers: Auto classes, saving, batches, processor, conversion of the published layout."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sibling_outputs import load_sibling, with_prefix
from tcl_builders import SIDE, build_tcl_config, build_tcl_model, build_tcl_processor
from transformers import AutoConfig, AutoModel, AutoProcessor

from moai.checkpoints.convert import convert
from moai.models.backbones import load_vision_backbone
from moai.models.tcl.configuration_tcl import TCLConfig
from moai.models.tcl.modeling_tcl import TCLModel, patch_pooling
from moai.models.tcl.processing_tcl import TCLProcessor, clean_caption

FAMILIES = ("vit", "clip_vision_model")


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_model_is_the_same_when_saved_and_loaded_by_auto_classes(tmp_path, images, family):
    model, processor = build_tcl_model(family), build_tcl_processor(tmp_path / "words")
    model.save_pretrained(tmp_path / "tcl")
    processor.save_pretrained(tmp_path / "tcl")
    loaded, again = AutoModel.from_pretrained(tmp_path / "tcl").eval(), AutoProcessor.from_pretrained(tmp_path / "tcl")
    assert type(loaded) is TCLModel and type(again) is TCLProcessor
    assert type(AutoConfig.from_pretrained(tmp_path / "tcl")) is TCLConfig
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    texts = ["A red dog on the grass.", "a cat"]
    batch, same = processor(images, texts), again(images, texts)
    assert all(torch.equal(batch[name], same[name]) for name in batch)
    got, expected = loaded(**same), model(**batch)
    assert torch.equal(got.logits_per_image, expected.logits_per_image)
    assert expected.logits_per_image.shape == (2, 2)
    torch.testing.assert_close(expected.image_embeds.norm(dim=1), torch.ones(2))


def test_outputs_are_those_of_single_texts_when_a_batch_is_padded(tmp_path, images):
    model, processor = build_tcl_model(), build_tcl_processor(tmp_path)
    texts = ["a cat", "a red dog on the grass and a blue car in the sky"]
    batch = processor(images, texts)
    assert batch["attention_mask"].sum(1).tolist() == [4, 14]
    text = model.text_model
    states = text.encode(batch["input_ids"], batch["attention_mask"])
    pixels = model.encode_images(batch["pixel_values"])
    together = model.match(states, batch["attention_mask"], pixels)
    for row, (image, words) in enumerate(zip(images, texts, strict=True)):
        one = processor([image], [words])
        alone = model.match(
            text.encode(one["input_ids"], one["attention_mask"]),
            one["attention_mask"],
            model.encode_images(one["pixel_values"]),
        )
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(**one).text_embeds[0], model(**batch).text_embeds[row], atol=1e-5, rtol=1e-5)


def test_text_is_read_both_ways_in_fusion_layers(tmp_path, images):
    model, processor = build_tcl_model(), build_tcl_processor(tmp_path)
    pixels = model.encode_images(processor(images[:1])["pixel_values"])

    def first(words):
        batch = processor(text=[words])
        states = model.text_model.encode(batch["input_ids"], batch["attention_mask"])
        kept = states.detach().clone()
        kept[:, :-2] = 0.5  # the lower layers' reading of later words is cut out
        return model.text_model.fuse(kept, batch["attention_mask"], pixels)[0, 0]

    assert not torch.allclose(first("a red dog"), first("a red cat"))


def test_tower_is_taken_as_a_backbone_when_saved(tmp_path):
    for family in FAMILIES:
        model = build_tcl_model(family)
        model.vision_model.save_pretrained(tmp_path / family)
        backbone = load_vision_backbone(tmp_path / family)
        expected = model.vision_model.state_dict()
        assert all(torch.equal(value, backbone.tensors[name]) for name, value in expected.items())
        assert {name.split(".")[0] for name in backbone.tensors.keys() - expected.keys()} <= {"pooler"}


def test_config_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="num_text_layers"):
        build_tcl_config(num_text_layers=4)
    with pytest.raises(ValueError, match="SigLIP"):
        build_tcl_config("siglip_vision_model")


def test_published_size_has_its_parameters():
    with torch.device("meta"):
        model = TCLModel(TCLConfig())
    assert model.vision_model.embeddings.position_embeddings.shape == (1, 257, 768)
    tower = sum(p.numel() for p in model.vision_model.parameters())
    # ViT-B/16 at 256 px: 12 layers of 7,087,872, patches 590,592, class token and positions 198,144, norm 1,536
    assert tower == 12 * 7_087_872 + 590_592 + 198_144 + 1_536
    assert len(model.text_model.layers) == 12 and model.config.num_text_layers == 6


def test_processor_cleans_and_cuts_captions(tmp_path):
    processor = build_tcl_processor(tmp_path)
    assert clean_caption("A dog, on/the [MASK] 'red-grass'!", 30) == "a dog on the [mask] red grass"
    assert clean_caption("a b c d", 2) == "a b"
    long = processor.encode_caption("dog " * 40)
    assert (
        len(long) == 14 and long[0] == processor.tokenizer.cls_token_id and long[-1] == processor.tokenizer.sep_token_id
    )
    assert processor.tokenizer.mask_token_id not in processor.encode_caption("a [MASK] dog")
    assert processor(images=[Image.new("RGB", (9, 9))])["pixel_values"].shape == (1, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match="neither"):
        processor()


@pytest.mark.parametrize("side", [4, 5, 6, 9, 16])
def test_pooling_takes_any_grid(side):
    size = int(side**0.5)
    patches = torch.randn(2, side * side, 3)
    pooled = patch_pooling(patches)
    assert pooled.shape == (2, (side // size) ** 2, 3)
    grid = patches.view(2, side, side, 3)
    torch.testing.assert_close(pooled[:, 0], grid[:, :size, :size].mean(dim=(1, 2)))


@pytest.mark.parametrize("form", ["file.pth", "model.safetensors"])
def test_published_layout_converts(golden_dir, tmp_path, form):
    account, tensors = load_sibling(golden_dir, "tcl_full")
    state = {name: value.clone() for name, value in with_prefix(tensors, "sd.").items()}
    state["text_encoder.bert.embeddings.position_ids"] = torch.arange(12)[None]
    source = tmp_path / "source"
    build_tcl_processor(source).tokenizer.save_pretrained(source)
    file = source / form
    if form.endswith(".pth"):
        torch.save({"model": state, "optimizer": {}, "epoch": 29}, file)
    else:
        save_file(state, file)
    heads = {"num_vision_heads": 4, "num_text_heads": 4}
    report = convert(file if form.endswith(".pth") else source, tmp_path / "out", **heads)
    assert report.kind == "tcl" and report.num_source_tensors == len(state)
    assert "left out" in report.notes[0]
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    step = with_prefix(tensors, "step1.")
    got = model(tensors["image"], tensors["input_ids"], tensors["attention_mask"])
    torch.testing.assert_close(got.image_embeds.detach(), step["image_feat"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.text_embeds.detach(), step["text_feat"], atol=1e-5, rtol=1e-5)
    assert type(AutoProcessor.from_pretrained(tmp_path / "out")) is TCLProcessor


def test_unknown_key_is_named_when_converted(golden_dir, tmp_path):
    _, tensors = load_sibling(golden_dir, "tcl_full")
    state = {name: value.clone() for name, value in with_prefix(tensors, "sd.").items()}
    state["visual_encoder.blocks.0.gate"] = torch.zeros(1)
    del state["text_proj.bias"]
    torch.save({"model": state}, tmp_path / "tcl.pth")
    with pytest.raises(ValueError, match="unknown.*blocks.0.gate.*no source key fills: text_projection.bias"):
        convert(tmp_path / "tcl.pth", tmp_path / "out", num_vision_heads=4, num_text_heads=4)
