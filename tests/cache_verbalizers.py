"""Verbalizers that worker processes can import and whose every call leaves a mark on disk."""

import io
import os
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from verbalizers import Detections, LabelMap, Segments, Verbalizer, register_verbalizer

BAD_COLOR = (13, 13, 13)


def load_small(data: bytes) -> Image.Image:
    """An image of at most 100 x 100 pixels, as `load` of `build_cache`."""
    image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG"])
    if image.width * image.height > 10_000:
        raise ValueError(f"expected at most 10000 pixels, got {image.size}.")
    return image.convert("RGB")


def _note(path: str, image: np.ndarray) -> None:
    """Append one line at one stroke, from whatever process."""
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{image[0, 0].tolist()} {os.getpid()}\n".encode())
        os.close(descriptor)


@register_verbalizer("segmentation", "two_halves")
@dataclass(eq=False)
class TwoHalves(Verbalizer):
    """The left and the right half of every image, as segments with ids of any size."""

    ids: tuple = (1, 2)
    log: str = ""
    seconds: float = 0.0

    def predict(self, images):
        """Segments; slow on request."""
        found = []
        for image in images:
            _note(self.log, image)
            time.sleep(self.seconds)
            panoptic_map = np.full(image.shape[:2], self.ids[0], np.int32)
            panoptic_map[:, image.shape[1] // 2 :] = self.ids[1]
            found.append(Segments(panoptic_map, tuple(self.ids), ("left", "right"), np.array([0.9, 0.8], np.float32)))
        return found

    def fingerprint_settings(self):
        """The log is for the test, it changes no finding."""
        return {"ids": list(self.ids)}


@register_verbalizer("detection", "mean_colour")
@dataclass(eq=False)
class MeanColour(Verbalizer):
    """One box with the image's red value as its confidence; chokes on BAD_COLOR as told."""

    threshold: float = 0.0
    on_bad_color: str = "raise"

    def predict(self, images):
        """Detections."""
        found = []
        for image in images:
            if tuple(image[0, 0].tolist()) == BAD_COLOR and self.on_bad_color == "raise":
                raise ValueError("this colour is unlucky")
            if tuple(image[0, 0].tolist()) == BAD_COLOR and self.on_bad_color == "die":
                os._exit(9)
            box = np.array([[0, 0, image.shape[1], image.shape[0]]], np.float32)
            confidence = np.array([image[..., 0].mean() / 255], np.float32)
            found.append(Detections(box, ("thing",), confidence, image.shape[:2]))
        return found


@register_verbalizer("oddity", "unsayable")
@dataclass(eq=False)
class Unsayable(Verbalizer):
    """Answers with something that has no words."""

    def predict(self, images):
        """Sets, which are neither JSON nor a sentence."""
        return [{1, 2} for _ in images]


@register_verbalizer("pixels", "roots")
@dataclass(eq=False)
class PixelValues(Verbalizer):
    """A map of three channels without words: the roots of the image's values."""

    def predict(self, images):
        """Label maps."""
        return [LabelMap(np.sqrt(image.astype(np.float32))) for image in images]
