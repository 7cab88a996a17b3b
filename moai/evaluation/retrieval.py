"""Retrieval: which texts a model finds for an image among all, and which images for a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, StrictInt
from transformers import AutoModel, AutoProcessor

from moai.checkpoints.io.contents import hash_checkpoint
from moai.data.image_samples import ImageDataset
from moai.data.image_settings import ImageDataSettings, ImageSourceSettings
from moai.models.registry import MODEL_SPECS
from moai.settings import load_settings, read_yaml, settings, to_plain
from verbalizers.core.durable_files import hold_folder, write_json

from .intervals import wilson_interval
from .tables import format_table

__all__ = [
    "RetrievalScores",
    "RetrievalTest",
    "compares_texts",
    "evaluate_retrieval",
    "format_retrieval",
    "measure_retrieval",
    "recall_at",
    "score_pairs",
]

RANKS = (1, 5, 10)
_WAYS = {"image_to_text": "num_images", "text_to_image": "num_texts"}


@settings
class RetrievalTest(ImageSourceSettings):
    """Captioned images among which is searched; see :class:`moai.data.image_settings.ImageSourceSettings`.

    Attributes:
        num_matched: See :func:`score_pairs`.
        max_bad_rows: Rows without a readable image or a caption that are left out.
    """

    num_matched: Annotated[StrictInt, Field(ge=0)] = 0
    max_bad_rows: Annotated[StrictInt, Field(ge=0)] = 0


def compares_texts(folder: str | Path) -> bool:
    """Whether a checkpoint is a model that compares images and texts and answers nothing.

    Args:
        folder: Of the checkpoint, or a hub name, of which none is known.
    """
    file = Path(folder) / "config.json"
    spec = MODEL_SPECS.get(json.loads(file.read_text(encoding="utf-8")).get("model_type")) if file.is_file() else None
    return spec is not None and spec.compares_texts


def evaluate_retrieval(
    folder: str | Path,
    test: str,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> dict[str, Any]:
    """Search among captioned images with a model.

    Args:
        folder: Of a model that :func:`compares_texts`, with its processor.
        test: "scenes", a file of captioned images, or a YAML file of :class:`RetrievalTest`.
        overrides: ``key=value`` words laid over it.
        out: Folder that receives ``results.json``; None = nothing is written.
        batch_size: Images, texts or pairs per forward pass.
        device: Where; None = the CPU.

    Returns:
        What ``results.json`` holds: the test, hashes of the model's files, and :func:`measure_retrieval`.

    Raises:
        ValueError: The test is not as expected, or rows are bad.
    """
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device or "cpu")
    side = model.config.vision_config.image_size
    content: Mapping[str, Any] = {"path": test}
    if test == "scenes":
        content = {"scenes": {"split": "test", "length": 500, "image_size": side, "num_objects": [1, 4]}}
    elif test.endswith((".yaml", ".yml")):
        content = read_yaml(test)
    asked = load_settings(RetrievalTest, content, overrides)
    source = {name: value for name, value in to_plain(asked).items() if name not in ("num_matched", "max_bad_rows")}
    data = load_settings(ImageDataSettings, {"sources": [source], "max_bad_rows": asked.max_bad_rows})
    dataset = ImageDataset(data, has_captions=True)
    processor = AutoProcessor.from_pretrained(folder)
    found = measure_retrieval(model, processor, dataset, batch_size, asked.num_matched)
    results = {"test": to_plain(asked), "model": hash_checkpoint(folder), "data": dataset.identity(), **found}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with hold_folder(out):
            write_json(out / "results.json", results)
    return results


def format_retrieval(results: Mapping[str, Any]) -> str:
    """A table of recalls with Wilson's 95 % intervals."""
    rows = []
    for way, counted in _WAYS.items():
        for name, share in results[way].items():
            low, high = wilson_interval(round(share * results[counted]), results[counted])
            rows.append([way.replace("_", " "), name, f"{share:.1%}", f"{low:.1%} to {high:.1%}"])
    title = f"{results['num_images']} images, {results['num_texts']} texts"
    return f"{title}\n{format_table(['search', 'measure', 'share', '95 %'], rows)}"


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """How alike images and texts are.

    Attributes:
        image_to_text: ``(I, T)``, by which an image's texts are ranked.
        text_to_image: ``(I, T)``, by which a text's images are ranked.
        owners: ``(T,)`` int64: the image that a text is about.
    """

    image_to_text: torch.Tensor
    text_to_image: torch.Tensor
    owners: torch.Tensor


def recall_at(scores: RetrievalScores, ranks: Sequence[int] = RANKS) -> dict[str, dict[str, float]]:
    """Share of images (texts) of which an own text (image) is among the first k.

    Args:
        scores: How alike they are; of equals the first counts as more alike.
        ranks: Values of k.

    Returns:
        ``image_to_text`` and ``text_to_image``, each ``recall@k`` -> share.
    """
    num_images = len(scores.image_to_text)
    is_own = scores.owners[None] == torch.arange(num_images)[:, None]
    texts = scores.image_to_text.argsort(dim=1, descending=True, stable=True)
    of_images = is_own.gather(1, texts).int().argmax(dim=1)
    images = scores.text_to_image.T.argsort(dim=1, descending=True, stable=True)
    of_texts = is_own.T.gather(1, images).int().argmax(dim=1)
    places = {"image_to_text": of_images, "text_to_image": of_texts}
    return {
        way: {f"recall@{rank}": (place < rank).double().mean().item() for rank in ranks}
        for way, place in places.items()
    }


@torch.no_grad()
def score_pairs(
    model: Any, processor: Any, dataset: ImageDataset, batch_size: int = 32, num_matched: int = 0
) -> RetrievalScores:
    """Compare all images with all of their captions.

    Args:
        model: In evaluation mode, with the methods of a :class:`moai.models.tcl.modeling_tcl.TCLModel`.
        processor: Its processor.
        dataset: Captioned images.
        batch_size: Images, texts or pairs per forward pass.
        num_matched: So many of the most alike are ranked anew by the matching head, each way, as in the original (256
            on COCO); 0 = none.
    """
    device, image_states, captions, owners = model.device, [], [], []
    for first in range(0, len(dataset), batch_size):
        samples = [dataset[index] for index in range(first, min(first + batch_size, len(dataset)))]
        pixels = processor(images=[sample.image for sample in samples])["pixel_values"]
        image_states.append(model.encode_images(pixels.to(device)))
        for number, sample in enumerate(samples, start=first):
            captions += sample.captions
            owners += [number] * len(sample.captions)
    images = torch.cat(image_states)
    words = processor(text=captions)
    ids, mask = words["input_ids"].to(device), words["attention_mask"].to(device)
    encode = model.text_model.encode
    pieces = [slice(first, first + batch_size) for first in range(0, len(ids), batch_size)]
    texts = torch.cat([encode(ids[piece], mask[piece]) for piece in pieces])
    alike = (model.project_images(images[:, 0]) @ model.project_texts(texts[:, 0]).T).cpu()
    ways = [alike, alike]
    if num_matched:
        for way, dimension in enumerate((1, 0)):
            chosen = alike.topk(min(num_matched, alike.shape[dimension]), dim=dimension).indices
            is_chosen = torch.zeros_like(alike, dtype=torch.bool).scatter(dimension, chosen, True)
            pairs = is_chosen.nonzero()
            logits = [
                model.match(texts[part[:, 1]], mask[part[:, 1]], images[part[:, 0]])[:, 1]
                for part in pairs.split(batch_size)
            ]
            ranked = torch.full_like(alike, -torch.inf)
            ranked[is_chosen] = torch.cat(logits).cpu()
            ways[way] = ranked
    return RetrievalScores(ways[0], ways[1], torch.tensor(owners))


def measure_retrieval(
    model: Any, processor: Any, dataset: ImageDataset, batch_size: int = 32, num_matched: int = 0
) -> dict[str, Any]:
    """Recall at 1, 5 and 10 both ways; see :func:`score_pairs` for the arguments.

    Returns:
        JSON-able: counts of images and texts, and :func:`recall_at`.
    """
    scores = score_pairs(model, processor, dataset, batch_size, num_matched)
    counts = {"num_images": len(dataset), "num_texts": len(scores.owners), "num_matched": num_matched}
    return counts | recall_at(scores)
