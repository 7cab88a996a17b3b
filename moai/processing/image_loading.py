"""Image loading: paths, bytes, arrays, tensors and Pillow images to upright RGB images, or a clear error.

The size is read from the file's header and bounded BEFORE any pixel is decoded: Pillow itself objects only above
178.9 megapixels, and a 600 KB PNG may unpack to hundreds of megabytes. Formats are an explicit list (EPS, for one,
would start an interpreter), URLs are not followed unless allowed, and only regular files are opened.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
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
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

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
    AssertionError,  # a lazy PIL image whose file is closed
    Image.DecompressionBombError,
    ImportError,  # a decoder that is not installed; also what ultralytics' replacement of Image.open raises
)


class ImageLoadError(ValueError):
    """An image could not be read; the message says what was expected, what came, and what to do."""


class TooManyPixelsError(ImageLoadError):
    """An image is whole as far as was looked, and larger than `max_pixels`."""


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
        source: Path, encoded bytes, binary file (from its start where it can go back, as Pillow reads), PIL image, or
            array: (H, W), (H, W, 1|3|4) or (1|3|4, H, W) of dtype bool, uint8, uint16, another integer within 0..255,
            or float within 0..1; torch tensors likewise. Where both layouts fit, arrays are read with channels last
            and tensors with channels first.
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
        name = getattr(source, "filename", None)
        return _finish(source, _clip(name) if isinstance(name, str) and name else "PIL image", max_pixels)
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
        return _from_bytes(read_image_file(source, max_bytes), _clip(source), max_pixels, max_bytes)
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        name = _clip(name) if isinstance(name, (str, os.PathLike)) and name else "binary file"
        return _from_bytes(read_stream(source, name, max_bytes), name, max_pixels, max_bytes)
    raise ImageLoadError(
        f"expected an image as path, bytes, PIL image or array, got {type(source).__name__}. "
        "Pass one of these, one image at a time."
    )


def view_image(source: ImageSource, max_pixels: int = DEFAULT_MAX_PIXELS, **settings: Any) -> Image.Image:
    """Load an image for reading only: what :func:`load_image` returned before is not checked and copied again.

    Args:
        source: As for :func:`load_image`.
        max_pixels: Likewise.
        **settings: Likewise.

    Returns:
        A PIL image of mode RGB, perhaps ``source`` itself: not to be drawn on.

    Raises:
        ImageLoadError: See :func:`load_image`.
    """
    is_done = type(source) is Image.Image and source.mode == "RGB" and not {"exif", "transparency"} & source.info.keys()
    if is_done and 1 <= source.width * source.height <= max_pixels:
        return source
    return load_image(source, max_pixels, **settings)


def _clip(source: object, limit: int = 120) -> str:
    """A source's name, short enough for a message."""
    text = repr(os.fspath(source)) if isinstance(source, os.PathLike) else repr(source)
    return text if len(text) <= limit else text[:limit] + "..."


def can_go_back(stream: Any) -> bool:
    """Whether a file object can be read from its start again; a pipe or a download cannot."""
    try:
        return bool(stream.seekable())
    except (AttributeError, OSError, ValueError):  # no such method, or the file is closed
        return False


def read_stream(stream: Any, name: str = "binary file", max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """Read a file object, from its start where it can go back: it may have been read, or just been written.

    Args:
        stream: Opened in binary mode.
        name: What messages call it.
        max_bytes: Reading ends soon behind so many.

    Returns:
        Its content, at most one piece more than ``max_bytes``.

    Raises:
        ImageLoadError: It is closed, opened as text, or cannot be read.
    """
    data = bytearray()
    if isinstance(stream, io.TextIOBase):
        raise ImageLoadError(f"expected a file opened in binary mode, got {name} opened as text. Open it with 'rb'.")
    try:
        if can_go_back(stream):
            stream.seek(0)
        while len(data) <= max_bytes:
            piece = stream.read(max_bytes + 1 - len(data))  # an unbuffered file gives what is there, not all
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                raise TypeError(f"its read() gives {type(piece).__name__}, not bytes")
            if not piece:
                break
            data += piece
    except ImageLoadError:  # of a stream that reads images itself
        raise
    except (OSError, ValueError, TypeError) as error:
        raise ImageLoadError(f"expected an open, readable file, got {name} ({error}). Open it again.") from error
    return bytes(data)


def read_image_file(path: str | os.PathLike[str], max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """Read a regular file's content; everything else a path may name is refused.

    Args:
        path: The file.
        max_bytes: Its greatest size.

    Raises:
        ImageLoadError: It is not there, no regular file, too large, or cannot be read.
    """
    name = _clip(path)
    check_image_path(path, max_bytes)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageLoadError(f"expected a readable file, got {name} ({error}). Check its permissions.") from error


def check_image_path(path: str | os.PathLike[str], max_bytes: int = DEFAULT_MAX_BYTES) -> None:
    """Check that a path names a regular file of bearable size, without opening it.

    Args:
        path: The file.
        max_bytes: Its greatest size.

    Raises:
        ImageLoadError: It does not.
    """
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


def _from_bytes(data: bytes, name: str, max_pixels: int, max_bytes: int) -> Image.Image:
    """Decode an encoded image, header first."""
    if not data:
        raise ImageLoadError(f"expected an encoded image, got {name} with zero bytes. Save or download it again.")
    if len(data) > max_bytes:
        raise ImageLoadError(f"expected at most {max_bytes} bytes, got more in {name}. Shrink it or raise `max_bytes`.")
    Image.init()
    kind, package = _name_media_file(data)
    if kind == "HEIF" and kind not in Image.OPEN and importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    if kind and kind not in formats:
        shown = "HEIC (HEIF)" if kind == "HEIF" else kind
        raise ImageLoadError(
            f"expected an image that the installed Pillow reads, got {name} in {shown}. Install what reads it "
            f"(pip install {package}), or save it as JPEG or PNG."
        )
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own bound, whatever `max_pixels` says; the second where warnings are errors.
        raise ImageLoadError(
            f"expected at most {max_pixels} pixels, got {name}, which Pillow refuses: {error} Shrink the image, or "
            "raise `max_pixels` and PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except _DECODER_ERRORS as error:
        reason = _find_reason(data, formats)
        if reason is None:
            got = f"{name}, whose content is not one (it begins with {data[:16]!r})"
        else:
            got = f"{name}, which is damaged or cut off ({reason})"
        raise ImageLoadError(
            f"expected an image ({', '.join(formats)}), got {got}. Check that the file is what its name says."
        ) from error
    with image:
        return _finish(image, name, max_pixels)


def _name_media_file(data: bytes) -> tuple[str, str]:
    """Format of an ISO media file, and the package that lets Pillow read it; empty strings for other files."""
    brands = data[8:64] if data[4:8] == b"ftyp" else b""
    if b"avif" in brands or b"avis" in brands:
        return "AVIF", "-U pillow"
    if any(brand in brands for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")):
        return "HEIF", "pillow-heif"
    return "", ""


def _find_reason(data: bytes, formats: list[str]) -> str | None:
    """Pillow's own reason against an image whose first bytes are of a known format; `Image.open` keeps it to itself."""
    for kind in formats:
        factory, accept = Image.OPEN[kind]
        accepted = accept is not None and accept(data[:16])
        if isinstance(accepted, str):  # a format that this build of Pillow lacks
            return accepted
        if accepted:
            try:
                factory(io.BytesIO(data), "")
            except _DECODER_ERRORS as error:
                return f"{kind}: {error or type(error).__name__}"
    return None


def _too_many_pixels(name: str, got: str, max_pixels: int) -> TooManyPixelsError:
    return TooManyPixelsError(
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
    except (*_DECODER_ERRORS, MemoryError, AttributeError) as error:  # the last from older Pillows: no file to seek in
        if getattr(image, "fp", image) is None or "closed" in str(error):
            raise ImageLoadError(
                f"expected an image that can be read, got {name}, whose file was closed before its pixels were loaded. "
                "Call load() before closing it, or pass the path."
            ) from error
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
