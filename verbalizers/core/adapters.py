"""Results of other libraries as structures.

Pure functions that read attributes and keys of what other libraries return (documented at each function) and import
none of them: tensors are recognised by their `detach` and `cpu` methods. What is no finding is refused: ids without
a name, masks of another size, and whatever the structures refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from verbalizers.core.structures import Detections, Relations, Segments, TextLines
from verbalizers.core.validation import checked_confidence
from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES, PSG_PREDICATES

__all__ = [
    "boxes_to_quads",
    "detections_from_supervision",
    "detections_from_transformers",
    "detections_from_ultralytics",
    "relations_from_psgtr",
    "relations_from_triplets",
    "segments_from_masks",
    "segments_from_supervision",
    "segments_from_transformers",
    "text_lines_from_paddleocr",
    "text_lines_from_rapidocr",
]

Names = Sequence[str] | Mapping[int, str]


def to_numpy(value: Any) -> np.ndarray:
    """Numpy array from a tensor on any device, an array or a sequence."""
    if hasattr(value, "detach"):
        value = value.detach()
        value = value.float() if "float" in str(getattr(value, "dtype", "")) else value
        value = value.cpu().numpy()
    return np.asarray(value)


def to_ids(value: Any, name: str) -> list[int]:
    """Whole numbers of any numeric type: ultralytics has its class ids in a float tensor.

    Raises:
        ValueError: they are no numbers, or have a fraction.
    """
    ids = to_numpy(value).reshape(-1)
    if ids.size and (ids.dtype.kind not in "iuf" or not np.isfinite(ids).all() or (ids != np.floor(ids)).any()):
        raise ValueError(f"`{name}` must hold whole numbers, got {ids.dtype} {ids[:5].tolist()}. Give class ids.")
    return [int(index) for index in ids]


def names_of(class_names: Names, ids: Iterable[int]) -> tuple[str, ...]:
    """The names of class ids; "" is the name of a class that is not to be said.

    Raises:
        ValueError: an id has no name.
    """
    by_id = class_names if isinstance(class_names, Mapping) else dict(enumerate(class_names))
    names = []
    for index in ids:
        if index not in by_id and str(index) not in by_id:
            known = f"{len(by_id)} names ({', '.join(map(repr, list(by_id)[:3]))} ...)"
            raise ValueError(
                f"expected class ids with a name among {known}, got {index}. Give the names that the model was trained "
                'with, and "" for a class that is not to be said.'
            )
        names.append(by_id[index] if index in by_id else by_id[str(index)])
    return tuple(names)


def _check_mask_size(got_hw: tuple[int, ...], image_size_hw: tuple[int, int] | None, name: str) -> None:
    if image_size_hw is not None and tuple(got_hw) != tuple(image_size_hw):
        raise ValueError(
            f"`{name}` must be of the image's size {tuple(image_size_hw)} (height, width), got {tuple(got_hw)}. Resize "
            "them to the original image."
        )


def segments_from_transformers(
    result: Mapping[str, Any],
    class_names: Names = COCO_PANOPTIC_NAMES,
    label_ids_to_fuse: Iterable[int] = (),
    image_size_hw: tuple[int, int] | None = None,
) -> Segments:
    """One entry of `post_process_panoptic_segmentation` (Mask2Former, MaskFormer, OneFormer, EoMT, DETR).

    Args:
        result: `segmentation` `(H, W)` ids (0 or -1 = nothing, or None where nothing was found at all) and
            `segments_info`, a list of dicts with `id`, `label_id` and optionally `score`.
        class_names: names by label id, e.g. `model.config.id2label`.
        label_ids_to_fuse: labels whose segments become one segment (transformers' own fusing reuses ids).
        image_size_hw: needed when `segmentation` is None, else checked.

    Raises:
        ValueError: `segmentation` is None and no image size is given, or it is of another size, or a label has no name.
    """
    if result["segmentation"] is None:
        if image_size_hw is None:
            raise ValueError("`segmentation` is None (nothing found): give image_size_hw.")
        return Segments(np.zeros(image_size_hw, dtype=np.int32), (), (), ())
    panoptic_map = np.array(to_numpy(result["segmentation"]))
    _check_mask_size(panoptic_map.shape, image_size_hw, "segmentation")
    if panoptic_map.dtype.kind == "f" and np.isfinite(panoptic_map).all():
        whole = panoptic_map.astype(np.int32)  # some models' maps are floats
        panoptic_map = whole if (whole == panoptic_map).all() else panoptic_map
    elif panoptic_map.dtype.kind in "iub":
        panoptic_map = panoptic_map.astype(np.int64)  # with room for the ids that follow
    info = result["segments_info"]
    ids, labels = to_ids([e["id"] for e in info], "id"), to_ids([e["label_id"] for e in info], "label_id")
    entries = [(*both, float(e.get("score", 1.0))) for *both, e in zip(ids, labels, info, strict=True)]
    if any(segment_id == 0 for segment_id, _, _ in entries):  # numbered from 0: make room for "nothing" = 0
        panoptic_map += 1
        entries = [(segment_id + 1, label, score) for segment_id, label, score in entries]
    to_fuse = set(label_ids_to_fuse)
    kept: dict[int, tuple[int, float]] = {}
    first_of_label: dict[int, int] = {}
    for segment_id, label, score in entries:
        if label in to_fuse:
            target = first_of_label.setdefault(label, segment_id)
            panoptic_map[panoptic_map == segment_id] = target
            segment_id = target
        kept[segment_id] = (label, max(score, kept[segment_id][1]) if segment_id in kept else score)
    names = names_of(class_names, [label for label, _ in kept.values()])
    return Segments(panoptic_map, tuple(kept), names, [score for _, score in kept.values()])


def segments_from_masks(
    masks: Any, class_names: Sequence[str], confidence: Any, image_size_hw: tuple[int, int] | None = None
) -> Segments:
    """Overlapping instance masks -> a panoptic map; where masks overlap the one of higher confidence wins.

    Args:
        masks: `(N, H, W)`, bool or 0 and 1.
        class_names: N names.
        confidence: `(N,)` in [0, 1].
        image_size_hw: needed when there are no masks, else checked.

    Raises:
        ValueError: these are no masks, of another size, or their number is not that of the names and confidences.
    """
    masks, scores = to_numpy(masks), to_numpy(confidence)
    if len(masks) == 0:
        if image_size_hw is None:
            raise ValueError("there are no masks: give image_size_hw.")
        return Segments(np.zeros(image_size_hw, dtype=np.int32), (), class_names, scores)
    if masks.ndim != 3 or (masks.dtype != bool and not np.isin(masks, (0, 1)).all()):
        raise ValueError(
            f"`masks` must be (N, H, W) and True or False, got {masks.dtype} {masks.shape}. Compare probabilities with "
            "a threshold; write a single mask as mask[None]."
        )
    _check_mask_size(masks.shape[1:], image_size_hw, "masks")
    masks, scores = masks.astype(bool), checked_confidence(scores, len(masks))
    panoptic_map = np.zeros(masks.shape[1:], dtype=np.int32)
    for index in np.argsort(scores, kind="stable"):
        panoptic_map[masks[index]] = index + 1
    return Segments(panoptic_map, range(1, len(masks) + 1), tuple(class_names), scores)


def detections_from_transformers(
    result: Mapping[str, Any], class_names: Names, image_size_hw: tuple[int, int]
) -> Detections:
    """One entry of `post_process_object_detection` (OWLv2, Grounding DINO, DETR, RT-DETR ...).

    Args:
        result: `scores` `(N,)`, `labels` `(N,)` class ids, `boxes` `(N, 4)` xyxy pixels.
        class_names: names by label id: the queries of an open-vocabulary model, else `model.config.id2label`.
        image_size_hw: of the original image.
    """
    names = names_of(class_names, to_ids(result["labels"], "labels"))
    return Detections(to_numpy(result["boxes"]), names, to_numpy(result["scores"]), image_size_hw)


def detections_from_ultralytics(result: Any) -> Detections:
    """One ultralytics `Results`: `boxes.xyxy`, `boxes.conf`, `boxes.cls`, `names`, `orig_shape`."""
    size = tuple(result.orig_shape[:2])
    if result.boxes is None:
        return Detections(np.zeros((0, 4)), (), (), size)
    names = names_of(result.names, to_ids(result.boxes.cls, "cls"))
    return Detections(to_numpy(result.boxes.xyxy), names, to_numpy(result.boxes.conf), size)


def detections_from_supervision(
    detections: Any, image_size_hw: tuple[int, int], class_names: Names | None = None
) -> Detections:
    """A `supervision.Detections`: `xyxy`, `confidence` (None = 1), `data["class_name"]` or `class_id`."""
    boxes = to_numpy(detections.xyxy)
    return Detections(boxes, *_supervision_labels(detections, len(boxes), class_names), image_size_hw)


def segments_from_supervision(
    detections: Any, image_size_hw: tuple[int, int], class_names: Names | None = None
) -> Segments:
    """A `supervision.Detections` with masks; see `detections_from_supervision`."""
    has_masks = detections.mask is not None
    masks = to_numpy(detections.mask) if has_masks else np.zeros((0, *image_size_hw), dtype=bool)
    names, confidence = _supervision_labels(detections, len(masks), class_names)
    return segments_from_masks(masks, names, confidence, image_size_hw)


def _supervision_labels(detections: Any, length: int, class_names: Names | None) -> tuple[tuple[str, ...], np.ndarray]:
    named = detections.data.get("class_name") if getattr(detections, "data", None) else None
    if named is not None:
        names = tuple(named)
    elif class_names is not None and detections.class_id is not None:
        names = names_of(class_names, to_ids(detections.class_id, "class_id"))
    elif length == 0:
        names = ()
    else:
        raise ValueError("expected names in data['class_name'], got none. Give class_names for the class ids.")
    confidence = np.ones(length) if detections.confidence is None else to_numpy(detections.confidence)
    return names, confidence


def relations_from_psgtr(
    result: Any,
    class_names: Sequence[str] = COCO_PANOPTIC_NAMES,
    predicates: Sequence[str] = PSG_PREDICATES,
    compat: bool = False,
) -> Relations:
    """PSGTR's result (OpenPSG's `Result`; ours has the same fields).

    Args:
        result: attributes or keys `labels` `(M,)` one-based class ids, `rel_pair_idxes` `(R, 2)` subject and
            object index, `rel_dists` `(R, P + 1)` scores whose column 0 means no relation; optionally
            `refine_bboxes` `(M, 4 or 5)` (left out where their number is not M), `rels` `(R, 3)` whose last
            column is the predicate (else the best is taken) and `pan_results` `(H, W)`.
        class_names: name of label 1 first.
        predicates: name of column 1 first.
        compat: read as the released MoAI does: always the best predicate, label 0 wraps round to the last
            class, and a class id in `pan_results` beyond the list raises IndexError though the map is not
            used.
    """
    read = result.get if isinstance(result, Mapping) else lambda name: getattr(result, name, None)
    labels = to_ids(read("labels"), "labels")
    pairs = np.array(to_ids(read("rel_pair_idxes"), "rel_pair_idxes"), dtype=np.int64).reshape(-1, 2)
    scores = to_numpy(read("rel_dists")).astype(np.float32).reshape(len(pairs), len(predicates) + 1)[:, 1:]
    if compat:
        _check_panoptic_classes_as_released(read("pan_results"), class_names)
        names = tuple(class_names[label - 1] for label in labels)
    else:
        names = names_of(dict(enumerate(class_names, start=1)), labels)
    chosen = read("rels")
    if chosen is not None and len(chosen) == len(pairs) and not compat:
        # A query with two predicates carries the same scores twice; `rels` knows which one each row
        # is.
        best = np.array(to_ids(to_numpy(chosen).reshape(-1, 3)[:, 2], "rels"), dtype=np.int64) - 1
        names_of(dict(enumerate(predicates, start=1)), best + 1)  # 0 would be read as the last one
    else:
        best = scores.argmax(axis=1) if len(scores) else np.zeros(0, dtype=np.int64)
    boxes = read("refine_bboxes")
    if boxes is not None and len(boxes) != len(names):
        boxes = None  # OpenPSG lists the boxes of all candidates, not of the objects it names
    return Relations(
        object_names=names,
        subject_indices=pairs[:, 0],
        object_indices=pairs[:, 1],
        predicates=tuple(predicates[index] for index in best),
        confidence=scores[np.arange(len(best)), best],
        object_boxes_xyxy=None if boxes is None else to_numpy(boxes).reshape(len(names), -1 if names else 4)[:, :4],
    )


def _check_panoptic_classes_as_released(pan_results: Any, class_names: Sequence[str]) -> None:
    if pan_results is None:
        return
    instance_offset, void = 1000, len(class_names)  # mmdet's encoding: class + 1000 * instance
    for encoded in np.unique(to_numpy(pan_results)):
        if encoded != void and encoded % instance_offset >= len(class_names):
            raise IndexError("list index out of range")


def relations_from_triplets(
    triplets: Iterable[Sequence[Any]],
    object_names: Sequence[str],
    object_boxes_xyxy: Any = None,
) -> Relations:
    """A scene graph from tuples, `(subject index, predicate, object index[, confidence])` per relation."""
    rows = [tuple(triplet) if len(triplet) == 4 else (*triplet, 1.0) for triplet in triplets]
    subjects, predicates, objects, confidence = zip(*rows, strict=True) if rows else ((), (), (), ())
    boxes = None if object_boxes_xyxy is None else to_numpy(object_boxes_xyxy)
    return Relations(tuple(object_names), subjects, objects, tuple(predicates), confidence, boxes)


def boxes_to_quads(boxes_xyxy: Any) -> np.ndarray:
    """Upright boxes `(N, 4)` as quads `(N, 4, 2)`, clockwise from the top left."""
    boxes = to_numpy(boxes_xyxy).astype(np.float32).reshape(-1, 4)
    return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]


def text_lines_from_rapidocr(output: Any, is_turned: Any = None) -> TextLines:
    """A `rapidocr.RapidOCROutput`: `boxes` `(N, 4, 2)`, `txts`, `scores`; all None when nothing was read.

    Args:
        output: what rapidocr returned.
        is_turned: bool `(N,)`, which lines were turned half round to be read. rapidocr's output does not tell, its
            classifier's (`TextClsOutput.cls_res`) does; None = none.
    """
    if output is None or output.txts is None or output.boxes is None:
        return TextLines(np.zeros((0, 4, 2)), (), ())
    quads = _turn_quads(to_numpy(output.boxes).reshape(-1, 4, 2), is_turned)
    return TextLines(quads, tuple(output.txts), to_numpy(output.scores))


def _turn_quads(quads: np.ndarray, is_turned: Any) -> np.ndarray:
    """The corners of those that are turned, from the opposite one on."""
    if is_turned is None:
        return quads
    return np.where(np.asarray(is_turned, dtype=bool)[:, None, None], np.roll(quads, 2, axis=1), quads)


def text_lines_from_paddleocr(result: Any, compat: bool = False) -> TextLines:
    """One page of paddleocr: 2.x `[[quad, (text, score)], ...]` or None; 3.x a dict with `rec_texts`,
    `rec_scores`.

    Args:
        result: the page. 3.x also carries `rec_polys` `(N, 4, 2)` and, for all `dt_polys` that were found,
            `textline_orientation_angles`: 1 = turned half round to be read.
        compat: raise TypeError for None as the released MoAI does; ours takes it as "nothing read", which it
            means.
    """
    if result is None:
        if compat:
            raise TypeError("'NoneType' object is not iterable")
        return TextLines(np.zeros((0, 4, 2)), (), ())
    if isinstance(result, Mapping):
        texts, scores, quads = result["rec_texts"], result["rec_scores"], result["rec_polys"]
        if not compat:
            quads = _turn_quads(to_numpy(quads).reshape(-1, 4, 2), _turned_by_paddleocr(result))
    else:
        quads = [quad for quad, _ in result]
        texts = [text for _, (text, _) in result]
        scores = [score for _, (_, score) in result]
    quads = np.zeros((0, 4, 2)) if len(texts) == 0 else to_numpy(quads)
    return TextLines(quads, tuple(texts), to_numpy(scores))


def _turned_by_paddleocr(result: Mapping[str, Any]) -> list[bool]:
    # What the recogniser is unsure of is in `dt_polys` alone.
    angles = zip(result.get("dt_polys", ()), result.get("textline_orientation_angles", ()), strict=False)
    turned = {to_numpy(quad).tobytes() for quad, angle in angles if angle == 1}
    return [to_numpy(quad).tobytes() in turned for quad in result["rec_polys"]]
