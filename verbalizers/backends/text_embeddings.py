"""Embeddings of a vocabulary, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verbalizers.core.durable_files import atomic_file
from verbalizers.core.verbalizer import fingerprint_checkpoint

if TYPE_CHECKING:
    import torch

__all__ = ["TEXTS_PER_FORWARD", "embed_texts", "embeddings_path", "read_or_write"]

TEXTS_PER_FORWARD = 128


def embeddings_path(cache_dir: str | None, family: str, checkpoint: str, words: Sequence[str]) -> Path | None:
    """Where the embeddings of these words lie; None without a folder.

    Args:
        cache_dir: the folder.
        family: begins the file's name.
        checkpoint: the text model; a folder counts by its content, so that a retrained one computes anew.
        words: everything else that the embeddings follow from: the queries in order, the dtype ...
    """
    if not cache_dir:
        return None
    identity = json.dumps([fingerprint_checkpoint(checkpoint), *words])
    return Path(cache_dir, f"{family}-text-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.safetensors")


def embed_texts(
    texts: Sequence[str], tokenizer: Any, max_length: int, embed: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """Unit-length embeddings of texts, float32 `(N, D)`.

    Args:
        texts: what is embedded, each as it is.
        tokenizer: the text model's.
        max_length: tokens that each text is padded or cut to.
        embed: `input_ids` and `attention_mask` to `(B, D)`.
    """
    import torch

    parts = []
    for start in range(0, len(texts), TEXTS_PER_FORWARD):
        tokens = tokenizer(
            list(texts[start : start + TEXTS_PER_FORWARD]),
            padding="max_length",
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        embeddings = embed(tokens.input_ids, tokens.attention_mask)
        parts.append(torch.nn.functional.normalize(embeddings.float(), dim=-1))
    return torch.cat(parts)


def read_or_write(path: Path | None, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The tensor stored at `path`, or computed and stored there; None only computes.

    The file appears complete or not at all.
    """
    if path is None:
        return compute()
    from safetensors.torch import load_file, save_file

    if path.is_file():
        return load_file(path)["embeddings"]
    embeddings = compute().cpu()
    with atomic_file(path) as temporary:
        save_file({"embeddings": embeddings.contiguous()}, temporary)
    return embeddings
