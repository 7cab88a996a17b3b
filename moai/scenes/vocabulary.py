"""What a synthetic scene may contain: object classes, stuff classes, predicates and words on signs.

The names follow the COCO panoptic vocabulary (Kirillov et al., "Panoptic Segmentation", arXiv 1801.00868) without its
`-merged`, `-other` and `-stuff` suffixes, as the verbalization prints them; the predicates are those of Panoptic Scene
Graph generation (Yang et al., arXiv 2207.11247). One name in four is in neither: open-world detection has to find it.
"""

from dataclasses import dataclass

__all__ = [
    "COLOURS",
    "GROUPS",
    "OBJECT_CLASSES",
    "OUTSIDE_NAMES",
    "PAINTED_NAMES",
    "PAINTS",
    "PANOPTIC_NAMES",
    "PREDICATES",
    "STUFF_NAMES",
    "SYNONYMS",
    "ObjectClass",
    "indefinite",
    "is_plural_name",
    "plural",
]


@dataclass(frozen=True, slots=True)
class ObjectClass:
    """One nameable thing.

    Attributes:
        name: what verbalizers, questions and answers call it.
        group: its role when a scene is laid out (see `GROUPS`).
        height: height relative to a standing person; compressed, so that small things stay recognisable.
        sprites: emoji code points in hexadecimal (`-` joins a sequence); empty = drawn by `scene_drawings`.
        in_panoptic_vocabulary: False for names that only open-world detection can report.
    """

    name: str
    group: str
    height: float
    sprites: tuple[str, ...]
    in_panoptic_vocabulary: bool


_TONES = ("", "-1F3FB", "-1F3FD", "-1F3FE", "-1F3FF")
PERSON_POSES = ("standing",) * 15 + ("walking",) * 15 + ("running",) * 4
PORTRAIT_SPRITES = ("1F468", "1F469-1F3FD", "1F9D1-1F3FE", "1F466-1F3FB", "1F467-1F3FF", "1F474", "1F475-1F3FD")
_PERSON_SPRITES = (
    *(f"1F9CD{t}{g}" for g in ("", "-200D-2642-FE0F", "-200D-2640-FE0F") for t in _TONES),
    *(f"1F6B6{t}{g}" for g in ("", "-200D-2642-FE0F", "-200D-2640-FE0F") for t in _TONES),
    *(f"1F3C3{t}{g}" for g in ("-200D-2642-FE0F", "-200D-2640-FE0F") for t in ("-1F3FB", "-1F3FE")),
)

# name: group, relative height, sprites. "" = drawn.
_INSIDE = """
bicycle: bike, 0.62, 1F6B2
motorcycle: bike, 0.6, 1F3CD 1F6F5
car: vehicle, 0.62, 1F697 1F699 1F695
bus: vehicle, 0.95, 1F68C 1F68E
truck: vehicle, 0.9, 1F69A 1F69B 1F6FB
train: train, 1.0, 1F682 1F683
airplane: aircraft, 0.6, 2708 1F6E9
boat: boat, 0.75, 26F5 1F6F6 1F6A4 1F6E5 26F4
traffic light: street, 0.8, 1F6A6
fire hydrant: street, 0.55,
stop sign: street, 0.6, 1F6D1
parking meter: street, 0.75,
bench: seat, 0.55,
bird: flyer, 0.4, 1F426 1F54A 1F426-200D-2B1B 1F985
cat: pet, 0.5, 1F408 1F408-200D-2B1B
dog: pet, 0.55, 1F415 1F429
horse: mount, 0.9, 1F40E
sheep: animal, 0.6, 1F411 1F40F
cow: animal, 0.8, 1F404 1F402
elephant: mount, 1.05, 1F418
bear: animal, 0.65, 1F43B
zebra: animal, 0.8, 1F993
giraffe: animal, 1.2, 1F992
backpack: luggage, 0.45, 1F392
umbrella: holdable, 0.55, 2602 1F302
handbag: luggage, 0.4, 1F45C 1F45B
tie: worn, 0.35,
suitcase: luggage, 0.5, 1F9F3
frisbee: sport, 0.3, 1F94F
skis: board, 0.25,
snowboard: board, 0.25,
sports ball: sport, 0.3, 26BD 1F3C0 1F3D0
kite: floater, 0.5, 1FA81
baseball bat: holdable, 0.45,
skateboard: board, 0.28, 1F6F9
surfboard: board, 0.3,
tennis racket: holdable, 0.45, 1F3BE
bottle: item, 0.42, 1F37E 1F9F4
wine glass: item, 0.4, 1F377
cup: item, 0.34, 1F964 2615 1F375
fork: item, 0.36,
knife: item, 0.36, 1F52A
spoon: item, 0.36, 1F944
bowl: container, 0.34, 1F963
banana: food, 0.33, 1F34C
apple: food, 0.32, 1F34E 1F34F
sandwich: food, 0.34, 1F96A
orange: food, 0.32, 1F34A
broccoli: food, 0.34, 1F966
carrot: food, 0.34, 1F955
hot dog: food, 0.34, 1F32D
pizza: food, 0.38, 1F355
donut: food, 0.34, 1F369
cake: food, 0.4, 1F370 1F382
chair: seat, 0.7, 1FA91
couch: seat, 0.75, 1F6CB
potted plant: furniture, 0.55, 1FAB4
bed: seat, 0.6, 1F6CF
dining table: surface, 0.6,
toilet: furniture, 0.6, 1F6BD
tv: device, 0.5, 1F4FA
laptop: device, 0.42, 1F4BB
mouse: item, 0.3, 1F5B1
remote: item, 0.34,
keyboard: item, 0.26, 2328
cell phone: holdable, 0.36, 1F4F1
microwave: device, 0.4,
oven: furniture, 0.7,
toaster: device, 0.36,
sink: furniture, 0.6,
refrigerator: furniture, 1.0,
book: holdable, 0.36, 1F4D5 1F4D7 1F4D8
clock: mounted, 0.36, 1F550 23F0
vase: container, 0.42, 1F3FA
scissors: item, 0.36, 2702
teddy bear: toy, 0.42, 1F9F8
hair drier: item, 0.36,
toothbrush: item, 0.36, 1FAA5
tree: tree, 1.25, 1F333 1F332 1F334
house: building, 1.25, 1F3E0 1F3E1 1F3DA
building: building, 1.5, 1F3E2 1F3EC
tent: building, 0.85, 26FA
flower: flower, 0.4, 1F33B 1F337 1F339 1F33C
mirror: mounted, 0.55, 1FA9E
window: mounted, 0.6, 1FA9F
door: door, 1.1, 1F6AA
rock: surface, 0.45, 1FAA8
cardboard: surface, 0.45, 1F4E6
light: hanging, 0.36, 1F4A1
cabinet: surface, 0.65, 1F5C4
fence: backdrop, 0.45,
shelf: backdrop, 1.0,
pillow: toy, 0.3,
stairs: backdrop, 0.7,
curtain: mounted, 0.75,
bridge: backdrop, 0.6,
"""

_OUTSIDE = """
rabbit: pet, 0.45, 1F407
turtle: animal, 0.4, 1F422
snail: animal, 0.36, 1F40C
monkey: animal, 0.6, 1F412
pig: animal, 0.6, 1F416
camel: mount, 0.9, 1F42A
kangaroo: animal, 0.75, 1F998
lion: animal, 0.65, 1F981
tiger: animal, 0.6, 1F405
deer: animal, 0.85, 1F98C
penguin: animal, 0.55, 1F427
frog: animal, 0.38, 1F438
fish: swimmer, 0.4, 1F41F 1F420
octopus: swimmer, 0.45, 1F419
dolphin: swimmer, 0.5, 1F42C
butterfly: flyer, 0.36, 1F98B
bee: flyer, 0.33, 1F41D
sun: sky, 0.45, 2600
moon: sky, 0.4, 1F319
balloon: floater, 0.5, 1F388
rocket: aircraft, 0.55, 1F680
helicopter: aircraft, 0.55, 1F681
hamburger: food, 0.36, 1F354
ice cream: food, 0.38, 1F366
pineapple: food, 0.42, 1F34D
strawberry: food, 0.32, 1F353
hat: worn, 0.34, 1F3A9 1F452 1F9E2
crown: worn, 0.32, 1F451
glasses: worn, 0.22, 1F453 1F576
guitar: holdable, 0.5, 1F3B8
trumpet: holdable, 0.4, 1F3BA
drum: toy, 0.4, 1F941
lantern: hanging, 0.4, 1F3EE
basket: container, 0.45, 1F9FA
bucket: container, 0.42, 1FAA3
camera: holdable, 0.36, 1F4F7
sign: sign, 0.7,
cactus: plant, 0.6, 1F335
"""

STUFF_NAMES: tuple[str, ...] = (
    *("sky", "grass", "water", "sea", "river", "road", "pavement", "wall", "floor", "sand", "snow", "mountain"),
    *("dirt", "gravel", "playingfield", "railroad", "rug", "counter", "ceiling"),
)

PREDICATES: tuple[str, ...] = (
    *("over", "in front of", "beside", "on", "in", "attached to", "hanging from", "walking on", "running on"),
    *("standing on", "sitting on", "flying over", "wearing", "holding", "riding", "parked on", "driving on"),
)


def _read_table(table: str, in_panoptic_vocabulary: bool) -> list[ObjectClass]:
    classes = []
    for line in table.strip().splitlines():
        name, fields = line.split(":")
        group, height, sprites = (field.strip() for field in fields.split(","))
        classes.append(ObjectClass(name, group, float(height), tuple(sprites.split()), in_panoptic_vocabulary))
    return classes


_CLASSES = [
    ObjectClass("person", "person", 1.0, (*_PERSON_SPRITES, *PORTRAIT_SPRITES), True),
    *_read_table(_INSIDE, True),
    *_read_table(_OUTSIDE, False),
]
OBJECT_CLASSES: dict[str, ObjectClass] = {c.name: c for c in _CLASSES}
OUTSIDE_NAMES: tuple[str, ...] = tuple(c.name for c in _CLASSES if not c.in_panoptic_vocabulary)
PANOPTIC_NAMES: tuple[str, ...] = (*(c.name for c in _CLASSES if c.in_panoptic_vocabulary), *STUFF_NAMES)
GROUPS: dict[str, tuple[ObjectClass, ...]] = {
    group: tuple(c for c in _CLASSES if c.group == group) for group in dict.fromkeys(c.group for c in _CLASSES)
}
# Names whose instances a reader might also call by a wider name of the vocabulary: never asked about together.
WIDER_NAMES: dict[str, tuple[str, ...]] = {
    "penguin": ("bird",),
    "house": ("building",),
    "building": ("house",),
    "sea": ("water", "river"),
    "water": ("sea", "river"),
    "river": ("water", "sea"),
    "road": ("pavement",),
    "pavement": ("road", "floor"),
    "sand": ("dirt",),
    "dirt": ("sand", "gravel"),
    "gravel": ("dirt",),
    "grass": ("playingfield",),
    "playingfield": ("grass",),
    "bucket": ("basket",),
    "sign": ("stop sign",),
    "stop sign": ("sign",),
    "lantern": ("light",),
    "counter": ("dining table",),
    "helicopter": ("airplane",),
    "teddy bear": ("bear",),
    "dolphin": ("fish",),
    "hamburger": ("sandwich",),
    "surfboard": ("snowboard",),
    "snowboard": ("surfboard",),
}

# Colours (RGB) that things of some names are painted in; no verbalizer tells them.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "yellow": (245, 205, 40),
    "green": (40, 150, 60),
    "blue": (40, 90, 215),
    "purple": (135, 55, 175),
    "black": (38, 38, 42),
    "white": (242, 242, 242),
}
#: What things of scenes seen from near are painted in too.
PAINTS: dict[str, tuple[int, int, int]] = COLOURS | {
    "orange": (240, 130, 30),
    "brown": (120, 72, 38),
    "grey": (135, 135, 135),
    "pink": (240, 145, 185),
}
PAINTED_NAMES = frozenset(
    {"bicycle", "motorcycle", "car", "bus", "truck", "boat", "airplane", "helicopter", "bench", "chair", "couch", "bed"}
    | {"umbrella", "backpack", "handbag", "suitcase", "tie", "kite", "balloon", "frisbee", "skateboard", "surfboard"}
    | {
        "snowboard",
        "bottle",
        "cup",
        "bowl",
        "vase",
        "bucket",
        "basket",
        "book",
        "tent",
        "house",
        "door",
        "hat",
        "pillow",
    }
    | {"curtain", "bird", "fish", "butterfly", "flower", "drum", "guitar", "teddy bear", "refrigerator", "toothbrush"}
)

# What people also call things; the answer is the name itself, except that "There is no puppy." repeats the question.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "dog": ("puppy", "doggy"),
    "cat": ("kitten", "kitty"),
    "rabbit": ("bunny",),
    "couch": ("sofa",),
    "bicycle": ("bike",),
    "motorcycle": ("motorbike",),
    "car": ("automobile",),
    "airplane": ("plane", "aeroplane"),
    "cell phone": ("phone", "mobile phone"),
    "tv": ("television", "telly"),
    "refrigerator": ("fridge",),
    "donut": ("doughnut",),
    "hamburger": ("burger",),
    "teddy bear": ("teddy",),
    "person": ("human",),
    "boat": ("ship",),
    "laptop": ("notebook computer",),
    "handbag": ("purse",),
    "backpack": ("rucksack",),
    "potted plant": ("houseplant",),
    "hair drier": ("hair dryer",),
    "glasses": ("spectacles",),
    "horse": ("pony",),
    "cup": ("mug",),
    "truck": ("lorry",),
    "rock": ("stone",),
    "sports ball": ("ball",),
    "dining table": ("table",),
    "light": ("lamp",),
    "sea": ("ocean",),
    "grass": ("lawn",),
    "pavement": ("sidewalk",),
    "road": ("street",),
    "railroad": ("railway",),
    "rug": ("carpet",),
}

_PLURAL_NAMES = frozenset({"skis", "scissors", "glasses", "stairs", "spectacles"})
_IRREGULAR = {
    **{"person": "people", "mouse": "mice", "knife": "knives", "shelf": "shelves", "bus": "buses", "man": "men"},
    **{"woman": "women", "child": "children", "goose": "geese", "wolf": "wolves", "leaf": "leaves"},
    **{"potato": "potatoes", "meatloaf": "meatloaves", "piece of furniture": "pieces of furniture"},
}
_SAME_PLURAL = frozenset({"sheep", "fish", "deer", "broccoli", "cardboard", "food", "tuna"}) | _PLURAL_NAMES
_SAME_PLURAL |= {"goldfish", "catfish", "clownfish", "jellyfish", "lionfish", "pufferfish", "starfish"}
_MASS_NAMES = frozenset(STUFF_NAMES) - {"road", "river", "wall", "floor", "rug", "counter", "ceiling", "mountain"}


def is_plural_name(name: str) -> bool:
    """Whether `name` is grammatically plural even for one instance ("scissors")."""
    return name in _PLURAL_NAMES


def plural(name: str) -> str:
    """The plural of an object name: "dog" -> "dogs", "person" -> "people"."""
    if name in _SAME_PLURAL:
        return name
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def indefinite(name: str) -> str:
    """The name with its indefinite article: "a dog", "an apple", "grass", "scissors"."""
    if name in _MASS_NAMES or name in _PLURAL_NAMES or name in ("cardboard", "broccoli", "food"):
        return name
    return ("an " if name[0] in "aeiou" and name != "ukulele" else "a ") + name
