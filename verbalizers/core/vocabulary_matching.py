"""Equality of class names: plurals, spellings and the synonyms of what panoptic models know."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from verbalizers.core.words import strip_coco_suffixes

__all__ = ["means_the_same", "name_keys", "without_names"]

_IRREGULAR_PLURALS = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "feet": "foot", "teeth": "tooth",
}  # fmt: skip
# Other words for COCO's panoptic names, as LVIS, Objects365, Open Images and ImageNet use them. Only true synonyms: a
# narrower word ("armchair" for "chair") is more precise than the segmenter's and stays.
_SYNONYMS = (
    ("airplane", "aeroplane"), ("motorcycle", "motorbike"), ("bicycle", "bike"), ("truck", "lorry"),
    ("traffic light", "traffic signal", "stoplight"), ("fire hydrant", "hydrant", "fireplug"), ("handbag", "purse"),
    ("tie", "necktie"), ("donut", "doughnut"), ("couch", "sofa"), ("potted plant", "houseplant", "pot plant"),
    ("dining table", "dinner table"), ("tv", "television", "television set"), ("laptop", "laptop computer"),
    ("mouse", "computer mouse"), ("remote", "remote control"), ("keyboard", "computer keyboard"),
    ("cell phone", "mobile phone", "cellular telephone", "cellular phone"), ("microwave", "microwave oven"),
    ("refrigerator", "fridge", "icebox"), ("teddy bear", "teddy"),
    ("hair drier", "hair dryer", "blow dryer", "hand blower"),
    ("baseball glove", "baseball mitt"), ("orange", "orange fruit"), ("window blind", "blind"), ("sea", "ocean"),
    ("pavement", "sidewalk"),
)  # fmt: skip


def _singulars(word: str) -> set[str]:
    """The word and whatever it may be the plural of; what is no word matches nothing and does no harm."""
    forms = {word, _IRREGULAR_PLURALS.get(word, word)}
    if len(word) > 4 and word.endswith("ies"):
        forms.add(word[:-3] + "y")
    if len(word) > 4 and word.endswith("ves"):
        forms |= {word[:-3] + "f", word[:-3] + "fe"}
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        forms.add(word[:-2])
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
    return forms


def _spellings(name: str) -> set[str]:
    """A name without case, blanks, hyphens, remarks in brackets and COCO's suffixes, its last word in the singular."""
    plain = re.sub(r"\([^)]*\)", " ", strip_coco_suffixes(name)).casefold()
    words = re.findall(r"[^\W_]+", plain)
    if not words:
        return {name.strip().casefold()}
    return {"".join(words[:-1]) + last for last in _singulars(words[-1])}


_GROUP_OF_SPELLING: dict[str, frozenset[str]] = {}
for _group in _SYNONYMS:
    _all = frozenset().union(*map(_spellings, _group))
    _GROUP_OF_SPELLING.update(dict.fromkeys(_all, _all))


@lru_cache(maxsize=16384)
def name_keys(name: str) -> frozenset[str]:
    """What a name is compared by: its spellings and their synonyms.

    Args:
        name: e.g. "sky-other-merged", "Traffic Lights", "sofa".

    Returns:
        Keys; two names mean the same when they share one.
    """
    spellings = _spellings(name)
    return frozenset(spellings).union(*(_GROUP_OF_SPELLING.get(spelling, ()) for spelling in spellings))


def means_the_same(first: str, second: str) -> bool:
    """Whether two names differ in case, number, spelling or by a synonym only; see `name_keys`."""
    return not name_keys(first).isdisjoint(name_keys(second))


def without_names(names: Iterable[str], covered: Iterable[str]) -> tuple[str, ...]:
    """The names that no covered one means, in order, each once.

    Args:
        names: a vocabulary.
        covered: what another model, say the panoptic one, finds already.
    """
    known = frozenset().union(*map(name_keys, covered))
    return tuple(name for name in dict.fromkeys(names) if known.isdisjoint(name_keys(name)))
