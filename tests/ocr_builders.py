"""Images with text, and folders of real PP-OCR models made from what the rapidocr package carries."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

SIGN_TEXTS = ("OPEN 24 HOURS", "EXIT", "Room 17")


def draw_sign() -> np.ndarray:
    """uint8 (240, 480, 3): three pieces of text on two lines, drawn out of order."""
    image = Image.new("RGB", (480, 240), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(36)
    pen.text((250, 126), "Room 17", fill="blue", font=font)
    pen.text((20, 30), "OPEN 24 HOURS", fill="black", font=font)
    pen.text((20, 120), "EXIT", fill="red", font=font)
    return np.asarray(image)


def draw_page(num_columns: int, degrees: int) -> tuple[np.ndarray, list[str]]:
    """A page of letters of several sizes, skewed by 4 degrees and turned clockwise; and its lines in reading order."""
    page, lines, letters = Image.new("RGB", (900, 480), "white"), [], iter("ABCDEFGHIJKLMNOP")
    pen = ImageDraw.Draw(page)
    for column in range(num_columns):
        y = 30
        for size in (30, 22, 26, 36):
            lines.append(f"{next(letters)} winter morning")
            pen.text((60 + 430 * column, y), lines[-1], fill="black", font=ImageFont.load_default(size))
            y += 3 * size
    skewed = page.rotate(-4, expand=True, fillcolor="white", resample=Image.Resampling.BICUBIC)
    return np.array(skewed.rotate(-degrees, expand=True)), lines


def bundled_onnx(step: str) -> Path:
    """rapidocr's PP-OCRv6 small model for "det" or "rec"; skips where it is not."""
    spec = find_spec("rapidocr")
    if spec is None or spec.origin is None:
        pytest.skip("rapidocr, whose models this test reads, is not installed")
    path = Path(spec.origin).parent / "models" / f"PP-OCRv6_{step}_small.onnx"
    if not path.is_file():
        pytest.skip(f"this version of rapidocr carries no {path.name}")
    return path


def write_paddle_folders(folder: Path) -> dict[str, str]:
    """rapidocr's models as paddleocr wants them: `inference.onnx` beside an `inference.yml`."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(bundled_onnx("rec")), providers=["CPUExecutionProvider"])
    letters = session.get_modelmeta().custom_metadata_map["character"].split("\n")
    decode = {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}
    normalize = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": "1./255.", "order": "hwc"}
    detection = {
        "Global": {"model_name": "PP-OCRv6_small_det"},
        "PreProcess": {
            "transform_ops": [
                decode,
                {"DetResizeForTest": {"resize_long": 960}},
                {"NormalizeImage": normalize},
                {"ToCHWImage": None},
                {"KeepKeys": {"keep_keys": ["image", "shape", "polys", "ignore_tags"]}},
            ]
        },
        "PostProcess": {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "unclip_ratio": 1.5},
    }
    recognition = {
        "Global": {"model_name": "PP-OCRv6_small_rec"},
        "PreProcess": {"transform_ops": [decode, {"RecResizeImg": {"image_shape": [3, 48, 320]}}]},
        "PostProcess": {"name": "CTCLabelDecode", "character_dict": letters},
    }
    settings = {}
    for step, name, content in (("det", "detection", detection), ("rec", "recognition", recognition)):
        place = folder / name
        place.mkdir(parents=True)
        shutil.copy(bundled_onnx(step), place / "inference.onnx")
        (place / "inference.yml").write_text(json.dumps(content))  # JSON is YAML
        settings[f"text_{name}_model_dir"] = str(place)
    return settings
