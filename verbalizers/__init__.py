"""Computer vision in words: images -> findings -> sentences.

Importing this package needs numpy and Pillow only; every backend is imported when it is first used.
"""

from verbalizers.base import (
    Verbalizer,
    available_verbalizers,
    build_verbalizer,
    register_drawing,
    register_verbalizer,
    register_words,
)
from verbalizers.cache import Verbalization, VerbalizationCache
from verbalizers.checkpoints import CheckpointVerbalizer
from verbalizers.depth import DepthMap
from verbalizers.detection import verbalize_detections
from verbalizers.detection_ultralytics import UltralyticsDetector
from verbalizers.ocr import verbalize_text_lines
from verbalizers.ocr_paddleocr import PaddleOCRVerbalizer
from verbalizers.ocr_transformers import TransformersOCR
from verbalizers.scene import SCENE_FIELDS, parse_scene, verbalize_finding, verbalize_scene
from verbalizers.scene_graph import verbalize_relations
from verbalizers.scene_graph_geometric import GeometricSceneGraph
from verbalizers.segmentation import pascal_colors, render_segmentation_map, verbalize_segments
from verbalizers.structures import Detections, Finding, Relations, Scene, Segments, TextLines, register_finding
from verbalizers.words import WordSettings, join_sentences

__all__ = [
    "SCENE_FIELDS",
    "CheckpointVerbalizer",
    "DepthMap",
    "Detections",
    "Finding",
    "GeometricSceneGraph",
    "PaddleOCRVerbalizer",
    "Relations",
    "Scene",
    "Segments",
    "TextLines",
    "TransformersOCR",
    "Verbalization",
    "UltralyticsDetector",
    "VerbalizationCache",
    "Verbalizer",
    "WordSettings",
    "available_verbalizers",
    "build_verbalizer",
    "join_sentences",
    "parse_scene",
    "pascal_colors",
    "register_drawing",
    "register_finding",
    "register_verbalizer",
    "register_words",
    "render_segmentation_map",
    "verbalize_detections",
    "verbalize_finding",
    "verbalize_relations",
    "verbalize_scene",
    "verbalize_segments",
    "verbalize_text_lines",
]
