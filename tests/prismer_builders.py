"""A tiny random Prismer with tokenizer, processor and features of labels, and its weights in the original's layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, RobertaTokenizer

from moai.models.prismer.configuration_prismer import EXPERTS, PrismerConfig
from moai.models.prismer.image_processing_prismer import PrismerImageProcessor
from moai.models.prismer.label_features import LabelFeatures, NameEncoder
from moai.models.prismer.modeling_prismer import PrismerForConditionalGeneration
from moai.models.prismer.processing_prismer import PrismerProcessor

LABEL_SIZE = 8
SIDE = 32
CLASS_NAMES = ("person", "dog", "cat", "sky", "grass", "road", "car", "tree", "cup", "house", "sea", "bird")


def build_tokenizer() -> RobertaTokenizer:
    """RobertaTokenizer of single bytes, its control tokens at RoBERTa's ids."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    return RobertaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def build_name_encoder(seed: int = 0) -> NameEncoder:
    """A tiny CLIP text encoder, as a user would have a large one."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, projection_dim=16, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return NameEncoder(CLIPTextModelWithProjection(config), tokenizer)


def build_prismer(
    experts: Sequence[str] = EXPERTS, seed: int = 0, **fields: Any
) -> tuple[PrismerForConditionalGeneration, PrismerProcessor]:
    """Model in evaluation mode, and processor.

    Args:
        experts: None = a PrismerZ.
        seed: Of the weights.
        **fields: Of the configuration; of ``vision_config`` and ``text_config`` what differs.
    """
    tokenizer = build_tokenizer()
    config = PrismerConfig(
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "patch_size": 8, "image_size": SIDE, "hidden_act": "quick_gelu",
        } | fields.pop("vision_config", {}),
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 3, "max_position_embeddings": 258, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        } | fields.pop("text_config", {}),
        experts=list(experts), label_size=LABEL_SIZE, resampler_layers=2, resampler_heads=4,
        **{"num_latents": 4} | fields,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = PrismerForConditionalGeneration(config).eval()
    with torch.no_grad():  # far from the start's symmetries: every part shows in the logits
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 if "crossattention" in name else 0.35)
            elif not name.endswith("weight"):
                parameter.normal_(std=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    side = config.vision_config.image_size
    images = PrismerImageProcessor(size={"height": side, "width": side}, resample=Image.Resampling.BILINEAR)
    processor = PrismerProcessor(images, tokenizer, experts=list(experts), map_side=32)
    if experts:
        processor.label_features = LabelFeatures.fit(CLASS_NAMES, build_name_encoder(), LABEL_SIZE)
    return model, processor


def save_prismer(folder: Path, experts: Sequence[str] = EXPERTS, **fields: Any) -> Path:
    """Write model and processor as `moai ask --model` reads them."""
    model, processor = build_prismer(experts, **fields)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


_PLACES = (
    (r"model\.vision_encoder\.instance_embedding\.weight", r"expert_encoder.instance_embedding"),
    (r"model\.vision_encoder\.stems\.", r"expert_encoder.conv1."),
    (r"model\.vision_encoder\.(pre|post)_layernorm\.", r"expert_encoder.ln_\1."),
    (r"model\.vision_encoder\.resampler\.blocks\.(\d+)\.attention\.", r"RES\1.attn."),
    (r"model\.vision_encoder\.resampler\.blocks\.(\d+)\.fc1\.", r"RES\1.mlp.c_fc."),
    (r"model\.vision_encoder\.resampler\.blocks\.(\d+)\.fc2\.", r"RES\1.mlp.c_proj."),
    (r"model\.vision_encoder\.resampler\.blocks\.(\d+)\.norm_latents\.", r"RES\1.ln_1."),
    (r"model\.vision_encoder\.resampler\.blocks\.(\d+)\.norm_tokens\.", r"RES\1.ln_2."),
    (r"model\.vision_encoder\.resampler\.blocks\.(\d+)\.norm_feed_forward\.", r"RES\1.ln_ff."),
    (r"model\.vision_encoder\.layers\.(\d+)\.adaptor\.norm\.", r"BLOCK\1.1.adaptor_ln."),
    (r"model\.vision_encoder\.layers\.(\d+)\.adaptor\.", r"BLOCK\1.1.adaptor."),
    (r"model\.vision_encoder\.layers\.(\d+)\.self_attn\.", r"BLOCK\1.0.attn."),
    (r"model\.vision_encoder\.layers\.(\d+)\.layer_norm", r"BLOCK\1.0.ln_"),
    (r"model\.vision_encoder\.layers\.(\d+)\.mlp\.fc1\.", r"BLOCK\1.0.mlp.c_fc."),
    (r"model\.vision_encoder\.layers\.(\d+)\.mlp\.fc2\.", r"BLOCK\1.0.mlp.c_proj."),
    (r"model\.vision_encoder\.", r"expert_encoder."),
    (r"model\.text_decoder\.embeddings\.", r"text_decoder.roberta.embeddings."),
    (r"model\.text_decoder\.layers\.(\d+)\.crossattention\.", r"LAYER\1.1."),
    (r"model\.text_decoder\.layers\.(\d+)\.adaptor\.norm\.", r"LAYER\1.2.adaptor_ln."),
    (r"model\.text_decoder\.layers\.(\d+)\.adaptor\.", r"LAYER\1.2.adaptor."),
    (r"model\.text_decoder\.layers\.(\d+)\.", r"LAYER\1.0."),
    (r"model\.text_decoder\.output_layer\.", r"text_decoder.roberta.encoder.output_layer."),
    (r"lm_head\.", r"text_decoder.lm_head."),
)
_SHORT = {
    "RES": "expert_encoder.resampler.perceiver_blocks.",
    "BLOCK": "expert_encoder.transformer.resblocks.",
    "LAYER": "text_decoder.roberta.encoder.layer.",
}


def publish(model: PrismerForConditionalGeneration) -> dict[str, torch.Tensor]:
    """What the original saves of a model, by its names."""
    published: dict[str, torch.Tensor] = {}
    joined: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        for pattern, target in _PLACES:
            key, count = re.subn(rf"^{pattern}", target, name)
            if count:
                break
        for short, place in _SHORT.items():
            key = re.sub(rf"^{short}", place, key)
        if match := re.fullmatch(r"(.+\.0\.attn\.)([qkv])_proj\.(weight|bias)", key):
            joined.setdefault(f"{match[1]}in_proj_{match[3]}", {})[match[2]] = tensor
        else:
            published[key] = tensor
    published |= {key: torch.cat([parts[part] for part in "qkv"]) for key, parts in joined.items()}
    published["text_decoder.roberta.embeddings.position_ids"] = torch.arange(8)[None]
    return {key: tensor.clone() for key, tensor in published.items()}


def save_published(folder: Path, model: PrismerForConditionalGeneration, is_safetensors: bool = False) -> Path:
    """Write a model as the original does, with its tokenizer."""
    folder.mkdir()
    if is_safetensors:
        save_file(publish(model), folder / "model.safetensors")
    else:
        torch.save(publish(model), folder / "pytorch_model.bin")
    build_tokenizer().save_pretrained(folder)
    return folder
