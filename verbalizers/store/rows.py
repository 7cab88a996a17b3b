"""One verbalized image as a row of the cache: lossless packing and unpacking.

A row holds the scene as JSON, the words, the size, and the panoptic map as a PNG of segment ids beside the JSON (a
map is most of a scene's weight, and PNG packs it several times smaller than run lengths in JSON). Label maps are PNGs
inside the JSON: one packing (`map_packing`) for all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verbalizers.core.map_packing import pack_map, unpack_map
from verbalizers.core.structures import Scene
from verbalizers.core.validation import checked_image_size

__all__ = ["Verbalization", "hash_content", "pack_scene", "unpack_scene"]

_PACKED_MARK = "packed_image_size_hw"


@dataclass(frozen=True)
class Verbalization:
    """One image's entry in the cache.

    Attributes:
        content_hash: SHA-256 of the image file's bytes, 64 hexadecimal digits.
        fingerprint: of the verbalizers and words that made it; see `Recipe.fingerprint`.
        id: what the data set calls the image; of its first occurrence where there are several.
        path: the image's path as the data set writes it; "" where it has none.
        image_size_hw: height and width of the upright image in pixels.
        scene: what was found; a verbalizer that failed is named in `scene.failures`.
        text: the scene as text.
    """

    content_hash: str
    fingerprint: str
    id: str
    path: str
    image_size_hw: tuple[int, int]
    scene: Scene
    text: str


def hash_content(data: bytes) -> str:
    """SHA-256 of an encoded image's bytes, 64 hexadecimal digits: the key of the cache."""
    return hashlib.sha256(data).hexdigest()


def pack_scene(scene: Scene) -> tuple[str, bytes | None]:
    """A scene as JSON without its panoptic map, and the map as PNG (None where there is none).

    Raises:
        TypeError, ValueError: a finding of a further kind cannot be held by JSON.
    """
    data = scene.to_dict()
    if scene.segments is None:
        return json.dumps(data, allow_nan=False), None
    data["segments"]["panoptic_map"] = {_PACKED_MARK: list(scene.segments.image_size_hw)}
    return json.dumps(data, allow_nan=False), pack_map(scene.segments.panoptic_map)


def unpack_scene(text: str, panoptic_png: bytes | None) -> Scene:
    """The scene behind `pack_scene`'s two parts.

    Raises:
        ValueError: they do not hold a scene.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        segments = data.get("segments")
        packed = segments.get("panoptic_map") if isinstance(segments, Mapping) else None
        if isinstance(packed, Mapping) and _PACKED_MARK in packed:
            if panoptic_png is None:
                raise ValueError("the panoptic map is missing")
            ids = unpack_map(panoptic_png, checked_image_size(packed[_PACKED_MARK]), "int32")
            data["segments"] = {**segments, "panoptic_map": ids}
        return Scene.from_dict(data)
    except (TypeError, KeyError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"expected a scene as `pack_scene` writes it, got something else: {error}.") from error


def encode_found(content_hash: str, scene: Scene, text: str) -> str:
    """What a worker sends back about one image: JSON on one line, the map as base64."""
    scene_json, panoptic_png = pack_scene(scene)
    height, width = scene.image_size_hw
    found = {
        "content_hash": content_hash,
        "height": height,
        "width": width,
        "scene": scene_json,
        "text": text,
        "failed_kinds": sorted(scene.failures),
        "panoptic_png": None if panoptic_png is None else base64.b64encode(panoptic_png).decode("ascii"),
    }
    return json.dumps(found)
