"""The verbalizers that `benchmarks.verbalizers` measures: the bundled checkpoints, or random weights of their sizes.

How long a model takes depends on its sizes, not on what it has learned; what is found does, and with it a little of the
post-processing. The tables say which of the two was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from verbalizers import Verbalizer, build_verbalizer

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "verbalizers.yaml"
NUM_NAMES = 1847  # the released MoAI's vocabulary: ADE-847 and ImageNet's 1,000 classes
BACKENDS = {
    "mask2former": ("segmentation", "transformers"),
    "owlv2": ("detection", "owlv2"),
    "psgtr": ("scene_graph", "psgtr"),
}


def choose_names(num_names: int = NUM_NAMES) -> tuple[tuple[str, ...], str]:
    """As many names as the release asks for, and where they come from.

    ImageNet's and LVIS's names where `timm` and `ultralytics` are installed (ADE-847 is in no package); else numbered
    ones.
    """
    from verbalizers.core.vocabularies import available_vocabularies, load_vocabulary

    if {"imagenet", "lvis"} <= set(available_vocabularies()):
        names = load_vocabulary("imagenet+lvis")
        if len(names) >= num_names:
            return names[:num_names], "ImageNet's and LVIS's"
    return tuple(f"thing number {index}" for index in range(num_names)), "numbered"


def save_random_models(folder: Path) -> Path:
    """Write the three small models of `configs/verbalizers.yaml` with random weights, as they are bundled."""
    from recipes.verbalizers.config import load_verbalizers_config
    from recipes.verbalizers.mask2former import build_mask2former, segmenter_processor
    from recipes.verbalizers.owlv2 import build_owlv2, detector_processor, train_tokenizer
    from recipes.verbalizers.psgtr import build_psgtr, graph_processor
    from recipes.verbalizers.scenes import SCENE_NAMES

    config = load_verbalizers_config(RECIPE)
    image_size = config.shards.image_size
    torch.manual_seed(0)
    tokenizer = train_tokenizer(SCENE_NAMES, config.owlv2.num_merges)
    parts = {
        "mask2former": (build_mask2former(config.mask2former), segmenter_processor(image_size)),
        "owlv2": (build_owlv2(config.owlv2, image_size, tokenizer), detector_processor(image_size, tokenizer)),
        "psgtr": (build_psgtr(config.psgtr), graph_processor(image_size)),
    }
    for name, (model, processor) in parts.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def save_published_owlv2(folder: Path) -> Path:
    """OWLv2 of the published base model's sizes (arXiv 2306.09683, patch 16 at 960 pixels) with random weights."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    from recipes.verbalizers.owlv2 import detector_processor, train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(("cat", "dog"), 0)
    text = {"vocab_size": 49408, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Owlv2Config(text_config=text | {"pad_token_id": tokenizer.pad_token_id}, vision_config={"image_size": 960})
    config.vision_config.patch_size = 16
    Owlv2ForObjectDetection(config).save_pretrained(folder / "owlv2")
    detector_processor(960, tokenizer).save_pretrained(folder / "owlv2")
    return folder


def build_verbalizers(folder: Path, names: Sequence[str], device: str) -> list[Verbalizer]:
    """The verbalizers of a folder of checkpoints, and the OCR where `rapidocr` is installed.

    Args:
        folder: With some of mask2former/, owlv2/, psgtr/, or as the bundled ones are called, mask2former-nano/ ...
        names: What the detector looks for.
        device: Of the torch models.
    """
    import importlib.util

    built = []
    for part, (kind, backend) in BACKENDS.items():
        checkpoint = next((folder / name for name in (part, f"{part}-nano") if (folder / name).is_dir()), None)
        if checkpoint is not None:
            settings = {"vocabulary": names} if kind == "detection" else {}
            built.append(build_verbalizer(kind, backend, checkpoint=str(checkpoint), device=device, **settings))
    if importlib.util.find_spec("rapidocr"):
        built.append(build_verbalizer("ocr", "rapidocr"))
    return built
