"""Every kind of image a user may hand over: the right RGB pixels, or an error that says what to do."""

import io
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
import torch
from encoded_images import GRADIENT, encode
from PIL import Image

from moai.processing.image_loading import DEFAULT_MAX_PIXELS, ImageLoadError, load_image


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "bytearray", "file", "pil", "array"])
def test_load_image_gives_same_pixels_when_source_kind_differs(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode(Image.fromarray(GRADIENT)))
    sources = {
        "path": path,
        "str": str(path),
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "file": io.BytesIO(path.read_bytes()),
        "pil": Image.open(path),
        "array": GRADIENT,
    }
    image = load_image(sources[kind])
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), GRADIENT)


def test_load_image_returns_copy_when_given_rgb_image() -> None:
    source = Image.fromarray(GRADIENT)
    image = load_image(source)
    image.putpixel((0, 0), (255, 255, 255))
    np.testing.assert_array_equal(np.asarray(source), GRADIENT)


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "ICO", "JPEG2000"])
def test_load_image_reads_every_listed_lossless_format_when_encoded(format: str) -> None:
    options = {"WEBP": {"lossless": True}}.get(format, {})
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:9, 2:7] = (255, 0, 0)
    np.testing.assert_array_equal(np.asarray(load_image(encode(Image.fromarray(pixels), format, **options))), pixels)


# ---------------------------------------------------------------- damaged and foreign content


def test_load_image_raises_when_jpeg_is_cut_off(tmp_path: pathlib.Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.jpg"
    path.write_bytes(encode(Image.fromarray(noise), "JPEG")[:1500])
    with pytest.raises(ImageLoadError, match=r"cut\.jpg.*damaged or cut off"):
        load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG", "JPEG2000", "PPM"])
def test_load_image_raises_only_its_own_error_when_bytes_are_damaged(format: str) -> None:
    rng = np.random.default_rng(1)
    data = bytearray(encode(Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)), format))
    failures = 0
    for _ in range(150):
        broken = bytearray(data[: int(rng.integers(1, len(data) + 1))])
        for _ in range(int(rng.integers(0, 6))):
            broken[int(rng.integers(0, len(broken)))] = int(rng.integers(0, 256))
        try:
            assert load_image(bytes(broken), max_pixels=10_000).mode == "RGB"
        except ImageLoadError:
            failures += 1
    assert failures > 50


def test_load_image_raises_when_file_is_empty(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(ImageLoadError, match=r"empty\.png' with zero bytes"):
        load_image(path)


def test_load_image_raises_when_text_is_named_png(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("dear diary")
    with pytest.raises(ImageLoadError, match=r"notes\.png.*begins with b'dear diary'"):
        load_image(path)


def test_load_image_refuses_postscript_when_pillow_would_run_an_interpreter() -> None:
    with pytest.raises(ImageLoadError, match="content is not one"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("source", [None, 3, 2.5, {"a": 1}, ["a.png"]])
def test_load_image_names_type_when_source_is_no_image(source: object) -> None:
    with pytest.raises(ImageLoadError, match=type(source).__name__):
        load_image(source)


def test_load_image_raises_when_file_is_opened_as_text() -> None:
    with pytest.raises(ImageLoadError, match="'rb'"):
        load_image(io.StringIO("text"))


# ---------------------------------------------------------------- paths


def test_load_image_raises_when_file_is_missing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ImageLoadError, match=r"nowhere\.png.*does not exist"):
        load_image(tmp_path / "nowhere.png")


def test_load_image_raises_when_path_is_directory(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ImageLoadError, match="directory"):
        load_image(tmp_path)


@pytest.mark.parametrize("path", ["a\0b.png", "", "x" * 5000])
def test_load_image_raises_its_error_when_path_is_impossible(path: str) -> None:
    with pytest.raises(ImageLoadError):
        load_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_load_image_does_not_wait_when_path_is_pipe(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageLoadError, match="no regular file"):
        load_image(tmp_path / "pipe.png")


# ---------------------------------------------------------------- size


def test_load_image_gives_one_pixel_when_image_is_1x1() -> None:
    image = load_image(encode(Image.new("RGB", (1, 1), (9, 8, 7))))
    assert image.size == (1, 1) and image.getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize(("side", "pixels"), [(30_000, 900_000_000), (9_000, 81_000_000)])
def test_load_image_refuses_before_decoding_when_header_is_huge(
    monkeypatch: pytest.MonkeyPatch, side: int, pixels: int
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    with pytest.raises(ImageLoadError, match=rf"at most {DEFAULT_MAX_PIXELS} pixels.*{pixels} pixels.*max_pixels"):
        load_image(png_header(side, side))


@pytest.mark.parametrize("source", ["bytes", "pil", "array"])
def test_load_image_applies_bound_when_max_pixels_is_given(source: str) -> None:
    image = Image.fromarray(GRADIENT)
    item = {"bytes": encode(image), "pil": image, "array": GRADIENT}[source]
    assert load_image(item, max_pixels=30).size == (5, 6)
    with pytest.raises(ImageLoadError, match="at most 29 pixels.*5x6 = 30"):
        load_image(item, max_pixels=29)


def test_load_image_applies_bound_when_max_bytes_is_given(tmp_path: pathlib.Path) -> None:
    data = encode(Image.fromarray(GRADIENT))
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for source in (path, data, io.BytesIO(data)):
        with pytest.raises(ImageLoadError, match=f"at most {len(data) - 1} bytes"):
            load_image(source, max_bytes=len(data) - 1)


# ---------------------------------------------------------------- modes


def test_load_image_converts_when_jpeg_is_cmyk() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # cyan 0, magenta and yellow full: red
    red, green, blue = load_image(encode(cmyk, "JPEG", quality=95)).getpixel((4, 4))
    assert red > 245 and green < 10 and blue < 10


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_load_image_scales_when_values_have_16_bits(mode: str) -> None:
    values = np.array([[0, 257, 32896], [65535, 128, 129]])
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (3, 2), values.astype(dtype).tobytes())
    expected = np.array([[0, 1, 128], [255, 0, 1]])  # rounded value / 257
    np.testing.assert_array_equal(np.asarray(load_image(image))[..., 1], expected)


def test_load_image_scales_when_png_file_has_16_bits() -> None:
    values = np.array([[0, 65535], [257 * 7, 257 * 200]], np.uint16)
    image = load_image(encode(Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(image)[..., 0], [[0, 255], [7, 200]])


def test_load_image_keeps_values_when_integers_fit_8_bits() -> None:
    image = Image.fromarray(np.array([[0, 255], [7, 200]], np.int32))
    assert image.mode == "I"
    np.testing.assert_array_equal(np.asarray(load_image(image))[..., 2], [[0, 255], [7, 200]])


@pytest.mark.parametrize("values", [[[-1, 5]], [[0, 70_000]]])
def test_load_image_raises_when_integers_exceed_16_bits(values: list[list[int]]) -> None:
    with pytest.raises(ImageLoadError, match=r"within 0\.\.65535"):
        load_image(Image.fromarray(np.array(values, np.int32)))


def test_load_image_scales_when_float_image_is_within_unit_range() -> None:
    np.testing.assert_array_equal(
        np.asarray(load_image(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))))[..., 0], [[0, 128, 255]]
    )
    np.testing.assert_array_equal(
        np.asarray(load_image(Image.fromarray(np.array([[0.0, 128.0, 255.0]], np.float32))))[..., 0], [[0, 128, 255]]
    )
    with pytest.raises(ImageLoadError, match="finite floats"):
        load_image(Image.fromarray(np.array([[0.0, np.nan]], np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_load_image_lays_on_white_when_image_has_alpha(mode: str) -> None:
    rgba = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 0, 255))
    rgba.putpixel((2, 0), (0, 0, 0, 51))  # a fifth black on white
    source = (rgba.convert("LA") if mode == "La" else rgba).convert(mode)
    np.testing.assert_array_equal(np.asarray(load_image(source))[0], [[255] * 3, [0] * 3, [204] * 3])


def test_load_image_lays_on_white_when_palette_has_transparent_entry() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = encode(image, transparency=0)
    assert Image.open(io.BytesIO(data)).mode == "P"
    np.testing.assert_array_equal(np.asarray(load_image(data))[0], [[255, 255, 255], [40, 50, 60]])


def test_load_image_lays_on_white_when_rgb_png_has_transparent_colour() -> None:
    data = encode(Image.fromarray(GRADIENT), transparency=tuple(int(v) for v in GRADIENT[0, 0]))
    pixels = np.asarray(load_image(data))
    assert pixels[0, 0].tolist() == [255, 255, 255] and (pixels[1:] == GRADIENT[1:]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV"])
def test_load_image_gives_rgb_when_mode_is_other(mode: str) -> None:
    white = load_image(Image.new("RGB", (2, 2), "white").convert(mode))
    assert white.mode == "RGB" and white.getpixel((0, 0)) == (255, 255, 255)


def test_load_image_takes_first_frame_when_gif_is_animated() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert load_image(data).getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_image_turns_upright_when_exif_says_rotated(orientation: int) -> None:
    turns = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(encode(Image.fromarray(GRADIENT), exif=exif))
    np.testing.assert_array_equal(np.asarray(image), turns[orientation](GRADIENT))


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    "array",
    [
        GRADIENT,
        GRADIENT.transpose(2, 0, 1),
        GRADIENT.astype(np.int64),
        GRADIENT.astype(np.uint16) * 257,
        GRADIENT.astype(np.float32) / 255,
        GRADIENT.astype(np.float16) / 255,
        torch.from_numpy(GRADIENT),
        torch.from_numpy(GRADIENT).permute(2, 0, 1).double() / 255,
        np.asfortranarray(GRADIENT),
        np.dstack([GRADIENT, np.full((6, 5), 255, np.uint8)]),
    ],
    ids=["hwc", "chw", "int64", "uint16", "float32", "float16", "torch", "torch-chw", "fortran", "rgba"],
)
def test_load_image_gives_same_pixels_when_array_layout_differs(array: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(load_image(array)), GRADIENT)


def test_load_image_reads_channels_first_when_torch_tensor_is_ambiguous() -> None:
    assert load_image(torch.zeros(3, 1, 1)).size == (1, 1)
    assert load_image(torch.zeros(3, 7, 4)).size == (4, 7)
    assert load_image(np.zeros((3, 7, 4), np.uint8)).size == (7, 3)  # numpy: channels last, here RGBA


def test_load_image_reads_bfloat16_when_torch_tensor_has_no_numpy_dtype() -> None:
    tensor = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)
    np.testing.assert_array_equal(np.asarray(load_image(tensor))[..., 0], [[0, 255]])


@pytest.mark.parametrize("array", [GRADIENT[..., 0], GRADIENT[..., :1], GRADIENT[..., 0][None]])
def test_load_image_repeats_channel_when_array_is_grey(array: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(load_image(array)), np.repeat(GRADIENT[..., :1], 3, axis=-1))


def test_load_image_gives_black_and_white_when_array_is_boolean() -> None:
    np.testing.assert_array_equal(np.asarray(load_image(np.array([[True, False]])))[..., 0], [[255, 0]])


@pytest.mark.parametrize("shape", [(5,), (2, 6, 4, 3), (6, 4, 2), (0, 4, 3), (6, 0), ()])
def test_load_image_names_shape_when_array_shape_is_wrong(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageLoadError) as error:
        load_image(np.zeros(shape, np.uint8))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.0, 255.0]]), r"within 0\.\.1, got 0\.0\.\.255\.0"),
        (np.array([[0.0, np.nan]]), r"within 0\.\.1"),
        (np.array([[-1, 5]]), r"within 0\.\.255, got -1\.\.5"),
        (np.array([[0, 256]]), r"within 0\.\.255, got 0\.\.256"),
        (np.array([["a", "b"]]), "dtype <U1"),
        (np.array([[1j, 2j]]), "dtype complex128"),
    ],
)
def test_load_image_says_range_when_array_values_are_wrong(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageLoadError, match=message):
        load_image(array)


def test_load_image_reads_a_file_object_again_when_it_can_go_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 3), "red").save(path)
    written = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(written, "PNG")  # its position is behind the image
    with path.open("rb") as buffered, path.open("rb", buffering=0) as raw:
        for file in (written, buffered, raw):
            assert [load_image(file).getpixel((0, 0)) for _ in range(2)] == [(255, 0, 0)] * 2
    with pytest.raises(ImageLoadError, match=r"a\.png.*closed file"):
        load_image(raw)


def test_load_image_says_so_when_a_pil_images_file_is_closed(tmp_path: pathlib.Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ImageLoadError, match="closed before its pixels were loaded"):
        load_image(image)


@pytest.mark.parametrize(
    ("brand", "kind", "package"),
    [(b"heic", "HEIF", "pillow-heif"), (b"mif1", "HEIF", "pillow-heif"), (b"avif", "AVIF", "pillow")],
)
def test_load_image_names_the_package_when_pillow_lacks_a_format(
    monkeypatch, brand: bytes, kind: str, package: str
) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, kind, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImageLoadError, match=rf"{kind}.*pip install (-U )?{package}\)"):
        load_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0miaf" + bytes(40))


def test_load_image_passes_pillows_reason_on_when_it_refuses(monkeypatch) -> None:
    buffer = io.BytesIO()
    Image.new("L", (40, 30)).save(buffer, "PNG")
    data = buffer.getvalue()
    with pytest.raises(ImageLoadError, match="PNG: broken PNG file"):  # Image.open says only that it knows no such file
        load_image(data[:16] + b"\xff" * 4 + data[20:])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ImageLoadError, match=r"exceeds limit of 1000 pixels.*MAX_IMAGE_PIXELS"):
        load_image(data, max_pixels=10**9)
