"""Computer vision as text: images -> findings -> sentences.

Importing this package needs numpy and Pillow only; every backend is imported when it is first used.
"""

from verbalizers.backends.detection_ultralytics import UltralyticsDetector
from verbalizers.backends.ocr_paddleocr import PaddleOCRVerbalizer
from verbalizers.backends.ocr_transformers import TransformersOCR
from verbalizers.backends.scene_graph_geometric import GeometricSceneGraph
from verbalizers.core.checkpoints import CheckpointVerbalizer
from verbalizers.core.drawing import draw_scene
from verbalizers.core.label_map import LabelMap
from verbalizers.core.registry import (
    available_verbalizers,
    build_verbalizer,
    register_drawing,
    register_verbalizer,
    register_words,
)
from verbalizers.core.scene import parse_scene
from verbalizers.core.segmentation_map import pascal_colors, render_segmentation_map
from verbalizers.core.sentences import (
    verbalize_detections,
    verbalize_finding,
    verbalize_relations,
    verbalize_scene,
    verbalize_segments,
    verbalize_text_lines,
)
from verbalizers.core.structures import (
    SCENE_FIELDS,
    Detections,
    Finding,
    Relations,
    Scene,
    Segments,
    TextLines,
    register_finding,
)
from verbalizers.core.verbalizer import Verbalizer
from verbalizers.core.words import WordSettings, join_sentences
from verbalizers.store.cache import Verbalization, VerbalizationCache

__all__ = [
    "SCENE_FIELDS",
    "CheckpointVerbalizer",
    "Detections",
    "Finding",
    "GeometricSceneGraph",
    "LabelMap",
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
    "draw_scene",
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
