"""Names that models look for: the user's own files, published vocabularies, and facts of published models.

`COCO_PANOPTIC_NAMES`: the 133 categories of COCO panoptic 2017 in the order of Detectron2 and the panoptic API (80
things, then 53 stuff classes), https://github.com/cocodataset/panopticapi. The Panoptic Scene Graph data set uses the
same list (label = index + 1 in PSGTR's results).
`PSG_PREDICATES`: the 56 predicates of PSG (arXiv 2207.11247) in its order (predicate = index + 1; 0 = no relation).

The names of LVIS, Objects365, Open Images and ADE20K stand in files of the `ultralytics` package, those of ImageNet in
`timm`'s; neither package runs any model for it, and the former is not even imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from verbalizers.core.valid_text import make_valid
from verbalizers.core.vocabulary_matching import without_names

__all__ = [
    "COCO_PANOPTIC_NAMES",
    "PSG_PREDICATES",
    "Vocabulary",
    "available_vocabularies",
    "load_vocabulary",
    "read_vocabulary",
]

Vocabulary = Sequence[str] | str | Path
"""Names themselves, or where to find them; see `load_vocabulary`."""

_COCO_THINGS = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,"
    "handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,"
    "surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,"
    "broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,"
    "mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush"
)
_COCO_STUFF = (
    "banner,blanket,bridge,cardboard,counter,curtain,door-stuff,floor-wood,flower,fruit,gravel,house,"
    "light,mirror-stuff,net,pillow,platform,playingfield,railroad,river,road,roof,sand,sea,shelf,snow,"
    "stairs,tent,towel,wall-brick,wall-stone,wall-tile,wall-wood,water-other,window-blind,window-other,"
    "tree-merged,fence-merged,ceiling-merged,sky-other-merged,cabinet-merged,table-merged,"
    "floor-other-merged,pavement-merged,mountain-merged,grass-merged,dirt-merged,paper-merged,"
    "food-other-merged,building-other-merged,rock-merged,wall-other-merged,rug-merged"
)
_PSG_PREDICATES = (
    "over,in front of,beside,on,in,attached to,hanging from,on back of,falling off,going down,painted on,"
    "walking on,running on,crossing,standing on,lying on,sitting on,flying over,jumping over,"
    "jumping from,wearing,holding,carrying,looking at,guiding,kissing,eating,drinking,feeding,biting,"
    "catching,picking,playing with,chasing,climbing,cleaning,playing,touching,pushing,pulling,opening,"
    "cooking,talking to,throwing,slicing,driving,riding,parked on,driving on,about to hit,kicking,"
    "swinging,entering,exiting,enclosing,leaning on"
)

COCO_PANOPTIC_NAMES: tuple[str, ...] = tuple(f"{_COCO_THINGS},{_COCO_STUFF}".split(","))
PSG_PREDICATES: tuple[str, ...] = tuple(_PSG_PREDICATES.split(","))


def read_vocabulary(path: str | Path) -> tuple[str, ...]:
    """Names from a UTF-8 text file, one per line; empty lines and lines starting with # are skipped, repeats dropped.

    Raises:
        ValueError: the file cannot be read or has no names.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"expected the path of a UTF-8 text file with one name per line, or one of {list(_PUBLISHED)}, "
            f"got {str(path)!r} ({error})."
        ) from error
    lines = (line.strip() for line in text.splitlines())
    names = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not names:
        raise ValueError(f"{path} holds no names, expected one per line.")
    return names


def _ultralytics_names(file: str) -> tuple[str, ...]:
    """Names of a data set that ultralytics describes; of "sofa/couch" the first."""
    spec = importlib.util.find_spec("ultralytics")  # found, not imported: that would take seconds
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f'the names of {file} come from ultralytics: pip install "moai-vlm[detection]"')
    import yaml

    path = Path(spec.submodule_search_locations[0], "cfg", "datasets", file)
    names = yaml.safe_load(path.read_text(encoding="utf-8"))["names"]
    listed = [names[index] for index in sorted(names)] if isinstance(names, dict) else names
    # Objects365 and Open Images write Every Word Large; the words around them do not.
    return tuple(str(name).split("/")[0].strip().lower() for name in listed)


def _imagenet_names() -> tuple[str, ...]:
    """The 1,000 classes; of "tench, Tinca tinca" the first."""
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ImportError('ImageNet names come from timm: pip install "moai-vlm[segmentation]"') from error
    return tuple(text.split(",")[0] for text in ImageNetInfo("imagenet-1k").label_descriptions())


# Name -> the package that carries it (None = this one), and how it is read.
_PUBLISHED: dict[str, tuple[str | None, Callable[[], tuple[str, ...]]]] = {
    "coco_panoptic": (None, lambda: COCO_PANOPTIC_NAMES),
    "lvis": ("ultralytics", partial(_ultralytics_names, "lvis.yaml")),
    "objects365": ("ultralytics", partial(_ultralytics_names, "Objects365.yaml")),
    "open_images": ("ultralytics", partial(_ultralytics_names, "open-images-v7.yaml")),
    "ade20k": ("ultralytics", partial(_ultralytics_names, "ade20k.yaml")),
    "imagenet": ("timm", _imagenet_names),
}


def available_vocabularies() -> tuple[str, ...]:
    """Published vocabularies whose names are on this machine."""
    return tuple(
        name for name, (package, _) in _PUBLISHED.items() if package is None or importlib.util.find_spec(package)
    )


def load_vocabulary(source: Vocabulary, covered_by: Vocabulary = ()) -> tuple[str, ...]:
    """The names to look for, each once, in order.

    Args:
        source: names; or the path of a text file with one per line; or a published vocabulary ("coco_panoptic",
            "lvis", "objects365", "open_images", "ade20k", "imagenet"); or several of these joined by "+", e.g.
            "lvis+mine.txt". A file that is called like a published vocabulary is given as a `pathlib.Path`.
        covered_by: names to leave out because another model finds them, in the same forms; plurals,
            spellings and synonyms count (`vocabulary_matching`). E.g. "coco_panoptic" beside a panoptic segmenter.

    Raises:
        ValueError: no names, a name that is no text, or nothing is left.
        ImportError: the package that carries the names is not installed.
    """
    names = _names_of(source)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"`vocabulary` must hold names, got {tuple(names)[:5]!r}. Give ('cat', 'dog', ...).")
    left = without_names(names, _names_of(covered_by))
    if not left:
        raise ValueError(f"all {len(names)} names of `vocabulary` are in `covered_by`. Look for others.")
    return left


def _names_of(source: Vocabulary) -> tuple[str, ...]:
    if isinstance(source, Path):
        return read_vocabulary(source)
    if not isinstance(source, str):
        return tuple(make_valid(name) for name in source)
    if source in _PUBLISHED:
        return _PUBLISHED[source][1]()
    if "+" in source and not Path(source).exists():
        return tuple(name for part in source.split("+") for name in _names_of(part.strip()))
    return read_vocabulary(source)
