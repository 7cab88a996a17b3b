"""Tiny TCL models with a tokenizer and a processor of their own."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertTokenizer

from moai.models.tcl.configuration_tcl import TCLConfig
from moai.models.tcl.image_processing_tcl import TCLImageProcessor
from moai.models.tcl.modeling_tcl import TCLModel
from moai.models.tcl.processing_tcl import TCLProcessor

__all__ = ["build_tcl_config", "build_tcl_model", "build_tcl_processor"]

_WORDS = "a an on the red blue green dog cat car house tree grass sky of and in left right".split()
SIDE, PATCH = 32, 8


def build_tcl_config(family: str = "vit", **fields) -> TCLConfig:
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 5 + len(_WORDS), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4}
    return TCLConfig(
        vision_config=vision | {"model_type": family, "image_size": SIDE, "patch_size": PATCH},
        text_config=text | {"num_attention_heads": 3, "max_position_embeddings": 16},
        **({"num_text_layers": 2, "projection_dim": 8} | fields),
    )


def build_tcl_model(family: str = "vit", **fields) -> TCLModel:
    torch.manual_seed(0)
    return TCLModel(build_tcl_config(family, **fields)).eval()


def build_tcl_processor(folder: Path) -> TCLProcessor:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    images = TCLImageProcessor(size={"height": SIDE, "width": SIDE})
    return TCLProcessor(images, tokenizer, max_text_length=14)
