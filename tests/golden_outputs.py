"""Reference outputs of the released MoAI code as tests read them; nothing about their sizes is assumed.

``golden/moai`` holds a checkpoint in the official layout, inputs and outputs; its fixtures.json explains every key.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

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
        return [name for name in names if f"{name}.in.input_ids" in self.full and f"{name}.out.hidden.embed" in self.full]

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
