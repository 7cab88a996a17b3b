"""Image loading: paths, bytes, arrays, tensors and Pillow images to upright RGB images, or a clear error.

The size is read from the file's header and bounded BEFORE any pixel is decoded: Pillow itself objects only above
178.9 megapixels, and a 600 KB PNG may unpack to hundreds of megabytes. Formats are an explicit list (EPS, for one,
would start an interpreter), URLs are not followed unless allowed, and only regular files are opened.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
import struct
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

#: Largest image that is decoded by default, in pixels.
DEFAULT_MAX_PIXELS = 64_000_000
#: Largest file, byte string or download that is read by default.
DEFAULT_MAX_BYTES = 256 * 2**20
#: Raster formats that are opened; anything else is refused by name.
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray"

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]+):(//)?")
_URL_TIMEOUT_S = 20.0
# What Pillow's decoders are known to raise on damaged input (they are not uniform about it).
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    ImportError,  # a decoder that is not installed; also what ultralytics' replacement of Image.open raises
)


class ImageLoadError(ValueError):
    """An image could not be read; the message says what was expected, what came, and what to do."""


def is_url(source: object) -> bool:
    """Whether `source` is a string with a URL scheme (``https://...``, ``file://...``, ``data:...``)."""
    if not isinstance(source, str):
        return False
    match = _SCHEME.match(source)
    return match is not None and (match.group(2) is not None or match.group(1).lower() == "data")


def load_image(
    source: ImageSource,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    allow_urls: bool = False,
    *,
    allow_data_urls: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Image.Image:
    """Load one image as RGB, upright, first frame.

    Transparent images are laid on white; 16-bit values are scaled to 8 bits; CMYK is converted without its colour
    profile; the EXIF orientation is applied.

    Args:
        source: Path, encoded bytes, binary file, PIL image, or array: (H, W), (H, W, 1|3|4) or (1|3|4, H, W) of
            dtype bool, uint8, uint16, another integer within 0..255, or float within 0..1; torch tensors likewise.
            Where both layouts fit, arrays are read with channels last and tensors with channels first.
        max_pixels: Most pixels (height x width) that are decoded.
        allow_urls: Whether ``http://`` and ``https://`` addresses are downloaded. Only switch it on for addresses
            you trust: the request is made from this machine, into its network.
        allow_data_urls: Whether ``data:image/...;base64,`` strings are decoded (no network involved).
        max_bytes: Most bytes that are read from a file or a download.

    Returns:
        A new PIL image of mode RGB.

    Raises:
        ImageLoadError: Not an image, damaged, too large, or a source that is not allowed.
    """
    if isinstance(source, Image.Image):
        return _finish(source, "PIL image", max_pixels)
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return _from_array(_to_numpy(source), max_pixels, channels_first=hasattr(source, "detach"))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "byte string", max_pixels, max_bytes)
    if is_url(source):
        return _from_bytes(
            _read_url(str(source), allow_urls, allow_data_urls, max_bytes),
            _clip(source),
            max_pixels,
            max_bytes,
        )
    if isinstance(source, (str, os.PathLike)):
        return _from_path(source, max_pixels, max_bytes)
    if hasattr(source, "read"):
        return _from_bytes(source.read(max_bytes + 1), "binary file", max_pixels, max_bytes)
    raise ImageLoadError(
        f"expected an image as path, bytes, PIL image or array, got {type(source).__name__}. "
        "Pass one of these, one image at a time."
    )


def _clip(source: object, limit: int = 120) -> str:
    """A source's name, short enough for a message."""
    text = repr(os.fspath(source)) if isinstance(source, os.PathLike) else repr(source)
    return text if len(text) <= limit else text[:limit] + "..."


def _from_path(path: str | os.PathLike[str], max_pixels: int, max_bytes: int) -> Image.Image:
    """Open a regular file; everything else a path may name is refused."""
    name = _clip(path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageLoadError(
            f"expected the path of an image, got {name}, which does not exist. Check the path."
        ) from error
    except (OSError, ValueError) as error:
        raise ImageLoadError(f"expected the path of an image, got {name}, which cannot be opened ({error}).") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageLoadError(f"expected an image file, got the directory {name}. Name one file inside it.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageLoadError(f"expected an image file, got {name}, which is no regular file. Pass its bytes instead.")
    if status.st_size > max_bytes:
        raise ImageLoadError(
            f"expected at most {max_bytes} bytes, got {name} with {status.st_size}. Shrink it or raise `max_bytes`."
        )
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageLoadError(f"expected a readable file, got {name} ({error}). Check its permissions.") from error
    return _from_bytes(data, name, max_pixels, max_bytes)


def _from_bytes(data: bytes, name: str, max_pixels: int, max_bytes: int) -> Image.Image:
    """Decode an encoded image, header first."""
    if not isinstance(data, bytes):
        raise ImageLoadError(f"expected a file opened in binary mode, got {type(data).__name__}. Open it with 'rb'.")
    if not data:
        raise ImageLoadError(f"expected an encoded image, got {name} with zero bytes. Save or download it again.")
    if len(data) > max_bytes:
        raise ImageLoadError(f"expected at most {max_bytes} bytes, got more in {name}. Shrink it or raise `max_bytes`.")
    Image.init()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own bound, whatever `max_pixels` says; the second where warnings are errors.
        counted = re.search(r"\((\d+ pixels)\)", str(error))
        raise _too_many_pixels(name, counted.group(1) if counted else str(error), max_pixels) from error
    except _DECODER_ERRORS as error:
        start = data[:16]
        raise ImageLoadError(
            f"expected an image ({', '.join(formats)}), got {name}, whose content is not one (it begins with "
            f"{start!r}). Check that the file is what its name says."
        ) from error
    with image:
        return _finish(image, name, max_pixels)


def _too_many_pixels(name: str, got: str, max_pixels: int) -> ImageLoadError:
    return ImageLoadError(
        f"expected at most {max_pixels} pixels, got {name} with {got}. Shrink the image or raise `max_pixels`."
    )


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Bound, decode, turn upright, convert to RGB."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageLoadError(
            f"expected at least 1x1 pixels, got {name} of {width}x{height}. Pass an image with pixels."
        )
    if width * height > max_pixels:
        raise _too_many_pixels(name, f"{width}x{height} = {width * height} pixels", max_pixels)
    try:
        image.load()
    except (*_DECODER_ERRORS, MemoryError) as error:
        raise ImageLoadError(
            f"expected a whole image, got {name}, which is damaged or cut off ({error}). Download or save it again."
        ) from error
    try:
        image = ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        pass  # A damaged EXIF block says nothing about the pixels, which are whole: keep them as they lie.
    try:
        return _to_rgb(image, name)
    except ImageLoadError:
        raise
    except _DECODER_ERRORS as error:
        raise ImageLoadError(
            f"expected an image that converts to RGB, got {name} of mode {image.mode} ({error}). Save it as RGB."
        ) from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any Pillow mode to RGB, values scaled to 8 bits, transparency laid on white."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _gray((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535)
    if mode == "I":
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageLoadError(
                f"expected integers within 0..65535, got {name} with {low}..{high}. Save it with 8 or 16 bits."
            )
        return _gray(values if high <= 255 else (values.astype(np.uint32) * 255 + 32767) // 65535)
    if mode == "F":
        values = np.asarray(image)
        in_unit = bool(np.isfinite(values).all()) and values.min() >= 0 and values.max() <= 1
        if not in_unit and not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            raise ImageLoadError(f"expected finite floats within 0..1 or 0..255, got others in {name}. Rescale it.")
        return _gray(np.rint(values * 255 if in_unit else values))
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _gray(values: np.ndarray) -> Image.Image:
    """(H, W) values within 0..255 -> RGB."""
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _to_numpy(array: Any) -> np.ndarray:
    """Numpy view of an array or a torch tensor, on whatever device and in whatever precision it is."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if array.is_floating_point():
            array = array.float()  # numpy has no bfloat16
    return np.asarray(array)


def _from_array(array: np.ndarray, max_pixels: int, channels_first: bool) -> Image.Image:
    """Check dtype, shape and range of an array and convert it; `channels_first` decides where both would do."""
    shape, dtype = array.shape, array.dtype
    if array.ndim == 3 and shape[0] in (1, 3, 4) and (channels_first or shape[-1] not in (1, 3, 4)):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or 0 in shape:
        raise ImageLoadError(
            f"expected an array of shape (H, W), (H, W, 1|3|4) or (1|3|4, H, W), got {shape}. "
            "Pass one image at a time: batch[0], not batch."
        )
    height, width = array.shape[:2]
    if height * width > max_pixels:
        raise _too_many_pixels("array", f"{width}x{height} = {width * height} pixels", max_pixels)
    if dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif dtype == np.uint16:
        array = (array.astype(np.uint32) * 255 + 32767) // 65535
    elif dtype.kind not in "uif":
        raise ImageLoadError(f"expected bool, integers or floats, got dtype {dtype}. Convert with astype('uint8').")
    elif dtype != np.uint8:
        low, high = array.min(), array.max()
        top = 1 if dtype.kind == "f" else 255
        if not (low >= 0 and high <= top):  # also False for NaN
            raise ImageLoadError(
                f"expected {dtype} values within 0..{top}, got {low}..{high}. "
                "Floats are 0..1, integers 0..255: rescale or cast to uint8."
            )
        array = np.rint(array.astype(np.float64) * 255) if dtype.kind == "f" else array
    return _finish(Image.fromarray(np.ascontiguousarray(array.astype(np.uint8))), "array", max_pixels)


class _HttpOnlyRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http(s) addresses only (the default also follows ftp)."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith(("http://", "https://")):
            raise ImageLoadError(f"expected a redirect to http or https, got {_clip(newurl)}. Use the final address.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read_url(url: str, allow_urls: bool, allow_data_urls: bool, max_bytes: int) -> bytes:
    """Bytes behind a URL, if its kind is allowed."""
    scheme = url.split(":", 1)[0].lower()
    if scheme == "data":
        return _read_data_url(url, allow_data_urls, max_bytes)
    if scheme not in ("http", "https"):
        raise ImageLoadError(
            f"expected a path or an http(s) address, got {_clip(url)}. Pass the path without a scheme."
        )
    if not allow_urls:
        raise ImageLoadError(
            f"expected a local image, got the address {_clip(url)}. Download it first, or pass allow_urls=True if "
            "you trust it."
        )
    # An explicit list of handlers: build_opener would add file and ftp.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _HttpOnlyRedirects(),
    ):
        opener.add_handler(handler)
    try:
        with opener.open(
            urllib.request.Request(url, headers={"User-Agent": "moai-vlm"}), timeout=_URL_TIMEOUT_S
        ) as reply:
            data = reply.read(max_bytes + 1)
    except ImageLoadError:
        raise
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ImageLoadError(
            f"expected an image at {_clip(url)}, got no answer from it ({error}). Check the address."
        ) from error
    return data


def _read_data_url(url: str, allow_data_urls: bool, max_bytes: int) -> bytes:
    """Bytes inside a ``data:...;base64,`` string."""
    if not allow_data_urls:
        raise ImageLoadError(
            f"expected a local image, got a data URL ({_clip(url, 40)}). Decode it to bytes, or pass "
            "allow_data_urls=True."
        )
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ImageLoadError(f"expected data:image/...;base64,..., got {_clip(url, 40)}. Encode the image as base64.")
    if len(payload) > (max_bytes + 2) // 3 * 4:
        raise ImageLoadError(
            f"expected at most {max_bytes} bytes, got more in a data URL. Shrink it or raise `max_bytes`."
        )
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ImageLoadError(f"expected base64 after the comma of a data URL, got something else ({error}).") from error
