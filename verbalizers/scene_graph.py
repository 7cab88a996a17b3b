"""Scene graphs: their words."""

from __future__ import annotations

import numpy as np

from verbalizers.structures import Relations
from verbalizers.words import (
    RELATIONS_OPENING,
    WordSettings,
    list_sentence,
    number_duplicates,
    strip_coco_suffixes,
)

__all__ = ["verbalize_relations"]


def verbalize_relations(
    relations: Relations | None,
    threshold: float = WordSettings.relation_threshold,
    max_relations: int = WordSettings.max_relations,
    compat: bool = False,
) -> str:
    """Relations in words: `The image includes relationships between objects: A is on B, and C is holding D.`.

    Objects that share a name are numbered: `person (#2)`.

    Args:
        relations: None gives "".
        threshold: lowest confidence that is said.
        max_relations: how many are said at most, the surest first.
        compat: choose and order as the release does. It says nothing when there are fewer relations than
            min(10, objects), and its order is numpy's partition order; ours says them all, the surest first.
    """
    if relations is None:
        return ""
    choose = _choose_as_released if compat else _choose_surest
    names = number_duplicates([strip_coco_suffixes(name) for name in relations.object_names])
    items = []
    for index in choose(relations, threshold, max_relations):
        subject, object_ = int(relations.subject_indices[index]), int(relations.object_indices[index])
        if relations.object_names[subject] and relations.object_names[object_]:
            items.append(f"{names[subject]} is {relations.predicates[index]} {names[object_]}")
    return list_sentence(RELATIONS_OPENING, items)


def _choose_surest(relations: Relations, threshold: float, max_relations: int) -> list[int]:
    named = [bool(name) for name in relations.object_names]
    is_known = [named[s] and named[o] for s, o in zip(relations.subject_indices, relations.object_indices, strict=True)]
    order = np.argsort(-relations.confidence, kind="stable")
    kept = [int(i) for i in order if relations.confidence[i] >= np.float32(threshold) and is_known[i]]
    return kept[:max_relations]


def _choose_as_released(relations: Relations, threshold: float, max_relations: int) -> list[int]:
    wanted = min(max_relations, len(relations.object_names))
    if len(relations) == 0 or wanted > len(relations):
        return []
    # The release filters argpartition's indices by partition's values, which numpy does not promise to order
    # alike: both are needed to say exactly what it says.
    indices = np.argpartition(relations.confidence, -wanted)[-wanted:]
    scores = np.partition(relations.confidence, -wanted)[-wanted:]
    return [int(i) for i in indices[scores >= np.float32(threshold)]]
