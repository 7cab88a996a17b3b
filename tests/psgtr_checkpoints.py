"""PSGTR checkpoints as OpenPSG publishes them, with few weights."""

import pytest
import torch


def build_official_psgtr() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A tiny detector in the published layout: torchvision's ResNet names and mmdet 2's head names.

    Returns:
        The ResNet whose weights the checkpoint's backbone has, and the checkpoint's tensors by name.
    """
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    resnet = ResNet(BasicBlock, [1, 1, 1, 1]).eval()
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    assert torchvision.__version__
    sizes = [64, 128, 256, 512]
    hidden, heads, queries, classes, predicates = 128, 8, 5, 133, 56
    head = {"input_proj": (hidden, sizes[3], 1, 1), "query_embed": (queries, hidden)}
    for role in ("sub", "obj"):
        head[f"{role}_cls_embed"] = (classes + 1, hidden)
        for i, out in enumerate((hidden, hidden, 4)):
            head[f"{role}_box_embed.layers.{i}"] = (out, hidden)
        head[f"{role}_bbox_attention.q_linear"] = head[f"{role}_bbox_attention.k_linear"] = (hidden, hidden)
        widths = [hidden + heads, hidden + heads, 64, 32, 16, 8]
        for i in range(1, 6):
            head[f"{role}_mask_head.lay{i}"] = (widths[i], widths[i - 1], 3, 3)
            head[f"{role}_mask_head.gn{i}"] = (widths[i],)
        head[f"{role}_mask_head.out_lay"] = (1, 8, 3, 3)
        for i, channels in enumerate((256, 128, 64), start=1):
            head[f"{role}_mask_head.adapter{i}"] = (widths[i + 1], channels, 1, 1)
    head["rel_cls_embed"] = (predicates + 1, hidden)
    head["transformer.decoder.post_norm"] = (hidden,)
    for stack, attentions, norms in (("encoder", 1, 2), ("decoder", 2, 3)):
        layer = f"transformer.{stack}.layers.0"
        head |= {f"{layer}.attentions.{i}.attn.out_proj": (hidden, hidden) for i in range(attentions)}
        head |= {f"{layer}.attentions.{i}.attn.in_proj_": (3 * hidden, hidden) for i in range(attentions)}
        head |= {f"{layer}.ffns.0.layers.0.0": (32, hidden), f"{layer}.ffns.0.layers.1": (hidden, 32)}
        head |= {f"{layer}.norms.{i}": (hidden,) for i in range(norms)}
    state = {f"backbone.{name}": tensor for name, tensor in resnet.state_dict().items() if not name.startswith("fc.")}
    for name, shape in head.items():
        separator = "" if name.endswith("in_proj_") else "."
        state[f"bbox_head.{name}{separator}weight"] = torch.randn(shape) * 0.05
        if name != "query_embed":
            state[f"bbox_head.{name}{separator}bias"] = torch.randn(shape[0]) * 0.05
    return resnet, state
