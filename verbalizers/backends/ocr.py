"""Text recognition: what all its backends share, and the default one, RapidOCR.

The others are in ocr_paddleocr.py and ocr_transformers.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from verbalizers.backends.ocr_order import orient_quads, reading_order
from verbalizers.core.adapters import text_lines_from_rapidocr
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.sentences import verbalize_text_lines
from verbalizers.core.structures import TextLines
from verbalizers.core.validation import check_range
from verbalizers.core.verbalizer import Verbalizer
from verbalizers.core.words import WordSettings

__all__ = [
    "RapidOCRVerbalizer",
    "select_text_lines",
    "verbalize_text_lines",
    "pad_slim",
]


def select_text_lines(text_lines: TextLines, threshold: float) -> TextLines:
    """The lines of at least this confidence, in reading order, their corners from the text's top left on."""
    quads = orient_quads(text_lines.quads, text_lines.texts)
    order = reading_order(quads)
    kept = [i for i in order if text_lines.confidence[i] >= np.float32(threshold)]
    texts = tuple(text_lines.texts[i] for i in kept)
    return TextLines(quads[kept].reshape(-1, 4, 2), texts, text_lines.confidence[kept])


def pad_slim(image: np.ndarray, max_aspect_ratio: int = 4) -> np.ndarray:
    """Add a border at the right or bottom of an image that is more than `max_aspect_ratio` times longer than
    wide.

    PP-OCR's detector enlarges the short side: at 608 pixels an image of 3 x 900 would become 608 x 182,400.
    Coordinates do not move; the border repeats the edge's median colour.
    """
    height, width = image.shape[:2]
    short = -(-max(height, width) // max_aspect_ratio)
    if min(height, width) >= short:
        return image
    padded_hw = (max(height, short), max(width, short))
    edge = image[-1] if height < width else image[:, -1]
    padded = np.empty((*padded_hw, 3), dtype=np.uint8)
    padded[:] = np.median(edge, axis=0).astype(np.uint8)
    padded[:height, :width] = image
    return padded


@register_verbalizer("ocr", "rapidocr")
@dataclass(eq=False)
class RapidOCRVerbalizer(Verbalizer):
    """PP-OCR's ONNX models through the `rapidocr` package, which carries them: works offline, on the CPU.

    Attributes:
        threshold: lowest confidence of a line that is kept.
        num_threads: onnxruntime threads per model; 0 = onnxruntime's choice (all cores). More than one answer
            sooner where cores are free, at twice the processor time.
        use_memory_arena: let onnxruntime keep the memory that one image took for the next one, instead of asking the
            system for it layer by layer.
        reread_below: in an image that was shrunk (its longer side has over 2,000 pixels), lines below this confidence
            are cut out of the image as it is and read again; the surer reading counts. 0 = never.
        shortest_side: an image whose shorter side has fewer pixels is enlarged to it before text is looked for; a
            multiple of 32. rapidocr's own is 736, at 1.5 times the processor time (docs/verbalizers.md); letters of 8
            pixels need no more than 608.
        params: further rapidocr parameters, e.g. `{"Rec.model_path": "my.onnx"}`; see rapidocr's config.yaml.
    """

    threshold: float = WordSettings.text_threshold
    num_threads: int = 1
    use_memory_arena: bool = True
    reread_below: float = 0.98
    shortest_side: int = 608
    params: Mapping[str, Any] = field(default_factory=dict)
    version: ClassVar[int] = (
        3  # 2: the order of pages that are turned; 3: doubtful lines of large images are read again
    )
    _not_fingerprinted: ClassVar[tuple[str, ...]] = ("num_threads", "use_memory_arena")
    _engine: Any = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range(self, "threshold", "reread_below")
        check_range(self, "num_threads", high=None)
        check_range(self, "shortest_side", low=32, high=None)

    def predict(self, images: Sequence[np.ndarray]) -> list[TextLines]:
        """Run on uint8 `(H, W, 3)` RGB images. See `Verbalizer.predict`.

        Raises:
            ImportError: rapidocr or onnxruntime is not installed.
        """
        # One lock for loading and reading: rapidocr keeps state between its detection and recognition steps.
        with self._lock:
            engine = self._load()
            # The engine expects BGR.
            pages = [np.ascontiguousarray(pad_slim(image)[:, :, ::-1]) for image in images]
            found = [_read_page(engine, page, self.reread_below) for page in pages]
        return [select_text_lines(text_lines, self.threshold) for text_lines in found]

    def _load(self) -> Any:
        if self._engine is not None:
            return self._engine
        try:
            import onnxruntime  # noqa: F401 - rapidocr itself reports its absence only by failing later
            from rapidocr import RapidOCR
        except ImportError as error:
            message = f'reading text needs rapidocr: pip install "moai-vlm[ocr]" ({error})'
            raise ImportError(message) from error
        settings: dict[str, Any] = {
            "Global.log_level": "error",
            "Det.limit_side_len": self.shortest_side,
            "EngineConfig.onnxruntime.enable_cpu_mem_arena": self.use_memory_arena,
        }
        if self.num_threads:
            settings["EngineConfig.onnxruntime.intra_op_num_threads"] = self.num_threads
            settings["EngineConfig.onnxruntime.inter_op_num_threads"] = 1
        # "Nothing found" is an answer here, not a warning.
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        engine = RapidOCR(params={**settings, **self.params})
        if engine.use_det:  # rapidocr 3.9 has its detector from the start, later ones with the first image
            _normalize_by_table(engine.text_det or engine._load_det_model())
        self._engine = engine
        return engine


def _normalize_by_table(detector: Any) -> None:
    """Let rapidocr's detector look up what a pixel becomes, instead of computing it in 64 bits for each: the same."""
    import cv2

    get_preprocess = detector.get_preprocess

    def with_table(*arguments: Any) -> Any:
        steps = get_preprocess(*arguments)
        levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        table = steps.normalize(levels).astype(np.float32)  # (1, 256, 3)
        steps.normalize = lambda page: cv2.LUT(page, table)
        return steps

    detector.get_preprocess = with_table


def _read_page(engine: Any, page: np.ndarray, reread_below: float) -> TextLines:
    """What rapidocr reads on a uint8 `(H, W, 3)` BGR page; doubtful lines of a page that it shrank twice.

    Its own `__call__` does the same, but keeps to itself which lines it turned half round, and resizes every line that
    it cut out once more for a caller who wants to see it.
    """
    from rapidocr.utils.process_img import map_boxes_to_original

    resized, record = engine.preprocess_img(page)
    found, classified, read, _ = engine.run_ocr_steps(resized, record)
    if found.boxes is None or read.txts is None:
        return text_lines_from_rapidocr(None)
    boxes = map_boxes_to_original(found.boxes, record, *page.shape[:2])
    labels = classified.cls_res or [("0", 1.0)] * len(boxes)
    is_turned = [label == "180" and score > engine.text_cls.cls_thresh for label, score in labels]
    lines = list(zip(read.txts, read.scores, strict=True))
    if resized.shape[0] < page.shape[0]:
        lines = [
            max(line, _read_line(engine, page, box, turned), key=lambda each: each[1])
            if line[1] < reread_below
            else line
            for line, box, turned in zip(lines, boxes, is_turned, strict=True)
        ]
    kept = [i for i, (text, score) in enumerate(lines) if text.strip() and score >= engine.text_score]
    texts, scores = [lines[i][0] for i in kept], [lines[i][1] for i in kept]
    output = SimpleNamespace(boxes=boxes[kept], txts=texts, scores=scores)
    return text_lines_from_rapidocr(output, [is_turned[i] for i in kept])


def _read_line(engine: Any, page: np.ndarray, quad: np.ndarray, is_turned: bool) -> tuple[str, float]:
    """Text and confidence of one line, cut out of the page as it is."""
    from rapidocr.ch_ppocr_rec import TextRecInput
    from rapidocr.utils.process_img import get_rotate_crop_image

    line = get_rotate_crop_image(page, np.asarray(quad, dtype=np.float32))
    if not line.size:
        return "", 0.0
    line = np.ascontiguousarray(line[::-1, ::-1]) if is_turned else line
    read = engine.text_rec(TextRecInput(img=[line], return_word_box=False))
    return read.txts[0], float(read.scores[0])
