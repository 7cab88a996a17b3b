"""Text recognition with transformers' PP-OCR models: a detector finds lines, a recogniser reads them.

Unlike the other backends these run wherever torch does: on a GPU, in half precision, in batches. The recogniser sees
the lines of all images of a call together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from verbalizers.backends.ocr import pad_slim, select_text_lines
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.structures import TextLines
from verbalizers.core.validation import check_range
from verbalizers.core.words import WordSettings

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersOCR", "cut_out_line"]

#: Widths of recognised lines are padded to multiples of this, so that lines of many widths share few batches.
WIDTH_STEP = 64


@register_verbalizer("ocr", "transformers")
@dataclass(eq=False, kw_only=True)
class TransformersOCR(CheckpointVerbalizer):
    """PP-OCRv5 and v6 detection and recognition from two folders or hub names.

    Attributes:
        checkpoint: the text detector's, e.g. "PaddlePaddle/PP-OCRv5_server_det_safetensors".
        recognition_checkpoint: the recogniser's, e.g. "PaddlePaddle/PP-OCRv5_server_rec_safetensors".
        threshold: lowest confidence of a line that is kept.
        pixel_threshold: probability above which a pixel belongs to text.
        box_threshold: mean probability that a found line must reach.
        unclip_ratio: how far the found line, which the model draws too slim, is widened: area / outline times this.
        recognition_batch_size: lines that go through the recogniser at once.
    """

    recognition_checkpoint: str
    threshold: float = WordSettings.text_threshold
    pixel_threshold: float = 0.3
    box_threshold: float = 0.6
    unclip_ratio: float = 1.5
    recognition_batch_size: int = 32
    version: ClassVar[int] = 2  # 2: the order of pages that are turned, and pages that stand on their head
    _not_fingerprinted: ClassVar[tuple[str, ...]] = (
        *CheckpointVerbalizer._not_fingerprinted,
        "recognition_batch_size",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recognition_checkpoint = str(self.recognition_checkpoint)
        check_range(self, "threshold", "pixel_threshold", "box_threshold")
        check_range(self, "unclip_ratio", high=None, is_open=True)
        check_range(self, "recognition_batch_size", low=1, high=None)

    def predict(self, images: Sequence[np.ndarray]) -> list[TextLines]:
        """Run on uint8 `(H, W, 3)` RGB images. See `Verbalizer.predict`.

        Lines of equal width share a batch, whichever image they are from, and a line reads the same alone: the
        widths are rounded up by what is on the line itself, not by its neighbours in the batch.

        Raises:
            ImportError: torchvision or OpenCV, which these models' processors need, is not installed.
            ValueError: a checkpoint cannot be loaded or does not fit its alphabet.
        """
        import torch

        pages = [pad_slim(image) for image in images]
        quads = super().predict(pages)  # per image (N, 4, 2)
        loaded = self.load()
        lines = [[cut_out_line(page, quad) for quad in found] for page, found in zip(pages, quads, strict=True)]
        with self._on_device(loaded), torch.inference_mode():
            read = self._read_pages(loaded, lines)
            # These models know no direction: a page most of which cannot be read may stand on its head.
            unsure = [i for i, texts in enumerate(read) if 2 * self._count_sure(texts)[0] < len(texts)]
            turned = self._read_pages(loaded, [[np.rot90(line, 2).copy() for line in lines[i]] for i in unsure])
        for index, texts in zip(unsure, turned, strict=True):
            if self._count_sure(texts) > self._count_sure(read[index]):
                read[index], quads[index] = texts, np.roll(quads[index], 2, axis=1)
        return [self._to_text_lines(found, texts) for found, texts in zip(quads, read, strict=True)]

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        try:
            import cv2  # noqa: F401
            import torchvision  # noqa: F401
        except ImportError as error:
            line = 'pip install "moai-vlm[ocr]" torchvision'
            raise ImportError(
                f"transformers' PP-OCR processors need OpenCV and torchvision: {line} ({error})"
            ) from error
        from transformers import AutoImageProcessor, AutoModelForObjectDetection, AutoModelForTextRecognition

        detector = from_pretrained(AutoModelForObjectDetection, self.checkpoint, dtype=dtype, use_safetensors=True)
        recogniser = from_pretrained(
            AutoModelForTextRecognition, self.recognition_checkpoint, dtype=dtype, use_safetensors=True
        )
        detection_processor = from_pretrained(AutoImageProcessor, self.checkpoint)
        recognition_processor = from_pretrained(AutoImageProcessor, self.recognition_checkpoint)
        for processor, method, folder in (
            (detection_processor, "_boxes_from_bitmap", self.checkpoint),
            (recognition_processor, "post_process_text_recognition", self.recognition_checkpoint),
        ):
            if not hasattr(processor, method):
                raise ValueError(
                    f"expected a PP-OCR model in {folder!r}, got one with {type(processor).__name__}. checkpoint is "
                    "the text detector's folder, recognition_checkpoint the recogniser's."
                )
        num_letters, num_classes = len(recognition_processor.character_list), recogniser.config.head_out_channels
        if num_letters != num_classes:
            raise ValueError(
                f"{self.recognition_checkpoint!r} recognises {num_classes} letters, but its preprocessor_config.json "
                f"names {num_letters} in character_list. The blank comes first, the space last."
            )
        return SimpleNamespace(
            model=detector.to(device).eval(),
            recogniser=recogniser.to(device).eval(),
            detection_processor=detection_processor,
            recognition_processor=recognition_processor,
        )

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[np.ndarray]:
        """Where text stands: float32 `(N, 4, 2)` quads per image, clockwise from the top left."""
        import torch

        model, processor = loaded.model, loaded.detection_processor
        inputs = processor(images=images, input_data_format="channels_last", return_tensors="pt")
        outputs = model(inputs.pixel_values.to(model.device, model.dtype))
        results = processor.post_process_object_detection(
            SimpleNamespace(last_hidden_state=outputs.last_hidden_state.float()),  # probabilities (B, 1, h, w)
            threshold=self.pixel_threshold,
            target_sizes=[torch.tensor(image.shape[:2]) for image in images],
            box_threshold=self.box_threshold,
            unclip_ratio=self.unclip_ratio,
        )
        return [result["boxes"].cpu().numpy().astype(np.float32).reshape(-1, 4, 2) for result in results]

    def _count_sure(self, read: list[tuple[str, float]]) -> tuple[int, int]:
        """How many lines are read with enough confidence, and how many letters they have."""
        sure = [len(text) for text, confidence in read if text and confidence >= np.float32(self.threshold)]
        return len(sure), sum(sure)

    def _read_pages(self, loaded: SimpleNamespace, pages: list[list[np.ndarray]]) -> list[list[tuple[str, float]]]:
        read = iter(self._read_lines(loaded, [line for lines in pages for line in lines]))
        return [[next(read) for _ in lines] for lines in pages]

    def _read_lines(self, loaded: SimpleNamespace, lines: list[np.ndarray]) -> list[tuple[str, float]]:
        """Text and confidence of each cut-out line, uint8 `(h, w, 3)`."""
        import torch
        from torch.nn.functional import pad

        model, processor = loaded.recogniser, loaded.recognition_processor
        # One by one: in a batch the processor would stretch every line to the width of the widest.
        prepared = [processor(images=line, input_data_format="channels_last", return_tensors="pt") for line in lines]
        by_width: dict[int, list[int]] = {}
        for index, inputs in enumerate(prepared):
            width = -(-inputs.pixel_values.shape[3] // WIDTH_STEP) * WIDTH_STEP
            by_width.setdefault(width, []).append(index)
        read: list[tuple[str, float]] = [("", 0.0)] * len(lines)
        for width, indices in by_width.items():
            for start in range(0, len(indices), self.recognition_batch_size):
                chunk = indices[start : start + self.recognition_batch_size]
                pixels = [prepared[i].pixel_values for i in chunk]  # each (1, 3, h, w)
                # Zero is the middle grey with which PP-OCR fills up short lines in training.
                batch = torch.cat([pad(p, (0, width - p.shape[3])) for p in pixels])
                outputs = model(batch.to(model.device, model.dtype))
                letters = SimpleNamespace(last_hidden_state=outputs.last_hidden_state.float())  # (B, steps, letters)
                for index, result in zip(chunk, processor.post_process_text_recognition(letters), strict=True):
                    if result["text"]:  # else its score is the mean of nothing
                        read[index] = (result["text"], min(1.0, float(result["score"])))
        return read

    def _to_text_lines(self, quads: np.ndarray, read: list[tuple[str, float]]) -> TextLines:
        kept = [i for i, (text, _) in enumerate(read) if text]
        texts, scores = [read[i][0] for i in kept], [read[i][1] for i in kept]
        return select_text_lines(TextLines(quads[kept].reshape(-1, 4, 2), texts, scores), self.threshold)


def cut_out_line(image: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """A line of text, straightened; one that stands upright is turned a quarter to the left, as PP-OCR does.

    Args:
        image: uint8 `(H, W, 3)`.
        quad: `(4, 2)` corners x, y, clockwise from the top left.

    Returns:
        uint8 `(h, w, 3)`, as large as the quad.
    """
    corners = np.asarray(quad, dtype=np.float64)
    sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)  # top, right, bottom, left
    width, height = (max(1, round(max(pair))) for pair in ((sides[0], sides[2]), (sides[1], sides[3])))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)
    coefficients = _perspective(target, corners)
    size, bicubic = (width, height), Image.Resampling.BICUBIC
    line = Image.fromarray(image).transform(size, Image.Transform.PERSPECTIVE, coefficients, bicubic)
    result = np.array(line)  # a copy that torch may own
    return np.ascontiguousarray(np.rot90(result)) if height >= 1.5 * width else result


def _perspective(source: np.ndarray, target: np.ndarray) -> Any:
    """Eight coefficients of the projection that takes four points `(4, 2)` to four others (as Pillow wants them)."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    # Corners on one line have no projection; least squares then gives a thin strip instead of an error.
    return np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0].tolist()
