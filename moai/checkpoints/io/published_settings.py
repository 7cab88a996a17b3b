"""The verbalizers that the released MoAI looks with: models and thresholds, as entries of a ``verbalizers.json``.

Models and thresholds are those of the released code (ByungKwanLee/MoAI: ``moai/load_moai.py``, ``moai/arch_moai.py``,
``moai/utils/utils.py``). Its learned scene graph has no working download; relations are read off geometry in its place.
"""

from __future__ import annotations

from typing import Any

from verbalizers.core.vocabularies import available_vocabularies

__all__ = ["PUBLISHED_DETECTOR", "PUBLISHED_SEGMENTER", "PUBLISHED_VOCABULARIES", "published_entries"]

PUBLISHED_SEGMENTER = "facebook/mask2former-swin-base-coco-panoptic"
PUBLISHED_DETECTOR = "google/owlv2-base-patch16-ensemble"
#: The release asks for ADE20K's 847 names and ImageNet's 1,000.
PUBLISHED_VOCABULARIES = ("ade20k", "imagenet")
#: OWLv2 at 960 px has as many boxes: none is left out, as in the release.
_ALL_BOXES = 3600


def published_entries() -> dict[str, dict[str, Any]]:
    """Kind -> entry. The detector looks for those of the published names that are installed here."""
    known = [name for name in PUBLISHED_VOCABULARIES if name in available_vocabularies()]
    segmentation = {
        "checkpoint": PUBLISHED_SEGMENTER,
        "threshold": 0.5,
        "mask_threshold": 0.95,
        "overlap_mask_area_threshold": 0.8,
    }
    detection = {
        "checkpoint": PUBLISHED_DETECTOR,
        "vocabulary": "+".join(known) or PUBLISHED_VOCABULARIES[-1],
        "threshold": 0.5,
        "nms_threshold": None,
        "max_detections": _ALL_BOXES,
    }
    return {
        "segmentation": {"kind": "segmentation", "backend": "transformers", "settings": segmentation},
        "detection": {"kind": "detection", "backend": "owlv2", "settings": detection},
        "scene_graph": {"kind": "scene_graph", "backend": "geometric"},
        "ocr": {"kind": "ocr", "backend": "rapidocr", "settings": {"threshold": 0.85}},
    }
