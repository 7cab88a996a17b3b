"""Predicate classification: how two objects are related, from their names and where they lie.

Scene graphs in two steps: find objects, then classify each ordered pair. Names alone tell most predicates and boxes
nearly all of the rest (Zellers et al., Neural Motifs, CVPR 2018, sections 4.3 and 6), so that no pixel is read.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from verbalizers.predcls.configuration_predcls import PredClsConfig
from verbalizers.predcls.measures_predcls import NUM_MEASURES

__all__ = ["PredClsForSceneGraph"]


class PredClsForSceneGraph(PreTrainedModel):
    """Two embeddings of names and a perceptron with two hidden layers."""

    config_class = PredClsConfig
    main_input_name = "subject_labels"

    def __init__(self, config: PredClsConfig) -> None:
        super().__init__(config)
        self.subject_names = nn.Embedding(config.num_labels, config.embedding_size)
        self.object_names = nn.Embedding(config.num_labels, config.embedding_size)
        self.entrance = nn.Linear(2 * config.embedding_size + NUM_MEASURES, config.hidden_size)
        self.middle = nn.Linear(config.hidden_size, config.hidden_size)
        self.exit = nn.Linear(config.hidden_size, 1 + len(config.predicate_names))
        self.post_init()

    def forward(
        self, subject_labels: torch.Tensor, object_labels: torch.Tensor, measures: torch.Tensor
    ) -> torch.Tensor:
        """Classify pairs.

        Args:
            subject_labels: int64 `(...)`, label of each pair's subject.
            object_labels: int64 `(...)`, likewise of its object.
            measures: float32 `(..., 33)`, what :func:`measure_pairs` says of them.

        Returns:
            Logits `(..., 1 + R)`: not related, then the predicates.
        """
        names = self.subject_names(subject_labels), self.object_names(object_labels)
        hidden = F.gelu(self.entrance(torch.cat([*names, measures.to(names[0].dtype)], dim=-1)))
        return self.exit(F.gelu(self.middle(hidden)))
