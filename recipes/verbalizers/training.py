"""Train the small verbalizers on Scenes: Mask2Former, PSGTR, OWLv2, predicates, then their folders.

    python -m recipes.verbalizers --config configs/verbalizers.yaml --out runs/verbalizers
    python -m recipes.verbalizers --config configs/verbalizers_continue.yaml --start FOLDER --out runs/continue

Each stage is skipped when it is done and resumed when it was killed; one thread is enough. Without --stage everything
runs in order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTokenizer

from moai.checkpoints.io.contents import hash_checkpoint
from moai.data.sample_identity import hash_value
from moai.settings import to_plain
from recipes.stages import has_checkpoint, is_made, load_finished, load_trained, note_made, run_stage
from verbalizers.core.durable_files import atomic_folder, hold_folder
from verbalizers.psgtr import PSGTRForSceneGraph

from .config import VerbalizersConfig, load_verbalizers_config
from .mask2former import Mask2FormerTask, SegmenterWithNames, pixels_of, segmenter_processor
from .owlv2 import Owlv2Task, build_owlv2, detector_processor, fit_positions, initialize_owlv2, train_tokenizer
from .predcls import PredClsTask, build_predcls
from .psgtr import (
    FeatureBatches,
    MaskTask,
    TripletTask,
    build_psgtr,
    graph_processor,
    take_segmenter_backbone,
    write_features,
)
from .scenes import SCENE_NAMES, SceneBatches, SceneSettings

__all__ = ["STAGES", "export_verbalizers", "main", "train_verbalizers"]


#: Stage -> the finished verbalizer that it starts from, where there is a start.
_STARTS = {
    "mask2former": "mask2former-nano",
    "psgtr-triplets": "psgtr-nano",
    "psgtr-masks": "psgtr-nano",
    "owlv2": "owlv2-nano",
}


def _start_of(config: VerbalizersConfig, name: str) -> Path | None:
    """Folder of a finished verbalizer that training starts from; None = there is no start.

    Raises:
        ValueError: The folder holds none.
    """
    if config.start is None:
        return None
    folder = Path(config.start, name)
    if not (folder / "config.json").is_file():  # or a path of two parts would be taken for a name on the hub
        raise ValueError(f"expected a finished model to start from in {folder}, got none. Correct `start`.")
    return folder


def _bind_start(config: VerbalizersConfig, out: Path, stage: str) -> None:
    """Note in a stage's folder what it starts from, by content.

    Raises:
        ValueError: The stage was begun from something else.
    """
    start = _start_of(config, _STARTS[stage])
    origin = {"start": None if start is None else hash_checkpoint(start)}
    if not is_made(out / stage, origin):
        note_made(out / stage, origin)


def _build_segmenter(config: VerbalizersConfig) -> SegmenterWithNames:
    torch.manual_seed(config.seed)
    return SegmenterWithNames(config.mask2former, _start_of(config, "mask2former-nano"))


def _trained_segmenter(config: VerbalizersConfig, out: Path) -> SegmenterWithNames:
    model = _build_segmenter(config)
    load_trained(model, out / "mask2former")
    return model


def _build_graph(config: VerbalizersConfig, out: Path, *stages: str) -> PSGTRForSceneGraph:
    """PSGTR on the segmenter's backbone, with what some stages have trained."""
    torch.manual_seed(config.seed)
    model = build_psgtr(config.psgtr)
    if (start := _start_of(config, "psgtr-nano")) is not None:
        load_finished(model, start)
    take_segmenter_backbone(model, _trained_segmenter(config, out).network)
    for stage in stages:
        load_trained(model, out / stage)
    return model


def _train_mask2former(config: VerbalizersConfig, out: Path) -> None:
    settings = config.mask2former
    _bind_start(config, out, "mask2former")
    scenes = SceneBatches(config.shards, settings.optimization.batch_size)
    run_stage(Mask2FormerTask(_build_segmenter(config), settings, scenes), settings, out / "mask2former", config.seed)


def _write_features(config: VerbalizersConfig, out: Path) -> None:
    model, folder = _build_graph(config, out).eval(), out / "psgtr-features"
    shards = _stored_shards(config)
    origin = {"shards": to_plain(shards), "backbone": hash_value(dict(model.backbone.state_dict())).hex()}
    if not is_made(folder, origin):
        note_made(folder, origin)
    write_features(model, shards, folder)


def _stored_shards(config: VerbalizersConfig) -> SceneSettings:
    chosen = config.psgtr.num_shards
    return config.shards if chosen is None else replace(config.shards, num_shards=chosen)


def _train_triplets(config: VerbalizersConfig, out: Path) -> None:
    settings = config.psgtr.triplets
    _bind_start(config, out, "psgtr-triplets")
    model = _build_graph(config, out)
    _rest(model.head, ("mask_head", "attention_map"), trained=False)
    chosen = settings.optimization
    scenes = FeatureBatches(_stored_shards(config), out / "psgtr-features", chosen.batch_size)
    run_stage(TripletTask(model, chosen, scenes), settings, out / "psgtr-triplets", config.seed)


def _train_masks(config: VerbalizersConfig, out: Path) -> None:
    settings = config.psgtr.masks
    _bind_start(config, out, "psgtr-masks")
    model = _build_graph(config, out, "psgtr-triplets")
    _rest(model.head, ("mask_head", "attention_map"), trained=True)
    scenes = SceneBatches(config.shards, settings.optimization.batch_size)
    run_stage(MaskTask(model, settings.optimization, scenes), settings, out / "psgtr-masks", config.seed)


def _train_owlv2(config: VerbalizersConfig, out: Path) -> None:
    settings = config.owlv2
    _bind_start(config, out, "owlv2")
    torch.manual_seed(config.seed)
    tokenizer = _detector_tokenizer(config, out)
    model = build_owlv2(settings, config.shards.image_size, tokenizer)
    if (start := _start_of(config, "owlv2-nano")) is not None:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        load_finished(model, start, partial(fit_positions, side=side))
    elif not has_checkpoint(out / "owlv2"):
        initialize_owlv2(model, pixels_of(SceneBatches(config.shards, min(256, config.shards.num_scenes))(0)))
    scenes = SceneBatches(config.shards, settings.optimization.batch_size, settings.first_shard)
    run_stage(Owlv2Task(model, settings, tokenizer, scenes), settings, out / "owlv2", config.seed)


def _train_predcls(config: VerbalizersConfig, out: Path) -> None:
    settings = config.predcls
    torch.manual_seed(config.seed)
    run_stage(PredClsTask(build_predcls(settings), settings, config.shards), settings, out / "predcls", config.seed)


def _detector_tokenizer(config: VerbalizersConfig, out: Path) -> CLIPTokenizer:
    """The start's tokenizer, or the run's own, trained once: equal pairs are merged in another order every time."""
    if (start := _start_of(config, "owlv2-nano")) is not None:
        return CLIPTokenizer.from_pretrained(start, local_files_only=True)
    folder, origin = out / "owlv2" / "tokenizer", {"num_merges": config.owlv2.num_merges}
    if not is_made(folder, origin):
        train_tokenizer(SCENE_NAMES, config.owlv2.num_merges).save_pretrained(folder)
        note_made(folder, origin)
    return CLIPTokenizer.from_pretrained(folder)


def _rest(module: nn.Module, parts: tuple[str, ...], trained: bool) -> None:
    """Train either the named parts alone or all but them."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts) == trained)


def export_verbalizers(config: VerbalizersConfig, out: Path, target: Path) -> list[Path]:
    """Write what is trained so far in float16, each as a folder for ``from_pretrained``.

    Args:
        config: The recipe.
        out: The run's folder.
        target: Folder that receives ``mask2former-nano``, ``psgtr-nano``, ``owlv2-nano`` and ``predcls-nano``.

    Returns:
        The folders written.

    Raises:
        ValueError: A stage was begun from another start.
    """
    size, written = config.shards.image_size, []
    for stage in filter(lambda stage: has_checkpoint(out / stage), _STARTS):
        _bind_start(config, out, stage)
    if has_checkpoint(out / "mask2former"):
        segmenter = _trained_segmenter(config, out).segmenter
        written.append(_save(segmenter, segmenter_processor(size), target / "mask2former-nano"))
    if stages := [name for name in ("psgtr-triplets", "psgtr-masks") if has_checkpoint(out / name)]:
        graph = _build_graph(config, out, *stages)
        written.append(_save(graph, graph_processor(size), target / "psgtr-nano"))
    if has_checkpoint(out / "owlv2"):
        tokenizer = _detector_tokenizer(config, out)
        detector = build_owlv2(config.owlv2, size, tokenizer)
        load_trained(detector, out / "owlv2")
        written.append(_save(detector, detector_processor(size, tokenizer), target / "owlv2-nano"))
    if has_checkpoint(out / "predcls"):
        classifier = build_predcls(config.predcls)
        load_trained(classifier, out / "predcls")
        written.append(_save(classifier, None, target / "predcls-nano"))
    return written


def _save(model: nn.Module, processor: Any, folder: Path) -> Path:
    with atomic_folder(folder, force=True) as unfinished:
        model.half().save_pretrained(unfinished)
        if processor is not None:
            processor.save_pretrained(unfinished)
    return folder


#: Name -> work.
STAGES: dict[str, Callable[[VerbalizersConfig, Path], None]] = {
    "mask2former": _train_mask2former,
    "psgtr-features": _write_features,
    "psgtr-triplets": _train_triplets,
    "psgtr-masks": _train_masks,
    "owlv2": _train_owlv2,
    "predcls": _train_predcls,
}


def train_verbalizers(config: VerbalizersConfig, out: Path, stages: tuple[str, ...] = tuple(STAGES)) -> None:
    """Run stages, each from where it stopped.

    Args:
        config: The recipe.
        out: Folder of everything that arises.
        stages: Which, of :data:`STAGES`.

    Raises:
        SystemExit: A stage was stopped by Ctrl-C or SIGTERM; a checkpoint is written.
        ValueError: Something there was made with other settings, or another process writes there.
    """
    with hold_folder(out):
        for stage in stages:
            if getattr(config, stage.partition("-")[0]) is not None:
                STAGES[stage](config, out)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Train the small verbalizers; resumes what it finds in --out.")
    parser.add_argument("--config", required=True, type=Path, help="recipe, configs/verbalizers.yaml for example")
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoints and logs")
    parser.add_argument(
        "--start", metavar="DIR", help="finished verbalizers to start from, in place of the recipe's `start`"
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this one; may be repeated")
    parser.add_argument("--export", type=Path, metavar="DIR", help="only write what is trained so far to this folder")
    chosen = parser.parse_args(arguments)
    config = load_verbalizers_config(chosen.config)
    if chosen.start is not None:
        config = replace(config, start=chosen.start)
    if chosen.export is not None:
        for folder in export_verbalizers(config, chosen.out, chosen.export):
            print(f"wrote {folder}")
        return
    train_verbalizers(config, chosen.out, tuple(chosen.stage or STAGES))
