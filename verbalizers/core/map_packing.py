"""The one packing of maps: an array with a value per pixel as a PNG, losslessly."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from verbalizers.core.validation import check_map_shape

__all__ = ["MAP_DTYPES", "pack_map", "unpack_map"]

#: What a map may hold, and the forms of PNG that hold it: int32 takes the smallest that fits.
MAP_DTYPES = {"uint8": ("L",), "uint16": ("I;16",), "int32": ("L", "I;16", "RGBA"), "float32": ("RGBA",)}
_BYTES_OF_MODE = {"L": 1, "I;16": 2, "RGBA": 4}
#: The most that deflate packs into one byte.
_MAX_DEFLATE_RATIO = 1032


def pack_map(values: np.ndarray) -> bytes:
    """A map as PNG: grey of 8 or 16 bits, or the four bytes of an int32 or float32 as RGBA.

    Channels stand below each other in the image.

    Args:
        values: one of `MAP_DTYPES`, `(H, W)` or `(H, W, C)`.
    """
    planes = values if values.ndim == 2 else np.moveaxis(values, 2, 0).reshape(-1, values.shape[1])
    planes = np.ascontiguousarray(planes, dtype=planes.dtype.newbyteorder("<"))
    if planes.dtype.kind == "i" and planes.min() >= 0 and planes.max() < 1 << 16:
        planes = planes.astype(np.uint8 if planes.max() < 1 << 8 else np.uint16)
    if planes.dtype.itemsize == 4:
        planes = planes.view(np.uint8).reshape(*planes.shape, 4)
    stream = io.BytesIO()
    Image.fromarray(planes).save(stream, format="PNG")
    return stream.getvalue()


def unpack_map(data: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array behind `pack_map`'s PNG.

    Args:
        data: the PNG.
        shape: the shape that it must have, `(H, W)` or `(H, W, C)`; compared with the PNG's header and length before
            anything is decoded.
        dtype: of `MAP_DTYPES`.

    Raises:
        ValueError: not such a PNG, or one of another size.
    """
    check_map_shape(shape)
    height, width = shape[0] * (shape[2] if len(shape) == 3 else 1), shape[1]
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (width, height) or image.mode not in MAP_DTYPES[dtype]:
                got = f"{image.mode} of {image.size[1]} x {image.size[0]}"
                raise ValueError(f"expected a map of {height} x {width} {dtype} values, got {got}. Verbalize anew.")
            if height * width * _BYTES_OF_MODE[image.mode] > _MAX_DEFLATE_RATIO * len(data):
                raise ValueError(
                    f"expected a map of {height} x {width} pixels, got {len(data)} bytes, which cannot hold as many. "
                    "Verbalize anew."
                )
            planes = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a map as PNG, got something else ({error}). Verbalize anew.") from error
    if planes.ndim == 3:
        planes = np.ascontiguousarray(planes).view(np.dtype(dtype).newbyteorder("<"))[..., 0]
    planes = planes.astype(dtype)
    return planes if len(shape) == 2 else np.moveaxis(planes.reshape(shape[2], *shape[:2]), 0, 2)
