"""Tiny models of transformers' own classes for the verbalizers' doors: random, seeded, saved as checkpoints are."""

import json

import torch

NAMES = {0: "person", 1: "sky-other-merged", 2: "grass-merged"}
"""Classes of the segmenters."""


def build_spelling_tokenizer(folder, **settings):
    """A CLIP tokenizer that spells: one token per letter."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["!", "<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!", **settings)


def build_swin_config():
    from transformers import SwinConfig

    return SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def save_mask2former(folder):
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
    )

    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=build_swin_config(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, num_queries=24, encoder_feedforward_dim=16, dim_feedforward=16,
        id2label=NAMES, label2id={name: index for index, name in NAMES.items()},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def save_maskformer(folder):
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        MaskFormerImageProcessor,
    )

    torch.manual_seed(0)
    decoder = DetrConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=6,
    )  # fmt: skip
    config = MaskFormerConfig(
        backbone_config=build_swin_config(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32,
        id2label=NAMES, label2id={name: index for index, name in NAMES.items()},
    )  # fmt: skip
    MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)


def save_oneformer(folder):
    """OneFormer is told its task in words: its processor is an image processor and a tokenizer."""
    from transformers import (
        OneFormerConfig,
        OneFormerForUniversalSegmentation,
        OneFormerImageProcessor,
        OneFormerProcessor,
    )

    tokenizer = build_spelling_tokenizer(folder)
    classes = {str(index): {"name": name, "isthing": int(index == 0)} for index, name in NAMES.items()}
    (folder / "classes.json").write_text(json.dumps(classes))
    torch.manual_seed(0)
    config = OneFormerConfig(
        backbone_config=build_swin_config(), num_queries=8, hidden_dim=32, mask_dim=32, conv_dim=32, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, encoder_feedforward_dim=16, dim_feedforward=16, query_dec_layers=1,
        task_seq_len=77, text_encoder_width=16, text_encoder_num_layers=1, text_encoder_vocab_size=len(tokenizer),
        text_encoder_context_length=77, is_training=False,
        id2label=NAMES, label2id={name: index for index, name in NAMES.items()},
    )  # fmt: skip
    model = OneFormerForUniversalSegmentation(config)
    with torch.no_grad():  # as born, it takes every query for nothing
        model.model.transformer_module.decoder.class_embed.bias[-1] = -20
    model.save_pretrained(folder)
    image_processor = OneFormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 96}, repo_path=str(folder), class_info_file="classes.json",
        num_text=4,
    )  # fmt: skip
    OneFormerProcessor(image_processor, tokenizer).save_pretrained(folder)


def save_owlv2(folder):
    """An OWLv2 for 32 x 32 pixels that scores words differently."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    tokenizer = build_spelling_tokenizer(folder, model_max_length=16)
    torch.manual_seed(0)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    model = Owlv2ForObjectDetection(config)
    for parameter in model.parameters():  # away from zero, so that scores differ between words
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    image_processor = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    Owlv2Processor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def save_clip_text(folder, projection_dim):
    """A CLIP text model with its tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer = build_spelling_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=projection_dim, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder
