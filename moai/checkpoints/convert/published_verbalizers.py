"""What the released MoAI-7B looks with, as the ``verbalizers.json`` of a converted checkpoint.

Models on the hub are named, not copied: their weights keep their place and their licence.
Local folders are copied into the checkpoint, which can then be moved or uploaded as one.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verbalizers import WordSettings
from verbalizers.core.vocabularies import load_vocabulary

from ..io.lookup import is_hub_name
from ..io.published_settings import (
    PUBLISHED_DETECTOR,
    PUBLISHED_SEGMENTER,
    PUBLISHED_VOCABULARIES,
    published_entries,
)
from ..io.verbalizer_settings import VerbalizerSettings
from .psgtr import KIND as PSGTR

__all__ = ["PublishedVerbalizers"]

FOLDER = "verbalizers"
VOCABULARY_FILE = "vocabulary.txt"
NO_LEARNED_SCENE_GRAPH = (
    "the release's learned scene graph (PSGTR) is absent; scene_graph/geometric, which has no weights, stands in its "
    "place. With PSGTR's weights at hand convert again with --scene-graph FILE."
)


@dataclass(frozen=True)
class PublishedVerbalizers:
    """The models that look for a converted checkpoint.

    Attributes:
        segmentation: Folder or hub name of the panoptic segmenter.
        detection: Folder or hub name of the OWLv2 detector.
        scene_graph: Folder, hub name or published file (``psgtr_r50_epoch_60.pth``) of a PSGTR; None = the backend
            ``geometric``, which has no weights.
        vocabulary: What the detector looks for, as :func:`verbalizers.core.vocabularies.load_vocabulary` takes it; None
            = the published lists that are installed here.
    """

    segmentation: str | Path = PUBLISHED_SEGMENTER
    detection: str | Path = PUBLISHED_DETECTOR
    scene_graph: str | Path | None = None
    vocabulary: str | Path | None = None

    def hub_names(self) -> tuple[str, ...]:
        """Those that are named on the hub."""
        chosen = (self.segmentation, self.detection, self.scene_graph)
        return tuple(str(name) for name in chosen if name is not None and is_hub_name(str(name)))

    def write(self, folder: Path) -> tuple[str, ...]:
        """Write ``verbalizers.json`` and what it names in the folder.

        Args:
            folder: Of the checkpoint; must exist.

        Returns:
            What a reader should know, one sentence each.

        Raises:
            ValueError: A model is neither a folder with its weights nor a hub name.
        """
        vocabulary, note = self._write_vocabulary(folder)
        notes = [note]
        entries = published_entries()
        entries["segmentation"]["settings"]["checkpoint"] = _place(self.segmentation, "segmentation", folder)
        entries["detection"]["settings"]["checkpoint"] = _place(self.detection, "detection", folder)
        entries["detection"]["settings"]["vocabulary"] = vocabulary
        if self.scene_graph is None:
            notes.append(NO_LEARNED_SCENE_GRAPH)
        else:
            entries["scene_graph"] = _scene_graph_entry(self.scene_graph, folder)
        words = WordSettings(merge_iou=None)  # its thresholds are the release's by default
        VerbalizerSettings(tuple(entries.values()), words=words, map="always", compat=True).save(folder)
        if self.hub_names():
            notes.append(f"named on the hub, fetched where the local cache lacks them: {', '.join(self.hub_names())}")
        if self.segmentation == PUBLISHED_SEGMENTER:
            notes.append("the segmenter's weights are CC BY-NC 4.0 (Mask2Former's model zoo): not for commercial use")
        return tuple(notes)

    def _write_vocabulary(self, folder: Path) -> tuple[str, str]:
        """The setting of the detector, and a sentence about it."""
        wanted = self.vocabulary or published_entries()["detection"]["settings"]["vocabulary"]
        try:
            names = load_vocabulary(wanted)
        except ImportError as error:
            return PUBLISHED_VOCABULARIES[-1], f"the detector's names are not there yet: {error}"
        file = folder / FOLDER / VOCABULARY_FILE
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(names) + "\n", encoding="utf-8")
        return f"./{FOLDER}/{VOCABULARY_FILE}", (
            f"the detector looks for {len(names):,} names ({wanted}); the release asks for ADE20K's 847 and ImageNet's "
            f"1,000. Others: --vocabulary, or {FOLDER}/{VOCABULARY_FILE}."
        )


def _place(source: str | Path, kind: str, folder: Path) -> str:
    """The setting that names a model: a hub name as it is, a folder as its copy inside the checkpoint."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
            raise ValueError(
                f"expected the {kind} model in {path}, got a folder without config.json or *.safetensors. Save it with "
                "save_pretrained."
            )
        copy = folder / FOLDER / kind
        copy.mkdir(parents=True)
        for file in path.iterdir():
            if file.is_file() and file.suffix in {".json", ".safetensors", ".txt", ".model", ".md"}:
                shutil.copyfile(file, copy / file.name)
        return f"./{FOLDER}/{kind}"
    if is_hub_name(str(source)):
        return str(source)
    raise ValueError(f"expected a folder or a hub name (owner/name) for {kind}, got {str(source)!r}. Check the path.")


def _scene_graph_entry(source: str | Path, folder: Path) -> dict[str, Any]:
    """The entry of a PSGTR with its published thresholds; a published file is converted."""
    path = Path(source).expanduser()
    if path.is_file():
        weights = PSGTR.open(path)
        if not PSGTR.recognises(weights.tensors):
            raise ValueError(f"expected the weights of a PSGTR, got {path}, which holds none. Check the file.")
        PSGTR.run(weights, path, folder / FOLDER / "scene_graph")
        checkpoint = f"./{FOLDER}/scene_graph"
    else:
        checkpoint = _place(source, "scene_graph", folder)
    settings = {
        "checkpoint": checkpoint,
        "subject_threshold": 0.5,
        "object_threshold": 0.5,
        "relation_threshold": 0.3,
        "mask_threshold": 0.85,
        "max_triplets": 100,
    }
    return {"kind": "scene_graph", "backend": "psgtr", "settings": settings}
