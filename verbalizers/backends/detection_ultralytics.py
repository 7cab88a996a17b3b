"""Detection with YOLO models through `ultralytics`: YOLO-World, YOLOE, and any detecting or segmenting YOLO.

What this door does differently from `ultralytics.YOLO(...)`, and why:

- Nothing is downloaded, installed or reported. ultralytics fetches weights it misses, pip-installs packages a
  checkpoint names, and counts uses on a server; here the weights are a local file and its network switches are off.
- A published `.pt` file is a pickle. It is read by torch's `weights_only` reader with ultralytics' list of its own
  model classes (`torch_safe_load(safe_only=True)`); a file that needs anything else is refused, none is run.
- Words become embeddings through transformers' CLIP and safetensors, once per vocabulary, instead of through a
  TorchScript program; see `UltralyticsDetector`.

ultralytics is licensed under AGPL-3.0: what you distribute or serve with it falls under that licence's terms.
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from verbalizers.backends.detection import select_detections
from verbalizers.backends.text_embeddings import embed_texts, embeddings_path, read_or_write
from verbalizers.core.adapters import to_numpy
from verbalizers.core.boxes import is_inside_image
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.structures import Detections
from verbalizers.core.validation import check_range
from verbalizers.core.verbalizer import fingerprint_checkpoint
from verbalizers.core.vocabularies import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    import torch

__all__ = ["UltralyticsDetector", "load_yolo", "read_prompt_embeddings"]

_SWITCHES = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
_loading = threading.Lock()  # ultralytics keeps "a restricted load is going on" per process, not per file


def import_ultralytics() -> None:
    """Import ultralytics with its network switches off, unless the user's environment says otherwise.

    Raises:
        ImportError: it is not installed.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    opened_by_pillow = Image.open
    try:
        import ultralytics  # noqa: F401
        import ultralytics.utils.patches  # noqa: F401
    except ImportError as error:
        line = 'pip install "moai-vlm[detection]"'
        raise ImportError(f"YOLO models need ultralytics (AGPL-3.0): {line} ({error})") from error
    finally:
        # It replaces Pillow's own function for the whole process, by one that wants to install pi-heif for every
        # image that Pillow does not know. Ours goes on seeing Pillow's errors.
        Image.open = opened_by_pillow


@contextmanager
def _neutral_name(path: Path) -> Iterator[Path]:
    """The file under a name that ultralytics does not interpret.

    It takes yolov5s.pt for yolov5su.pt and drops quotes, and would download what it then does not find.
    """
    with tempfile.TemporaryDirectory() as folder:
        neutral = Path(folder, "model.pt")
        try:
            neutral.symlink_to(path.resolve())
        except OSError:  # Windows without the right to make links
            shutil.copyfile(path, neutral)
        yield neutral


def load_yolo(path: str | Path) -> torch.nn.Module:
    """Read a local YOLO checkpoint without running code that it holds.

    Args:
        path: a `.pt` file as ultralytics saves and publishes them.

    Returns:
        The detecting or segmenting model in float32 on the CPU, ready to look.

    Raises:
        ValueError: no such file, not one of ultralytics' model checkpoints, or it holds more than model classes.
        ImportError: ultralytics, or a package that the checkpoint needs, is not installed.
    """
    path = Path(path)
    if path.suffix != ".pt" or not path.is_file():
        raise ValueError(
            f"expected a local .pt file of a YOLO model, got {str(path)!r}. Nothing is downloaded: fetch the file "
            "yourself, e.g. yolov8s-worldv2.pt from https://github.com/ultralytics/assets/releases."
        )
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, torch_safe_load

    if "safe_only" not in inspect.signature(torch_safe_load).parameters:
        raise ImportError('this ultralytics cannot read a checkpoint safely: pip install -U "moai-vlm[detection]"')
    try:
        with _loading, _neutral_name(path) as neutral:
            content, _ = torch_safe_load(str(neutral), safe_only=True)
    except (TypeError, RuntimeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{str(path)!r} is refused: it is damaged, or no model of ultralytics' own classes, and nothing else in a "
            f"pickle is read here. ({error})"
        ) from error
    model = content.get("ema") or content.get("model")
    if not isinstance(model, DetectionModel) or isinstance(model, RTDETRDetectionModel):
        raise ValueError(
            f"expected a detecting or segmenting YOLO in {str(path)!r}, got {type(model).__name__}. RT-DETR runs "
            "through transformers."
        )
    model = model.float().eval()
    for module in model.modules():  # as ultralytics' own loader does for files of older versions
        if hasattr(module, "inplace"):
            module.inplace = True
        if type(module).__name__ == "Upsample" and not hasattr(module, "recompute_scale_factor"):
            module.recompute_scale_factor = None
    return model.requires_grad_(False)


def read_prompt_embeddings(path: str | Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and their embeddings from the file that ultralytics' `YOLOE.save_prompt_embeddings` writes.

    Returns:
        N names, float32 `(N, D)`.

    Raises:
        ValueError: the file is not of that form.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            names, embeddings = tuple(map(str, data["names"])), data["embeddings"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"expected an .npz file with `names` and `embeddings`, got {str(path)!r} ({error}). Write one with "
            "ultralytics' YOLOE.save_prompt_embeddings."
        ) from error
    embeddings = embeddings.reshape(-1, embeddings.shape[-1])
    if len(names) != len(embeddings) or not np.isfinite(embeddings).all():
        raise ValueError(f"{str(path)!r} holds {len(names)} names for {len(embeddings)} embeddings, expected as many.")
    return names, embeddings


@register_verbalizer("detection", "ultralytics")
@dataclass(eq=False, kw_only=True)
class UltralyticsDetector(CheckpointVerbalizer):
    """YOLO models of the `ultralytics` package (AGPL-3.0).

    The vocabulary depends on the model:

    - any YOLO, and an open-vocabulary one whose names were fixed before it was saved (`set_classes`, prompt-free
      YOLOE): its own names; `vocabulary` then chooses among them.
    - YOLO-World (arXiv 2401.17270): any `vocabulary`, with `text_checkpoint`, a folder or hub name of the CLIP that it
      was trained with (`openai/clip-vit-base-patch32`), read by transformers from safetensors.
    - YOLOE (arXiv 2503.07465): its text model exists as a TorchScript program only, which is not run here. Compute the
      embeddings once where you trust it (`YOLOE.save_prompt_embeddings("names.npz")`) and give `text_embeddings`.

    Attributes:
        checkpoint: a local `.pt` file; see `load_yolo`.
        dtype: as ever; None = float16 on CUDA, because bfloat16 would place boxes 4 pixels apart.
        vocabulary: see above and `vocabularies.load_vocabulary`; None = all names the model knows.
        covered_by: names to leave out; see `vocabularies.load_vocabulary`.
        text_checkpoint: YOLO-World's text model.
        text_embeddings: `.npz` file of names and embeddings, instead; see `read_prompt_embeddings`.
        image_size: longer side of the image in pixels as the model sees it.
        threshold: lowest confidence.
        nms_threshold: of boxes with the same name that overlap by more than this IoU the most confident is kept.
        max_detections: how many are kept at most.
        cache_dir: folder for text embeddings (safetensors); None = memory only.
    """

    vocabulary: Vocabulary | None = None
    covered_by: Vocabulary = ()
    text_checkpoint: str | None = None
    text_embeddings: str | None = None
    image_size: int = 640
    threshold: float = 0.25
    nms_threshold: float = 0.7
    max_detections: int = 100
    cache_dir: str | None = None
    version: ClassVar[int] = 2  # 2: without boxes in the padding
    _not_fingerprinted: ClassVar[tuple[str, ...]] = (*CheckpointVerbalizer._not_fingerprinted, "cache_dir")
    _text_lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary is not None:
            self.vocabulary = load_vocabulary(self.vocabulary, self.covered_by)
        if self.text_checkpoint and self.text_embeddings:
            raise ValueError("expected `text_checkpoint` or `text_embeddings`, got both. Leave one out.")
        check_range(self, "threshold", "nms_threshold")
        check_range(self, "image_size", low=32, high=None)

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        import torch

        if self.dtype is None and dtype is torch.bfloat16:
            dtype = torch.float16
        model = load_yolo(self.checkpoint)
        names, classes = self._set_vocabulary(model)
        # A YOLO head keeps the grid of the last image's size: two threads with two sizes would mix them up.
        lock = threading.Lock()
        return SimpleNamespace(model=model.to(device, dtype), names=names, classes=classes, dtype=dtype, lock=lock)

    def _set_vocabulary(self, model: torch.nn.Module) -> tuple[dict[int, str], list[int] | None]:
        """Set an open-vocabulary model's names. Returns names by class id, and which ids count (None = all)."""
        from ultralytics.nn.tasks import WorldModel, YOLOEModel

        is_open = isinstance(model, WorldModel | YOLOEModel) and not hasattr(model.model[-1], "lrpc")
        if (self.text_checkpoint or self.text_embeddings) and not is_open:
            raise ValueError(
                f"{type(model).__name__} in {self.checkpoint!r} has names of its own and reads no others. Leave "
                "`text_checkpoint` and `text_embeddings` out, or give a YOLO-World or YOLOE checkpoint."
            )
        if self.text_embeddings:
            names, embeddings = self._chosen_embeddings()
        elif self.text_checkpoint:
            names, embeddings = self._encoded_vocabulary(model)
        else:
            return self._built_in_names(model, is_open)
        width = model.txt_feats.shape[-1] if isinstance(model, WorldModel) else model.model[-1].embed
        if embeddings.shape[-1] != width:
            raise ValueError(
                f"expected text embeddings of width {width} for {type(model).__name__}, got {embeddings.shape[-1]}. "
                "They must come from the text model that it was trained with."
            )
        if isinstance(model, WorldModel):
            model.txt_feats = embeddings[None]
            model.model[-1].nc = len(names)
        else:
            model.set_classes(list(names), embeddings[None])
        return dict(enumerate(names)), None

    def _built_in_names(self, model: torch.nn.Module, is_open: bool) -> tuple[dict[int, str], list[int] | None]:
        listed = model.names if isinstance(model.names, Mapping) else dict(enumerate(model.names))
        names = {int(index): str(name) for index, name in listed.items()}
        if self.vocabulary is None and not self.covered_by:
            return names, None
        unknown = sorted(set(self.vocabulary or ()) - set(names.values()))
        if unknown:
            advice = "Its own are " + ", ".join(list(names.values())[:8]) + " ..."
            if is_open:
                advice = (
                    'For YOLO-World give `text_checkpoint`, a local folder of CLIP ("openai/clip-vit-base-patch32" in '
                    "transformers' form); for YOLOE `text_embeddings`, written by YOLOE.save_prompt_embeddings."
                )
            raise ValueError(f"{self.checkpoint!r} has no embeddings for {unknown[:5]} ({len(unknown)}). {advice}")
        wanted = set(self.vocabulary or load_vocabulary(tuple(names.values()), self.covered_by))
        return names, [index for index, name in names.items() if name in wanted]

    def _chosen_embeddings(self) -> tuple[tuple[str, ...], torch.Tensor]:
        import torch

        names, embeddings = read_prompt_embeddings(self.text_embeddings)
        wanted = self.vocabulary or load_vocabulary(names, self.covered_by)
        missing = sorted(set(wanted) - set(names))
        if missing:
            raise ValueError(f"{self.text_embeddings!r} lacks {missing[:5]} ({len(missing)}). Add them to the file.")
        return wanted, torch.from_numpy(embeddings[[names.index(name) for name in wanted]])

    def _encoded_vocabulary(self, model: torch.nn.Module) -> tuple[tuple[str, ...], torch.Tensor]:
        from ultralytics.nn.tasks import YOLOEModel

        if isinstance(model, YOLOEModel):
            raise ValueError(
                "YOLOE's text model (MobileCLIP) is a TorchScript program, which is not run here. Compute embeddings "
                'once with ultralytics (YOLOE.save_prompt_embeddings("names.npz")) and give `text_embeddings`.'
            )
        if self.vocabulary is None:
            raise ValueError("`text_checkpoint` embeds a `vocabulary`, got none. Give the names to look for.")
        path = embeddings_path(self.cache_dir, "clip", self.text_checkpoint, self.vocabulary)
        with self._text_lock:
            return self.vocabulary, read_or_write(path, lambda: encode_with_clip(self.text_checkpoint, self.vocabulary))

    def fingerprint_settings(self) -> dict[str, Any]:
        """As `Verbalizer.fingerprint_settings`; the text embeddings count by their content too."""
        settings = super().fingerprint_settings()
        if self.text_embeddings is not None:
            settings["text_embeddings"] = fingerprint_checkpoint(self.text_embeddings)
        return settings

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[Detections]:
        import torch
        from ultralytics.data.augment import LetterBox
        from ultralytics.utils.nms import non_max_suppression
        from ultralytics.utils.ops import scale_boxes

        model, size_hw = loaded.model, images[0].shape[:2]
        letterbox = LetterBox((self.image_size, self.image_size), auto=True, stride=int(model.stride.max()))
        resized = np.stack([letterbox(image=image) for image in images])  # (B, h, w, 3), sides divisible by the stride
        pixels = torch.from_numpy(resized).to(next(model.parameters()).device).permute(0, 3, 1, 2)
        with loaded.lock:
            raw: Any = model(pixels.to(loaded.dtype) / 255)
        while isinstance(raw, tuple | list):  # boxes come first; behind them training outputs, masks' prototypes
            raw = raw[0]
        rows = non_max_suppression(
            raw.float(),
            conf_thres=max(float(np.nextafter(np.float32(self.threshold), np.float32(-1))), 0.0),  # ours is inclusive
            iou_thres=self.nms_threshold,
            classes=loaded.classes,
            max_det=self.max_detections,
            nc=len(loaded.names),
            end2end=bool(getattr(model, "end2end", False)),
            max_time_img=3600.0,  # otherwise a slow machine silently leaves the last images of a batch empty
        )
        found = []
        for row in rows:
            boxes = scale_boxes(pixels.shape[2:], row[:, :4].clone(), size_hw)
            # ultralytics moves boxes in the padding to the image's edge, where they have no area.
            is_inside = torch.from_numpy(is_inside_image(to_numpy(boxes), size_hw)).to(row.device)
            boxes, row = boxes[is_inside], row[is_inside]
            names = tuple(loaded.names[int(index)] for index in row[:, 5].tolist())
            confidence = np.clip(to_numpy(row[:, 4]), 0, 1)
            detections = Detections(to_numpy(boxes), names, confidence, size_hw)
            found.append(select_detections(detections, self.threshold, None, self.max_detections))
        return found


def encode_with_clip(checkpoint: str, names: tuple[str, ...]) -> torch.Tensor:
    """Unit-length CLIP embeddings of names, float32 `(N, D)` on the CPU.

    Args:
        checkpoint: folder or hub name of a CLIP model in transformers' form, safetensors.
        names: what is embedded, each as it is.

    Raises:
        ValueError: it cannot be loaded.
    """
    import torch
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    model = from_pretrained(CLIPTextModelWithProjection, checkpoint, dtype=torch.float32, use_safetensors=True).eval()
    tokenizer = from_pretrained(AutoTokenizer, checkpoint)
    with torch.inference_mode():
        max_length = model.config.max_position_embeddings
        return embed_texts(names, tokenizer, max_length, lambda *inputs: model(*inputs).text_embeds)
