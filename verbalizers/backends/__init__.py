"""The verbalizers themselves, a file per kind and library. Importing this package registers them.

Each library is imported when it first runs. The first backend of a kind is its default.
"""

from verbalizers.backends import (  # noqa: F401
    depth,
    detection,
    detection_classified,
    detection_nanodet,
    detection_ultralytics,
    edge,
    normal,
    ocr,
    ocr_paddleocr,
    ocr_transformers,
    scene_graph,
    scene_graph_geometric,
    scene_graph_predcls,
    segmentation,
    split_by_image,  # behind the others: no kind's default
)
