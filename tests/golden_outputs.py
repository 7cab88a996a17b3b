"""Reference outputs of the released MoAI code as tests read them; nothing about their sizes is assumed.

``golden/moai`` holds a checkpoint in the official layout, inputs and outputs; its fixtures.json explains every key.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from moai import MoAIForConditionalGeneration
from moai.checkpoints.convert import convert

IMAGE_ROLE, LANGUAGE_ROLE = 1, 2


class GoldenMoAI:
    """One set of reference outputs.

    Args:
        folder: Holds config.json, fixtures.json and the safetensors files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """Sizes of the reference model."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    @cached_property
    def fixtures(self) -> dict[str, Any]:
        """What each key is, tolerances, losses and gradient norms."""
        return json.loads((self.folder / "fixtures.json").read_text(encoding="utf-8"))

    @cached_property
    def full(self) -> dict[str, torch.Tensor]:
        """End-to-end inputs and outputs."""
        return load_file(self.folder / self.fixtures["files"]["full_model"])

    @cached_property
    def modules(self) -> dict[str, torch.Tensor]:
        """Inputs and outputs of single parts."""
        return load_file(self.folder / self.fixtures["files"]["modules"])

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The checkpoint under official names, float32."""
        return {name: tensor.float() for name, tensor in load_file(self.folder / "model.safetensors").items()}

    def tolerance(self, quantity: str) -> float:
        """The suggested absolute tolerance of a kind of quantity, found by the start of its name."""
        for name, value in self.fixtures["suggested_atol"].items():
            if name.startswith(quantity) or f", {quantity}" in name:
                return float(value)
        raise KeyError(f"fixtures.json suggests no tolerance for {quantity!r}")

    @property
    def samples(self) -> list[str]:
        """Names of the single-image runs that come with all their inputs."""
        names = sorted({key.split(".")[0] for key in self.full if key.endswith(".in.aux_embeds")})
        return [
            name for name in names if f"{name}.in.input_ids" in self.full and f"{name}.out.hidden.embed" in self.full
        ]

    @property
    def num_patches(self) -> int:
        """Patch tokens per image."""
        return self.config["vision"]["grid"] ** 2

    def expand(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Repeat ``<image>`` per patch: ``(B, text length) -> (B, merged length)``; rows stay equally long."""
        image = self.config["image_token_index"]
        rows = [
            torch.cat([item.repeat(self.num_patches if item == image else 1) for item in row[:, None]])
            for row in input_ids.long()
        ]
        return torch.stack(rows)

    def prompt(self, name: str) -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask`` and ``mm_token_type_ids`` of a run, image tokens expanded."""
        image, language = self.full[f"{name}.in.im_mask"], self.full[f"{name}.in.lang_mask"]
        text_mask = self.full[f"{name}.in.attention_mask"]
        padding = self.full[f"{name}.in.input_ids"].shape[1] - text_mask.sum(1)
        input_ids = self.expand(self.full[f"{name}.in.input_ids"])
        attention_mask = (torch.arange(input_ids.shape[1])[None] >= padding[:, None]).long()
        roles = image.long() * IMAGE_ROLE + language.long() * LANGUAGE_ROLE
        return {"input_ids": input_ids, "attention_mask": attention_mask, "mm_token_type_ids": roles}

    def inputs(self, name: str) -> dict[str, torch.Tensor]:
        """A single-image run as our model takes it: auxiliary words as ids, the map as pixels."""
        return self.prompt(name) | {
            "pixel_values": self.full[f"{name}.in.pixel_values"],
            "auxiliary_input_ids": self.full[f"{name}.in.verb_input_ids"].long(),
            "auxiliary_pixel_values": self.full[f"{name}.in.map_pixel_values"],
        }

    def batch_inputs(self, names: tuple[str, ...], batch: str) -> dict[str, torch.Tensor]:
        """Several runs as one left-padded batch, the auxiliary words left-padded and masked."""
        rows = [self.full[f"{name}.in.verb_input_ids"][0].long() for name in names]
        longest = max(len(row) for row in rows)
        padding = [longest - len(row) for row in rows]
        pad_id = self.config["tokenizer_pad_id"]
        words = [torch.cat([row.new_full((n,), pad_id), row]) for n, row in zip(padding, rows, strict=True)]
        mask = torch.arange(longest)[None] >= torch.tensor(padding)[:, None]
        return self.prompt(batch) | {
            "pixel_values": torch.cat([self.full[f"{name}.in.pixel_values"] for name in names]),
            "auxiliary_pixel_values": torch.cat([self.full[f"{name}.in.map_pixel_values"] for name in names]),
            "auxiliary_input_ids": torch.stack(words),
            "auxiliary_attention_mask": mask.long(),
        }


@cache
def convert_golden(folder: Path) -> Path:
    """Convert a set's checkpoint once per test run; the folder goes when the process ends."""
    output = Path(tempfile.mkdtemp(prefix="moai-golden-")) / "converted"
    atexit.register(shutil.rmtree, output.parent, ignore_errors=True)
    convert(folder, output, kind="official-moai")
    return output


@cache
def load_golden_model(folder: Path) -> MoAIForConditionalGeneration:
    """The converted reference model in float32, evaluation mode. Shared: leave it as you found it."""
    return MoAIForConditionalGeneration.from_pretrained(convert_golden(folder), dtype=torch.float32)
