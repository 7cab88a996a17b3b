"""Train the small verbalizers on Scenes: shards of pictures, Mask2Former, PSGTR, OWLv2, then their folders.

    python -m recipes.verbalizers.training --config configs/verbalizers.yaml --out runs/verbalizers

Each stage is skipped when it is done and resumed when it was killed; one thread is enough. Without --stage everything
runs in order; a stage alone, in a process of its own, waits for what another process is still painting.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTokenizer

from .checkpointing import latest_checkpoint, load_checkpoint
from .config import VerbalizersConfig, load_verbalizers_config
from .image_shards import SCENE_NAMES, SceneBatches, build_picture_shards
from .loop import run_loop
from .mask2former import Mask2FormerTask, SegmenterWithNames, pixels_of, segmenter_processor
from .owlv2 import Owlv2Task, build_owlv2, detector_processor, initialize_owlv2, train_tokenizer
from .psgtr import (
    FeatureBatches,
    MaskTask,
    TripletTask,
    build_feature_shards,
    build_psgtr,
    graph_processor,
    load_segmenter_backbone,
)

__all__ = ["STAGES", "export_verbalizers", "main", "train_verbalizers"]


def _batches(config: VerbalizersConfig, out: Path, batch_size: int, first_shard: int = 0) -> SceneBatches:
    return SceneBatches(config.shards, out / "shards", batch_size, first_shard)


def _paint(config: VerbalizersConfig, out: Path) -> bool:
    build_picture_shards(config.shards, out / "shards")
    return True


def _train_mask2former(config: VerbalizersConfig, out: Path) -> bool:
    settings = config.mask2former
    torch.manual_seed(config.seed)
    model = SegmenterWithNames(settings)
    task = Mask2FormerTask(model, settings, _batches(config, out, settings.batch_size))
    return run_loop(model.train(), task, task.count_names, settings.loop, out / "mask2former")


def _write_features(config: VerbalizersConfig, out: Path) -> bool:
    model = build_psgtr(config.psgtr).eval()
    load_segmenter_backbone(model, _trained(out / "mask2former"))
    build_feature_shards(model, _batches(config, out, 1), out / "psgtr-features")
    return True


def _train_triplets(config: VerbalizersConfig, out: Path) -> bool:
    settings = config.psgtr
    torch.manual_seed(config.seed)
    model = build_psgtr(settings)
    load_segmenter_backbone(model, _trained(out / "mask2former"))
    _rest(model.head, ("mask_head", "attention_map"), trained=False)
    batches = FeatureBatches(_batches(config, out, 1), out / "psgtr-features", settings.batch_size)
    task = TripletTask(model, batches)
    return run_loop(model.train(), task, task.count_names, settings.triplets, out / "psgtr-triplets")


def _train_masks(config: VerbalizersConfig, out: Path) -> bool:
    settings = config.psgtr
    model = build_psgtr(settings)
    load_segmenter_backbone(model, _trained(out / "mask2former"))
    load_checkpoint(_trained(out / "psgtr-triplets"), model)
    _rest(model.head, ("mask_head", "attention_map"), trained=True)
    task = MaskTask(model, _batches(config, out, settings.mask_batch_size))
    return run_loop(model.train(), task, task.count_names, settings.masks, out / "psgtr-masks")


def _train_owlv2(config: VerbalizersConfig, out: Path) -> bool:
    settings = config.owlv2
    torch.manual_seed(config.seed)
    tokenizer = _detector_tokenizer(config, out)
    model = build_owlv2(settings, config.shards.image_size, tokenizer)
    if latest_checkpoint(out / "owlv2" / "checkpoints") is None:
        initialize_owlv2(model, pixels_of(_batches(config, out, min(256, config.shards.num_scenes))(0)))
    batches = _batches(config, out, settings.batch_size, settings.first_shard)
    task = Owlv2Task(model, settings, tokenizer, batches)
    return run_loop(model.train(), task, task.count_names, settings.loop, out / "owlv2")


def _detector_tokenizer(config: VerbalizersConfig, out: Path) -> CLIPTokenizer:
    """The run's tokenizer, trained once: equally frequent pairs are merged in another order every time."""
    folder = out / "owlv2" / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        train_tokenizer(SCENE_NAMES, config.owlv2.num_merges).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def _rest(module: nn.Module, parts: tuple[str, ...], trained: bool) -> None:
    """Train either the named parts alone or all but them."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts) == trained)


def _trained(folder: Path) -> Path:
    found = latest_checkpoint(folder / "checkpoints")
    if found is None:
        raise ValueError(f"expected a trained model in {folder}, got none. Run the stage before this one first.")
    return found


def export_verbalizers(config: VerbalizersConfig, out: Path, target: Path) -> list[Path]:
    """Write what is trained so far in float16, each as a folder for ``from_pretrained``.

    Args:
        config: The recipe.
        out: The run's folder.
        target: Folder that receives ``mask2former-nano``, ``psgtr-nano`` and ``owlv2-nano``.

    Returns:
        The folders written.
    """
    size, written = config.shards.image_size, []
    if latest_checkpoint(out / "mask2former" / "checkpoints") is not None:
        whole = SegmenterWithNames(config.mask2former, with_imagenet=False)
        load_checkpoint(_trained(out / "mask2former"), whole)
        written.append(_save(whole.segmenter, segmenter_processor(size), target / "mask2former-nano"))
    stages = [out / name for name in ("psgtr-masks", "psgtr-triplets") if (out / name / "checkpoints").is_dir()]
    if stages:
        graph = build_psgtr(config.psgtr)
        load_checkpoint(_trained(stages[0]), graph)
        written.append(_save(graph, graph_processor(size), target / "psgtr-nano"))
    if latest_checkpoint(out / "owlv2" / "checkpoints") is not None:
        tokenizer = _detector_tokenizer(config, out)
        detector = build_owlv2(config.owlv2, size, tokenizer)
        load_checkpoint(_trained(out / "owlv2"), detector)
        written.append(_save(detector, detector_processor(size, tokenizer), target / "owlv2-nano"))
    return written


def _save(model: nn.Module, processor: object, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


#: Name -> work; False = stopped by a signal, to be resumed.
STAGES: dict[str, Callable[[VerbalizersConfig, Path], bool]] = {
    "shards": _paint,
    "mask2former": _train_mask2former,
    "psgtr-features": _write_features,
    "psgtr-triplets": _train_triplets,
    "psgtr-masks": _train_masks,
    "owlv2": _train_owlv2,
}


def train_verbalizers(config: VerbalizersConfig, out: Path, stages: tuple[str, ...] = tuple(STAGES)) -> bool:
    """Run stages, each from where it stopped.

    Args:
        config: The recipe.
        out: Folder of everything that arises.
        stages: Which, of :data:`STAGES`.

    Returns:
        True when all are done, False when a signal stopped one.
    """
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    out.mkdir(parents=True, exist_ok=True)
    return all(STAGES[stage](config, out) for stage in stages)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Train the small verbalizers; resumes what it finds in --out.")
    parser.add_argument("--config", required=True, type=Path, help="recipe, configs/verbalizers.yaml for example")
    parser.add_argument("--out", required=True, type=Path, help="folder for shards, checkpoints and logs")
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this one; may be repeated")
    parser.add_argument("--export", type=Path, metavar="DIR", help="only write what is trained so far to this folder")
    chosen = parser.parse_args(arguments)
    config = load_verbalizers_config(chosen.config)
    if chosen.export is not None:
        for folder in export_verbalizers(config, chosen.out, chosen.export):
            print(f"wrote {folder}")
        return
    train_verbalizers(config, chosen.out, tuple(chosen.stage or STAGES))


if __name__ == "__main__":
    main()
