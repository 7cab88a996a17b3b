"""Open-vocabulary detection with OWLv2."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from verbalizers.backends.text_embeddings import embed_texts, embeddings_path, read_or_write
from verbalizers.core.adapters import detections_from_transformers, to_numpy
from verbalizers.core.boxes import is_inside_image, nms_indices
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.sentences import verbalize_detections
from verbalizers.core.structures import Detections
from verbalizers.core.validation import check_range
from verbalizers.core.vocabularies import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    import torch

__all__ = ["Owlv2Detector", "select_detections", "verbalize_detections"]


#: OWLv2's processor pads an image to a square before it shrinks it: one of 20,000 x 40 pixels would take 26 GB.
_LONGEST_SIDE = 2048


def _limit_longest_side(image: np.ndarray) -> np.ndarray:
    """The image `(H, W, 3)`, uint8, its longest side `_LONGEST_SIDE` at most."""
    longest = max(image.shape[:2])
    if longest <= _LONGEST_SIDE:
        return image
    height, width = (max(1, round(side * _LONGEST_SIDE / longest)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _resize_blurred(image_processor: Any, image: torch.Tensor, size: Any, **options: Any) -> torch.Tensor:
    """OWLv2's own resizing, sooner: a Gaussian blur, then bilinear.

    transformers blurs with a square of up to hundreds of weights per pixel; a Gaussian is the same as one line of them
    after the other.

    Args:
        image_processor: of OWLv2.
        image: float `(B, 3, h, w)`.
        size: its `height` and `width` are those of the result.
        **options: as for the processor's `resize`.
    """
    import torch
    from torch.nn.functional import pad
    from transformers.image_processing_backends import TorchvisionBackend

    height, width = image.shape[-2:]
    factor = height / size.height
    if factor <= 1 or (height, size.height) != (width, size.width):
        return type(image_processor).resize(image_processor, image, size, **options)
    sigma = (factor - 1) / 2
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).tolist()
    padded = pad(image, (radius,) * 4, mode="reflect")
    lines = _sum_shifted([padded[..., i : i + height, :] for i in range(len(weights))], weights)
    blurred = _sum_shifted([lines[..., i : i + width] for i in range(len(weights))], weights)
    return TorchvisionBackend.resize(image_processor, blurred, size=size, antialias=False)


def _sum_shifted(parts: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """The weighted sum of tensors of one shape."""
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.add_(part, alpha=weight)
    return total


def select_detections(
    detections: Detections, threshold: float, nms_threshold: float | None = None, max_detections: int | None = None
) -> Detections:
    """The detections above a threshold, highest confidence first.

    Args:
        detections: what the model gave.
        threshold: lowest confidence.
        nms_threshold: of boxes with the SAME name that overlap by more than this IoU the most confident is kept; None
            keeps all.
        max_detections: how many are kept at most; None keeps all.
    """
    order = np.argsort(-detections.confidence, kind="stable")
    order = order[detections.confidence[order] >= np.float32(threshold)]
    if nms_threshold is not None:
        names = np.array([detections.class_names[i] for i in order])
        order = order[nms_indices(detections.boxes_xyxy[order], names, nms_threshold)]
    order = order[:max_detections]
    names = tuple(detections.class_names[i] for i in order)
    return Detections(detections.boxes_xyxy[order], names, detections.confidence[order], detections.image_size_hw)


@register_verbalizer("detection", "owlv2")
@dataclass(eq=False, kw_only=True)
class Owlv2Detector(CheckpointVerbalizer):
    """OWLv2 (arXiv 2306.09683): finds whatever the vocabulary names.

    The released MoAI encodes its 1,847 names anew for every image. Here each vocabulary is encoded once per
    process, and once ever with `cache_dir`; images then meet the stored embeddings.

    Attributes:
        vocabulary: the names to look for, a text file with one per line, or a published list such as "lvis" or
            "objects365+imagenet"; see `vocabularies.load_vocabulary`.
        covered_by: names to leave out because another verbalizer finds them, in the same forms: "coco_panoptic"
            beside a panoptic segmenter.
        template: how a name becomes a query, e.g. "a photo of a {}"; the release asks for the bare name.
        threshold: lowest confidence (the released MoAI: 0.5).
        nms_threshold: see `select_detections`; the release keeps every box (None).
        max_detections: see `select_detections`.
        cache_dir: folder for text embeddings (safetensors); None = memory only.
    """

    vocabulary: Vocabulary
    covered_by: Vocabulary = ()
    template: str = "{}"
    threshold: float = 0.5
    nms_threshold: float | None = 0.7
    max_detections: int = 100
    cache_dir: str | None = None
    # `covered_by` has done its work on `vocabulary`, which counts.
    version: ClassVar[int] = 2  # 2: without boxes in the padding
    _not_fingerprinted: ClassVar[tuple[str, ...]] = (
        *CheckpointVerbalizer._not_fingerprinted, "cache_dir", "covered_by"
    )  # fmt: skip
    _embeddings: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _text_lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vocabulary = load_vocabulary(self.vocabulary, self.covered_by)
        if "{}" not in self.template:
            raise ValueError(f"`template` must contain {{}} for the name, got {self.template!r}.")
        check_range(self, "threshold")

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        from transformers import AutoProcessor, Owlv2ForObjectDetection

        model = from_pretrained(Owlv2ForObjectDetection, self.checkpoint, dtype=dtype, use_safetensors=True)
        processor = from_pretrained(AutoProcessor, self.checkpoint)
        processor.image_processor.resize = partial(_resize_blurred, processor.image_processor)
        # bfloat16 knows 1/256 of the image's width at best: the few layers that place boxes stay in float32.
        model.box_head.float()
        model.box_bias = model.compute_box_bias(model.num_patches_height, model.num_patches_width).float()
        return SimpleNamespace(model=model.to(device).eval(), processor=processor)

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[Detections]:
        model, image_processor = loaded.model, loaded.processor.image_processor
        queries = self.embed_vocabulary()  # (Q, D)
        inputs = image_processor(
            images=[_limit_longest_side(image) for image in images],
            input_data_format="channels_last",
            return_tensors="pt",
        )
        pixel_values = inputs.pixel_values.to(model.device, model.dtype)
        feature_map, _ = model.image_embedder(pixel_values)  # (B, h, w, D)
        features = feature_map.flatten(1, 2)  # (B, h * w, D)
        logits, _ = model.class_predictor(features, queries.expand(len(images), -1, -1))  # (B, h * w, Q)
        boxes = model.box_predictor(features.float(), feature_map)  # (B, h * w, 4) normalised cxcywh, float32
        size_hw = images[0].shape[:2]
        # threshold -1 keeps every box: ours is inclusive, transformers' is not.
        results = image_processor.post_process_object_detection(
            SimpleNamespace(logits=logits.float(), pred_boxes=boxes), -1.0, [size_hw] * len(images)
        )
        found = []
        for result in results:
            rows = {name: to_numpy(values) for name, values in result.items()}
            # The model sees a padded square: what it finds in the padding is nothing.
            keep = is_inside_image(rows["boxes"], size_hw) & (rows["scores"] >= np.float32(self.threshold))
            rows = {name: values[keep] for name, values in rows.items()}
            found.append(detections_from_transformers(rows, self.vocabulary, size_hw))
        return [select_detections(d, self.threshold, self.nms_threshold, self.max_detections) for d in found]

    def embed_vocabulary(self) -> torch.Tensor:
        """Text embeddings `(Q, D)` of the vocabulary, unit length, on the model's device; computed once."""
        import torch

        loaded = self.load()
        device, dtype = loaded.model.device, loaded.model.dtype
        with self._text_lock, torch.inference_mode():
            words = (self.template, *self.vocabulary)
            if words not in self._embeddings:
                path = embeddings_path(self.cache_dir, "owlv2", self.checkpoint, (str(dtype), *words))
                self._embeddings[words] = read_or_write(path, lambda: self._encode(loaded))
            return self._embeddings[words].to(device, dtype)

    def forget_embeddings(self) -> None:
        """Drop the embeddings in memory; the next image reads them from `cache_dir` or computes them."""
        with self._text_lock:
            self._embeddings.clear()

    def _encode(self, loaded: SimpleNamespace) -> torch.Tensor:
        model = loaded.model

        def embed(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            inputs = input_ids.to(model.device), attention_mask.to(model.device)
            return model.owlv2.get_text_features(*inputs).pooler_output

        queries = [self.template.format(name) for name in self.vocabulary]
        max_length = model.config.text_config.max_position_embeddings
        return embed_texts(queries, loaded.processor.tokenizer, max_length, embed)
