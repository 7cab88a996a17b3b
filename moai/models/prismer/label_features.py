"""Names to the channels of a map: a text encoder of the user's, and a PCA that is computed here.

The original's tables of features may not be passed on (NSCL), so that there are none here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file

__all__ = ["BACKGROUND_NAME", "ENCODER_FOLDER", "FEATURES_FILE", "LabelFeatures", "NameEncoder"]

FEATURES_FILE = "label_features.safetensors"
ENCODER_FOLDER = "label_encoder"
#: Its features stand where there is nothing.
BACKGROUND_NAME = "background"


class NameEncoder:
    """CLIP's text encoder: names to embeddings as they come out of its projection, not normalised.

    Args:
        model: A ``CLIPTextModelWithProjection``.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> NameEncoder:
        """Load a CLIP's text encoder.

        Args:
            name_or_path: Folder or hub name, for example ``openai/clip-vit-large-patch14``, the original's.
            **kwargs: To ``from_pretrained``: ``subfolder``, ``revision``.

        Raises:
            ValueError: There is none.
        """
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        try:
            model, report = CLIPTextModelWithProjection.from_pretrained(
                name_or_path, use_safetensors=True, output_loading_info=True, **kwargs
            )
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
        except OSError as error:
            raise ValueError(
                f"expected a CLIP with its tokenizer in {name_or_path}, got none: {str(error).splitlines()[0]} Give "
                "the folder or hub name of one, for example openai/clip-vit-large-patch14."
            ) from error
        if report["missing_keys"]:
            raise ValueError(
                f"expected all weights of a CLIP's text encoder in {name_or_path}, got none for "
                f"{len(report['missing_keys'])} ({min(report['missing_keys'])}, ...). Give another folder."
            )
        return cls(model, tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write encoder and tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @torch.inference_mode()
    def __call__(self, names: Sequence[str]) -> torch.Tensor:
        """``(len(names), d)`` float32."""
        rows = []
        for start in range(0, len(names), 256):
            part = list(names[start : start + 256])
            longest = self.model.config.max_position_embeddings
            batch = self.tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            rows.append(self.model(**batch.to(self.model.device)).text_embeds.float().cpu())
        return torch.cat(rows)


class LabelFeatures:
    """Features of names: a table of those that are known, and the way to those of any other.

    Args:
        names: K names.
        features: ``(K, size)`` float32.
        mean: ``(d,)`` of the PCA.
        components: ``(size, d)`` of the PCA.
        encoder: Names to ``(n, d)``, or what makes such a function at the first unknown name; None = no other names.
    """

    def __init__(
        self,
        names: Sequence[str],
        features: torch.Tensor,
        mean: torch.Tensor,
        components: torch.Tensor,
        encoder: Any = None,
    ) -> None:
        self.names, self.features, self.mean, self.components = tuple(names), features, mean, components.contiguous()
        self._encoder = encoder
        self._rows = dict(zip(self.names, features, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> LabelFeatures:
        """Itself: nothing of it changes, and processors are copied to be written."""
        return self

    @property
    def size(self) -> int:
        """Channels."""
        return len(self.components)

    @property
    def encoder(self) -> Callable[[Sequence[str]], torch.Tensor] | None:
        """The text encoder, loaded."""
        if isinstance(self._encoder, _LateEncoder):
            self._encoder = self._encoder.load()
        return self._encoder

    @classmethod
    def fit(
        cls, names: Sequence[str], encoder: Callable[[Sequence[str]], torch.Tensor], size: int = 64
    ) -> LabelFeatures:
        """Compute the PCA on names, and their features.

        Args:
            names: Class names; more than ``size`` different ones.
            encoder: Names to ``(n, d)`` float32.
            size: Channels; at most d.

        Raises:
            ValueError: There are too few names, or too few dimensions.
        """
        names = list(dict.fromkeys(map(normalize_name, (*names, BACKGROUND_NAME))))
        embeddings = encoder(names).double()
        if min(len(names) - 1, embeddings.shape[1]) < size:
            raise ValueError(
                f"expected more than {size} different names with embeddings of at least {size} dimensions, got "
                f"{len(names)} of {embeddings.shape[1]}. Give more names, or another text encoder."
            )
        mean = embeddings.mean(dim=0)
        components = torch.linalg.svd(embeddings - mean, full_matrices=False).Vh[:size]
        largest = components.abs().argmax(dim=1, keepdim=True)  # a component's sign is free: its largest entry is > 0
        components = components * components.gather(1, largest).sign()
        features = (embeddings - mean) @ components.T
        return cls(names, features.float(), mean.float(), components.float(), encoder)

    def __call__(self, names: Sequence[str]) -> torch.Tensor:
        """Features of names.

        Args:
            names: n names; upper and lower case are one.

        Returns:
            ``(n, size)`` float32.

        Raises:
            ValueError: A name is unknown, and there is no text encoder.
        """
        wanted = [normalize_name(name) for name in names]
        unknown = [name for name in dict.fromkeys(wanted) if name not in self._rows]
        if unknown:
            if self.encoder is None:
                raise ValueError(
                    f"expected a text encoder for names that the checkpoint has no features of, got none for "
                    f"{', '.join(map(repr, unknown[:3]))}. Set `processor.label_features` with an encoder "
                    "(LabelFeatures.fit(names, NameEncoder.from_pretrained(...))) and save the processor."
                )
            rows = (self.encoder(unknown).float() - self.mean) @ self.components.T
            if len(self._rows) > 100_000:  # words of a long run's images
                self._rows = dict(zip(self.names, self.features, strict=True))
            self._rows |= zip(unknown, rows, strict=True)
        return torch.stack([self._rows[name] for name in wanted]) if wanted else torch.zeros(0, self.size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the table, the PCA, and the text encoder where it can be written."""
        tensors = {"features": self.features, "mean": self.mean, "components": self.components}
        save_file(tensors, Path(folder) / FEATURES_FILE, metadata={"format": "pt", "names": json.dumps(self.names)})
        if hasattr(self.encoder, "save_pretrained"):
            self.encoder.save_pretrained(Path(folder) / ENCODER_FOLDER)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, revision: str = "main") -> LabelFeatures | None:
        """Read a checkpoint's features; None where it has none. The text encoder is loaded at the first unknown name.

        Raises:
            ValueError: The file is damaged.
        """
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        file = cached_file(str(name_or_path), FEATURES_FILE, revision=revision, **quiet)
        if file is None:
            return None
        try:
            with safe_open(file, framework="pt") as handle:
                names = json.loads(handle.metadata()["names"])
                tensors = [handle.get_tensor(name) for name in ("features", "mean", "components")]
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{file} holds no features of labels ({error}). Save the processor again.") from error
        config = cached_file(str(name_or_path), f"{ENCODER_FOLDER}/config.json", revision=revision, **quiet)
        encoder = None if config is None else _LateEncoder(str(name_or_path), revision)
        return cls(names, *tensors, encoder)


class _LateEncoder:
    """A checkpoint's text encoder, not loaded yet."""

    def __init__(self, name_or_path: str, revision: str) -> None:
        self.name_or_path, self.revision = name_or_path, revision

    def load(self) -> NameEncoder:
        """Load it."""
        if Path(self.name_or_path).is_dir():
            return NameEncoder.from_pretrained(Path(self.name_or_path) / ENCODER_FOLDER)
        return NameEncoder.from_pretrained(self.name_or_path, subfolder=ENCODER_FOLDER, revision=self.revision)


def normalize_name(name: str) -> str:
    """Lower case, single spaces: the form in which names are known."""
    return " ".join(name.lower().split())
