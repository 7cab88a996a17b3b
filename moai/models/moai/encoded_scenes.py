"""What the last scenes became, for further questions about them: no second pass of vision tower and compressor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import BatchFeature

__all__ = ["EncodedScenes"]

_WORDS = ("auxiliary_input_ids", "auxiliary_attention_mask")
_AUXILIARY = (*_WORDS, "auxiliary_pixel_values", "auxiliary_source_mask")


class EncodedScenes:
    """Projected features of images, and latents of verbalizations with their maps, by what they were made of.

    Whatever the question: none of it is read here. All is forgotten when the model's weights change or move.

    Args:
        num_scenes: How many are kept. Of MoAI-7B in 16 bits one takes 10.6 MB.
    """

    def __init__(self, num_scenes: int = 8) -> None:
        self.num_scenes = num_scenes
        self._kept = _Kept()

    def forget(self) -> None:
        """Keep nothing of what was encoded so far."""
        self._kept = _Kept()

    @torch.inference_mode()
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> BatchFeature:
        """Inputs of ``generate`` whose images, maps and verbalizations are encoded: what is known is not encoded again.

        Args:
            model: A MoAI.
            inputs: Of prompts with images, on its device.

        Returns:
            ``image_features`` ``(images, patches, D)`` and, where anything is auxiliary, ``auxiliary_states``
            ``(B, N, D)`` in place of what they were made of.
        """
        kept = self._kept  # read once and written once: threads may ask side by side
        if (weights := _identify_weights(model)) != kept.weights:
            kept = _Kept(weights)
        auxiliary = {name: inputs[name] for name in _AUXILIARY if inputs.get(name) is not None}
        image_keys = [_digest(image) for image in inputs["pixel_values"]]
        row_keys = _digest_rows(auxiliary) if auxiliary else []
        new_images, new_rows = _first_of(image_keys, kept.images), _first_of(row_keys, kept.auxiliary)
        images = inputs["pixel_values"][new_images]
        chosen = {name: value[new_rows] for name, value in auxiliary.items()}
        features, patches = None, None
        if new_images and new_rows:
            features, patches = model.model.get_image_and_map_features(images, chosen.get("auxiliary_pixel_values"))
        if new_images and features is None:
            features = model.get_image_features(images, return_dict=True)
        rows = kept.images, image_keys, new_images, () if features is None else features.pooler_output
        latents = model.get_auxiliary_states(**chosen, map_features=patches) if new_rows else ()
        known_images, known_rows = _add(*rows), _add(kept.auxiliary, row_keys, new_rows, latents)
        encoded = {"image_features": torch.stack([known_images[key] for key in image_keys])}
        if row_keys:
            encoded["auxiliary_states"] = torch.stack([known_rows[key] for key in row_keys])
        last = [dict(list(known.items())[-self.num_scenes :]) for known in (known_images, known_rows)]
        self._kept = _Kept(weights, *last)
        rest = {name: value for name, value in inputs.items() if name not in (*_AUXILIARY, "pixel_values")}
        return BatchFeature({**rest, **encoded})


@dataclass(frozen=True)
class _Kept:
    weights: tuple[Any, ...] = ()
    images: Mapping[bytes, torch.Tensor] = field(default_factory=dict)
    auxiliary: Mapping[bytes, torch.Tensor] = field(default_factory=dict)


def _add(
    known: Mapping[bytes, torch.Tensor], keys: list[bytes], new: list[int], values: Iterable[torch.Tensor]
) -> dict[bytes, torch.Tensor]:
    """All that is known, what was asked for last at the end; copies, since a row would keep its whole batch."""
    added = {keys[row]: value.clone() for row, value in zip(new, values, strict=True)}
    older = {key: value for key, value in known.items() if key not in keys}
    return older | {key: added[key] if key in added else known[key] for key in keys}


def _first_of(keys: list[bytes], known: Mapping[bytes, torch.Tensor]) -> list[int]:
    """Rows whose key is not known and stands for the first time."""
    return [row for row, key in enumerate(keys) if key not in known and key not in keys[:row]]


def _digest(*tensors: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def _digest_rows(auxiliary: Mapping[str, torch.Tensor]) -> list[bytes]:
    """A key per row; padding, which changes with the batch, is no part of it."""
    ids, mask = (auxiliary.get(name) for name in _WORDS)
    rest = [value for name, value in auxiliary.items() if name not in _WORDS]
    keys = []
    for row in range(len(next(iter(auxiliary.values())))):
        words = () if ids is None else (ids[row] if mask is None else ids[row][mask[row].bool()],)
        keys.append(_digest(*words, *(value[row] for value in rest)))
    return keys


def _identify_weights(model: Any) -> tuple[Any, ...]:
    """What changes when a weight is learned, loaded or moved, or when images are read otherwise."""
    weights = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]
    return *model.config.resolve_vision_features(None, None), *weights
