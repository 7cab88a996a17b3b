"""Published PSGTR checkpoints (OpenPSG on mmdet 2 or 3) -> ours.

Sizes are read from the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch

from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES, PSG_PREDICATES
from verbalizers.psgtr.configuration_psgtr import PSGTRConfig
from verbalizers.psgtr.modeling_psgtr import PSGTRForSceneGraph

__all__ = [
    "convert_psgtr_head",
    "convert_psgtr_state_dict",
    "convert_resnet",
    "looks_like_psgtr",
    "psgtr_sizes",
]

# Older mmdet numbers a layer's parts, newer names them.
_MMDET2_NAMES = ((".attentions.0.", ".self_attn."), (".ffns.0.", ".ffn."), (".attentions.1.", ".cross_attn."))

_MASK_HEAD = {
    "lay1": "conv1.conv",
    "gn1": "conv1.norm",
    "lay2": "conv2.conv",
    "gn2": "conv2.norm",
    "adapter1": "fpn_stages.0.fpn_adapter",
    "lay3": "fpn_stages.0.refine.conv",
    "gn3": "fpn_stages.0.refine.norm",
    "adapter2": "fpn_stages.1.fpn_adapter",
    "lay4": "fpn_stages.1.refine.conv",
    "gn4": "fpn_stages.1.refine.norm",
    "adapter3": "fpn_stages.2.fpn_adapter",
    "lay5": "fpn_stages.2.refine.conv",
    "gn5": "fpn_stages.2.refine.norm",
    "out_lay": "output_conv",
}

_HEAD_PREFIXES = {
    "input_proj.": "input_projection.",
    "query_embed.": "query_position_embeddings.",
    "sub_cls_embed.": "subject_classifier.",
    "obj_cls_embed.": "object_classifier.",
    "rel_cls_embed.": "relation_classifier.",
    "sub_box_embed.": "subject_box_predictor.",
    "obj_box_embed.": "object_box_predictor.",
    "sub_bbox_attention.q_linear.": "subject_attention_map.q_proj.",
    "sub_bbox_attention.k_linear.": "subject_attention_map.k_proj.",
    "obj_bbox_attention.q_linear.": "object_attention_map.q_proj.",
    "obj_bbox_attention.k_linear.": "object_attention_map.k_proj.",
    "transformer.decoder.post_norm.": "decoder.layernorm.",
    **{f"sub_mask_head.{old}.": f"subject_mask_head.{new}." for old, new in _MASK_HEAD.items()},
    **{f"obj_mask_head.{old}.": f"object_mask_head.{new}." for old, new in _MASK_HEAD.items()},
}

_LAYER_PARTS = {
    "self_attn.attn.out_proj.": "self_attn.o_proj.",
    "cross_attn.attn.out_proj.": "encoder_attn.o_proj.",
    "ffn.layers.0.0.": "mlp.fc1.",
    "ffn.layers.1.": "mlp.fc2.",
    "norms.0.": "self_attn_layer_norm.",
}
_LAST_NORMS = {
    "encoder": {"norms.1.": "final_layer_norm."},
    "decoder": {"norms.1.": "encoder_attn_layer_norm.", "norms.2.": "final_layer_norm."},
}
_LAYER = re.compile(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(.+)")
_IN_PROJECTION = re.compile(r"(self|cross)_attn\.attn\.in_proj_(weight|bias)")


def convert_psgtr_head(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Head tensors under official names (without the `bbox_head.` prefix) -> `PSGTRHead` names.

    Raises:
        ValueError: a name is not known.
    """
    converted: dict[str, torch.Tensor] = {}
    unknown = []
    for official, tensor in state_dict.items():
        name = official
        for old, new in _MMDET2_NAMES:
            name = name.replace(old, new)
        layer = _LAYER.fullmatch(name)
        if layer is not None:
            names = _convert_layer_name(*layer.groups())
            for new, piece in zip(names, tensor.chunk(len(names)) if names else (), strict=True):
                converted[new] = piece.clone()
            if not names:
                unknown.append(official)
            continue
        prefix = next((p for p in _HEAD_PREFIXES if name.startswith(p)), None)
        if prefix is None:
            unknown.append(official)
        else:
            converted[_HEAD_PREFIXES[prefix] + name.removeprefix(prefix)] = tensor
    if unknown:
        raise ValueError(f"expected PSGTR head names only, got also {unknown[:5]} ({len(unknown)} in all).")
    return converted


def _convert_layer_name(stack: str, index: str, part: str) -> list[str]:
    """Our names for one official layer tensor: one, three for a fused q, k, v, none if it is unknown."""
    start = f"{stack}.layers.{index}."
    fused = _IN_PROJECTION.fullmatch(part)
    if fused is not None:
        ours = "self_attn" if fused[1] == "self" else "encoder_attn"
        return [f"{start}{ours}.{projection}.{fused[2]}" for projection in ("q_proj", "k_proj", "v_proj")]
    for old, new in {**_LAYER_PARTS, **_LAST_NORMS[stack]}.items():
        if part.startswith(old):
            return [start + new + part.removeprefix(old)]
    return []


def convert_resnet(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Torchvision / mmdet ResNet names -> transformers' ResNet backbone names; the classifier is left out."""
    converted = {}
    for official, tensor in state_dict.items():
        if official.startswith("fc.") or official.endswith("num_batches_tracked"):
            continue
        stem = re.fullmatch(r"(conv1|bn1)\.(.+)", official)
        block = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.+)", official)
        kinds = {"conv": "convolution", "bn": "normalization"}
        if stem is not None:
            name = f"embedder.embedder.{kinds[stem[1][:-1]]}.{stem[2]}"
        elif block is not None and block[3] == "downsample.":
            part = "convolution" if block[4] == "0" else "normalization"
            name = f"encoder.stages.{int(block[1]) - 1}.layers.{block[2]}.shortcut.{part}.{block[5]}"
        elif block is not None:
            layer = f"encoder.stages.{int(block[1]) - 1}.layers.{block[2]}.layer.{int(block[4]) - 1}"
            name = f"{layer}.{kinds[block[3]]}.{block[5]}"
        else:
            raise ValueError(f"expected torchvision ResNet names, got {official!r}.")
        converted[name] = tensor
    return converted


def psgtr_sizes(head: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Configuration fields that the converted head's tensor shapes tell, and `num_labels`, `num_relations`."""

    def count_layers(stack: str) -> int:
        return 1 + max(int(name.split(".")[2]) for name in head if name.startswith(f"{stack}.layers."))

    num_queries, hidden_size = head["query_position_embeddings.weight"].shape
    # The mask head takes the features and one attention map per head: the only trace of their number.
    num_heads = head["subject_mask_head.conv1.conv.weight"].shape[1] - hidden_size
    return {
        "num_queries": num_queries,
        "d_model": hidden_size,
        "encoder_attention_heads": num_heads,
        "decoder_attention_heads": num_heads,
        "encoder_layers": count_layers("encoder"),
        "decoder_layers": count_layers("decoder"),
        "encoder_ffn_dim": head["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "decoder_ffn_dim": head["decoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_labels": head["subject_classifier.weight"].shape[0] - 1,
        "num_relations": head["relation_classifier.weight"].shape[0] - 1,
    }


def looks_like_psgtr(names: Iterable[str]) -> bool:
    """Whether tensor names are those of a published PSGTR checkpoint."""
    return {f"bbox_head.{part}_cls_embed.weight" for part in ("sub", "obj", "rel")} <= set(names)


def convert_psgtr_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    source: str,
    class_names: Sequence[str] | None = None,
    predicate_names: Sequence[str] | None = None,
) -> PSGTRForSceneGraph:
    """Our model, in evaluation mode, with a published checkpoint's tensors.

    Args:
        state_dict: tensors under official names.
        source: what errors call the checkpoint.
        class_names: C names; None = COCO panoptic where C is 133, else numbered.
        predicate_names: P names; None = PSG's where P is 56, else numbered.

    Raises:
        ValueError: keys are missing or left over.
    """
    if not looks_like_psgtr(state_dict):
        raise ValueError(
            f"expected a PSGTR checkpoint with bbox_head.sub_cls_embed, obj_cls_embed and rel_cls_embed, got {source} "
            f"with {sorted(state_dict)[:3]} ... Other models of OpenPSG (MOTIFS, VCTree ...) have other layouts."
        )
    head = convert_psgtr_head(_with_prefix(state_dict, "bbox_head."))
    backbone = convert_resnet(_with_prefix(state_dict, "backbone."))
    left_over = [name for name in state_dict if not name.startswith(("bbox_head.", "backbone."))]
    if left_over:
        raise ValueError(f"expected keys under bbox_head. and backbone. only, got also {left_over[:5]}.")
    if not backbone:
        raise ValueError(f"{source} has no backbone tensors. Save the whole detector's state_dict, not the head's.")
    sizes = psgtr_sizes(head)
    num_labels, num_relations = sizes.pop("num_labels"), sizes.pop("num_relations")
    classes = _complete_names("class", num_labels, class_names, COCO_PANOPTIC_NAMES)
    config = PSGTRConfig(
        **sizes,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
        predicate_names=_complete_names("predicate", num_relations, predicate_names, PSG_PREDICATES),
        backbone_config=resnet_config(backbone),
    )
    model = PSGTRForSceneGraph(config)
    tensors = {f"head.{name}": tensor for name, tensor in head.items()}
    tensors |= {f"backbone.model.{name}": tensor for name, tensor in backbone.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{source} lacks {missing[:5]} and has unknown {unexpected[:5]}. Is it a PSGTR checkpoint?")
    return model.eval()


def resnet_config(backbone: Mapping[str, torch.Tensor]) -> dict:
    """Transformers ResNet fields that the converted backbone's tensor shapes tell."""
    depths: list[int] = []
    widths: list[int] = []
    for stage in range(4):
        blocks = {int(n.split(".")[4]) for n in backbone if n.startswith(f"encoder.stages.{stage}.layers.")}
        depths.append(1 + max(blocks))
        first = f"encoder.stages.{stage}.layers.0.layer."
        last = max(int(n.removeprefix(first).split(".")[0]) for n in backbone if n.startswith(first))
        widths.append(backbone[f"{first}{last}.convolution.weight"].shape[0])
    return {
        "model_type": "resnet",
        "depths": depths,
        "hidden_sizes": widths,
        "embedding_size": backbone["embedder.embedder.convolution.weight"].shape[0],
        "layer_type": "bottleneck" if last == 2 else "basic",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


def _with_prefix(state_dict: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def _complete_names(what: str, count: int, names: Sequence[str] | None, published: Sequence[str]) -> list[str]:
    """The given names, else the published ones where as many are needed, else numbers."""
    if names is None:
        return list(published) if count == len(published) else [f"{what} {index}" for index in range(count)]
    if len(names) != count:
        raise ValueError(f"`{what}_names` must have {count} entries like the checkpoint, got {len(names)}.")
    return list(names)
