"""Verbalizers in half precision on CPUs: their time and how far their findings agree with float32's.

    OMP_NUM_THREADS=1 python -m benchmarks.verbalizer_dtypes --num-scenes 1000 --out outputs/dtypes.jsonl

Each scene of Scenes' validation split becomes a line of `--out`; the same command goes on behind the last one, so a
thousand may be done in pieces (`--num-scenes 50`, then 100, ...). A verbalizer takes the setting `dtype: bfloat16` in
a checkpoint's `verbalizers.json`. int8 are torch's linears with dynamic quantization, measured beside it.

Agreement with float32: the share of pixels with the same class (segmentation), or of what either finds that both find:
boxes of one class with an IoU of 0.5 (detection), triplets of names (scene graph). Processor time, in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measurement import Spread, describe_machine, markdown_table
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.scenes.scenes import Scenes
from verbalizers import Scene, Verbalizer, build_verbalizer
from verbalizers.core.checkpoints import CheckpointVerbalizer
from verbalizers.core.structures import SCENE_FIELDS, Detections, Relations, Segments
from verbalizers.core.verbalizer import order_by_use

VARIANTS = ("bfloat16", "int8")


def build_variant(verbalizer: Verbalizer, variant: str) -> Verbalizer:
    """The same verbalizer in another precision, loaded."""
    settings = verbalizer.settings() | ({"dtype": variant} if variant in ("float32", "bfloat16") else {})
    built = build_verbalizer(verbalizer.kind, verbalizer.backend, **settings)
    loaded = built.load()
    if variant == "int8":
        linears = {
            name
            for name, module in loaded.model.named_modules()
            if type(module) is torch.nn.Linear and "attention_map" not in name  # whose weights DETR reads itself
        }
        loaded.model = torch.ao.quantization.quantize_dynamic(loaded.model, linears, torch.qint8)
    return built


def list_checkpoints(verbalizers: Sequence[Verbalizer]) -> list[CheckpointVerbalizer]:
    """Those that compute with a checkpoint of torch; of ``by_image`` the one that looks at drawings, as Scenes are.

    Raises:
        ValueError: There is none.
    """
    parts = []
    for one in verbalizers:
        drawing = one.settings().get("drawing") if one.backend == "by_image" else None
        parts.append(build_verbalizer(one.kind, **drawing) if drawing else one)
    found = [one for one in parts if isinstance(one, CheckpointVerbalizer)]
    if not found:
        raise ValueError(
            f"expected verbalizers with checkpoints, got {[f'{one.kind}/{one.backend}' for one in parts]}. "
            "Name another --checkpoint."
        )
    return found


def agree(first: Any, second: Any) -> float:
    """Agreement of two findings about an image, in [0, 1]."""
    if isinstance(first, Segments):
        return float((_class_map(first) == _class_map(second)).mean())
    if isinstance(first, Detections):
        return _share_of_boxes(first, second)
    assert isinstance(first, Relations), first
    found, other = (Counter(_triplets(relations)) for relations in (first, second))
    return sum((found & other).values()) / max(1, sum((found | other).values())) if found or other else 1.0


def _class_map(segments: Segments) -> np.ndarray:
    names = dict(zip(segments.segment_ids, segments.class_names, strict=True))
    ids, places = np.unique(segments.panoptic_map, return_inverse=True)
    return np.array([names.get(int(number), "") for number in ids])[places]


def _share_of_boxes(first: Detections, second: Detections) -> float:
    free, num_both = list(range(len(second.class_names))), 0
    for box, name in zip(first.boxes_xyxy, first.class_names, strict=True):
        for place in free:
            if second.class_names[place] == name and _iou(box, second.boxes_xyxy[place]) >= 0.5:
                free.remove(place)
                num_both += 1
                break
    either = len(first.class_names) + len(second.class_names) - num_both
    return num_both / either if either else 1.0


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    common = float(np.prod(np.clip(high - low, 0, None)))
    areas = sum(float(np.prod(box[2:] - box[:2])) for box in (first, second))
    return common / max(areas - common, 1e-9)


def _triplets(relations: Relations) -> list[tuple[str, str, str]]:
    names = relations.object_names
    ends = zip(relations.subject_indices, relations.predicates, relations.object_indices, strict=True)
    return [(names[subject], predicate, names[object_]) for subject, predicate, object_ in ends]


def measure_scene(image: np.ndarray, variants: dict[str, dict[str, Verbalizer]]) -> dict[str, dict[str, list[float]]]:
    """Agreement and ratio of processor time of each verbalizer's variants on an image.

    Those that use others' findings are given what these find in float32.
    """
    row: dict[str, dict[str, list[float]]] = {}
    scene = Scene(image_size_hw=image.shape[:2])
    names = [one.kind for group in order_by_use(built["float32"] for built in variants.values()) for one in group]
    for name, built in ((name, variants[name]) for name in names):
        found, seconds = {}, {}
        for variant, verbalizer in built.items():
            start = time.process_time()
            (found[variant],) = verbalizer.predict_with([image], [scene])
            seconds[variant] = time.process_time() - start
        row[name] = {
            variant: [agree(found["float32"], found[variant]), seconds[variant] / seconds["float32"]]
            for variant in built
            if variant != "float32"
        }
        scene = replace(scene, **{SCENE_FIELDS[name]: found["float32"]})
    return row


def main(arguments: list[str] | None = None) -> None:
    """Measure the scenes that are missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/moai-nano", help="whose verbalizers")
    parser.add_argument("--num-scenes", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, required=True, help="one JSON line per scene; the same command goes on")
    parsed = parser.parse_args(arguments)
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in parsed.out.read_text().splitlines()] if parsed.out.is_file() else []
    if len(rows) < parsed.num_scenes:
        built, _ = VerbalizerSettings.load_pretrained(Path(parsed.checkpoint)).build()
        variants = {
            one.kind: {variant: build_variant(one, variant) for variant in ("float32", *parsed.variants)}
            for one in list_checkpoints(built)
        }
        scenes = Scenes("validation", image_size=parsed.image_size, num_questions=1)
        measure_scene(np.asarray(scenes[0].image), variants)  # what is loaded or compiled once
        with parsed.out.open("a") as file:
            for index in range(len(rows), parsed.num_scenes):
                rows.append(measure_scene(np.asarray(scenes[index].image), variants))
                print(json.dumps(rows[-1]), file=file, flush=True)
    table = []
    for name in rows[0]:
        for variant in rows[0][name]:
            agreements, ratios = zip(*(row[name][variant] for row in rows), strict=True)
            table.append([f"{name} in {variant}", f"{np.mean(agreements):.4f}", Spread.of(list(ratios)).shown(2)])
    print(f"{describe_machine(torch.device('cpu'))}, processor time; {len(rows)} scenes\n")
    print("\n".join(markdown_table(["verbalizer", "agreement with float32", "time / float32"], table)))


if __name__ == "__main__":
    main()
