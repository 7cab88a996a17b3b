"""Text recognition with `paddleocr` 3.x, its models in local folders."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from verbalizers.backends.ocr import pad_slim, select_text_lines
from verbalizers.core.adapters import text_lines_from_paddleocr
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.structures import TextLines
from verbalizers.core.validation import check_range
from verbalizers.core.verbalizer import Verbalizer
from verbalizers.core.words import WordSettings

__all__ = ["PaddleOCRVerbalizer", "read_model_name"]

_MODEL_FILE = "inference.yml"


@register_verbalizer("ocr", "paddleocr")
@dataclass(eq=False, kw_only=True)
class PaddleOCRVerbalizer(Verbalizer):
    """PP-OCR through `paddleocr` 3.x.

    `PaddleOCR()` as it stands asks four model hosters for weights and fails where it reaches none. Here both models
    come from folders, and the three further models that its pipeline would load (page orientation, unwarping, line
    orientation) are off, so that nothing is fetched. Without the last one, text that stands on its head, or runs
    upwards, is not read: `options={"use_textline_orientation": True, "textline_orientation_model_name": ...,
    "textline_orientation_model_dir": ...}` switches it on.

    Attributes:
        text_detection_model_dir: folder of an inference model: `inference.yml` with `inference.json` or `.pdmodel`
            and `.pdiparams`, or with `inference.onnx` for `engine="onnxruntime"`.
        text_recognition_model_dir: the same for recognition.
        text_detection_model_name: e.g. "PP-OCRv5_mobile_det"; None = what the folder's inference.yml says.
        text_recognition_model_name: the same for recognition.
        threshold: lowest confidence of a line that is kept.
        engine: "paddle" (needs paddlepaddle), "onnxruntime", or None = paddleocr's choice.
        device: "cpu", "gpu:0" ...
        enable_mkldnn: oneDNN on the CPU; off, because paddlepaddle 3.3 crashes in it on these models.
        cpu_threads: threads of the Paddle engine.
        batch_size: lines of text that go through the recogniser at once.
        options: further arguments of `paddleocr.PaddleOCR`, e.g. `{"text_det_limit_side_len": 1280}`.
    """

    text_detection_model_dir: str | None = None
    text_recognition_model_dir: str | None = None
    text_detection_model_name: str | None = None
    text_recognition_model_name: str | None = None
    threshold: float = WordSettings.text_threshold
    engine: str | None = None
    device: str = "cpu"
    enable_mkldnn: bool = False
    cpu_threads: int = 4
    batch_size: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)
    version: ClassVar[int] = 2  # 2: the order of pages that are turned
    _not_fingerprinted: ClassVar[tuple[str, ...]] = ("device", "cpu_threads", "batch_size")
    _engine: Any = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range(self, "threshold")
        check_range(self, "batch_size", "cpu_threads", low=1, high=None)

    def predict(self, images: Sequence[np.ndarray]) -> list[TextLines]:
        """Run on uint8 `(H, W, 3)` RGB images. See `Verbalizer.predict`.

        Raises:
            ValueError: a model's folder is not given, or holds none.
            ImportError: paddleocr, or the engine it is to run on, is not installed.
        """
        # One lock for loading and reading: a pipeline keeps state between its steps.
        with self._lock:
            engine = self._load()
            # The engine expects BGR.
            pages = engine.predict([np.ascontiguousarray(pad_slim(image)[:, :, ::-1]) for image in images])
        return [select_text_lines(text_lines_from_paddleocr(page), self.threshold) for page in pages]

    def unload(self) -> None:
        """Forget the models and give their memory back; the next image loads them again."""
        with self._lock:
            self._engine = None

    def _load(self) -> Any:
        if self._engine is not None:
            return self._engine
        models = self._model_arguments()
        try:
            from paddleocr import PaddleOCR
        except ImportError as error:
            raise ImportError(f'this backend needs paddleocr: pip install "moai-vlm[paddleocr]" ({error})') from error
        # "Creating model" for every model is no news to anyone.
        logging.getLogger("paddlex").setLevel(logging.ERROR)
        arguments = {
            **models,
            "use_doc_orientation_classify": False,
            "use_doc_unwarping": False,
            "use_textline_orientation": False,
            "text_recognition_batch_size": self.batch_size,
            "device": self.device,
            "enable_mkldnn": self.enable_mkldnn,
            "cpu_threads": self.cpu_threads,
            **({} if self.engine is None else {"engine": self.engine}),
            **self.options,
        }
        self._engine = PaddleOCR(**arguments)
        return self._engine

    def _model_arguments(self) -> dict[str, str]:
        """The two folders and the names of the models in them."""
        arguments = {}
        for step in ("text_detection", "text_recognition"):
            folder = getattr(self, f"{step}_model_dir")
            if folder is None or not Path(folder).is_dir():
                got = "none" if folder is None else f"{str(folder)!r}, which is no folder"
                raise ValueError(
                    f"expected the folder of a PP-OCR model as {step}_model_dir, got {got}. paddleocr would fetch its "
                    "own models from the network, which this verbalizer never does: fetch one such as PP-OCRv5_mobile "
                    "once, unpack it, and pass text_detection_model_dir=... and text_recognition_model_dir=..."
                )
            arguments[f"{step}_model_dir"] = str(folder)
            arguments[f"{step}_model_name"] = getattr(self, f"{step}_model_name") or read_model_name(folder)
        return arguments


def read_model_name(folder: str | Path) -> str:
    """The model's name as its folder's inference.yml tells it.

    Raises:
        ValueError: there is no such file, or it tells none.
    """
    import yaml

    path = Path(folder) / _MODEL_FILE
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["Global"]["model_name"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected {path} to tell the model's name (Global: model_name), got {type(error).__name__}: {error}. Pass "
            "text_detection_model_name or text_recognition_model_name, and see that the folder holds an exported "
            "inference model."
        ) from error
