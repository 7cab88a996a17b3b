"""Names that published models know: facts of the data sets they were trained on.

`COCO_PANOPTIC_NAMES`: the 133 categories of COCO panoptic 2017 in the order of Detectron2 and the panoptic
    API (80
things, then 53 stuff classes), https://github.com/cocodataset/panopticapi. The Panoptic Scene Graph data set
uses the same list (label = index + 1 in PSGTR's results).
`PSG_PREDICATES`: the 56 predicates of PSG (arXiv 2207.11247) in its order (predicate = index + 1; 0 = no
    relation).
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["COCO_PANOPTIC_NAMES", "PSG_PREDICATES", "imagenet_names", "read_vocabulary", "without_names"]

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
    """Names from a UTF-8 text file, one per line; empty lines and lines starting with # are skipped, repeats
    dropped.

    Raises:
        ValueError: the file has no names.
    """
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    names = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not names:
        raise ValueError(f"{path} holds no names, expected one per line.")
    return names


def imagenet_names() -> tuple[str, ...]:
    """The 1,000 ImageNet class names that the `timm` package carries, first synonym of each.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ImportError('ImageNet names come from timm: pip install "moai-vlm[detection]"') from error
    info = ImageNetInfo("imagenet-1k")
    return tuple(name.split(",")[0] for name in info.label_descriptions())


def without_names(vocabulary: tuple[str, ...], covered: tuple[str, ...]) -> tuple[str, ...]:
    """The names that `covered` lacks, compared without case; order kept, repeats dropped."""
    known = {name.casefold() for name in covered}
    return tuple(name for name in dict.fromkeys(vocabulary) if name.casefold() not in known)
