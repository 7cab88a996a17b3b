"""Configuration of the predicate classifier."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

__all__ = ["PredClsConfig"]


@strict
class PredClsConfig(PreTrainedConfig):
    """Sizes and names.

    Args:
        embedding_size: width of a name's embedding, as subject and as object.
        hidden_size: width of the two hidden layers.
        predicate_names: the R predicates.
        symmetric_predicates: those among them that hold in both directions; told once.
        id2label: the C names of objects that it knows.
    """

    model_type = "predcls"

    embedding_size: int = 32
    hidden_size: int = 192
    predicate_names: list[str] | tuple[str, ...] = ()
    symmetric_predicates: list[str] | tuple[str, ...] = ()
