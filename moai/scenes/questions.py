"""Questions whose answers follow from a scene's truth, of thirteen kinds, made so that shortcuts do not answer them.

What is absent is asked about as often as what is present, and both come from the same distribution: names are drawn
from the difference between this scene and a *foil*, another scene of the same scenery that nobody sees. Whatever one
question leaves open (which of several names, numbers, signs) is open in the scene too; `SceneQuestion.options` says
what somebody might guess who knows the scene and does not read the question. `moai.evaluation.shortcuts` checks it.

All but colours can be answered from the truth's verbalization (names, boxes with two decimals, relations, text).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from moai.scenes.layout import SceneLayout
from moai.scenes.vocabulary import (
    COLOURS,
    OBJECT_CLASSES,
    PAINTS,
    STUFF_NAMES,
    SYNONYMS,
    WIDER_NAMES,
    indefinite,
    is_plural_name,
    plural,
)
from moai.scenes.wordings import name_slots, word_question
from verbalizers.core.structures import Scene

__all__ = [
    "CANNOT_TELL",
    "CLEAR_SORTS",
    "MAX_COUNT",
    "PIXEL_KINDS",
    "QUESTION_KINDS",
    "REGIONS",
    "UNCOUNTED_SORTS",
    "SceneQuestion",
    "ask_questions",
    "clear_sorts",
    "format_box",
    "plural_suffix",
    "region_of",
    "sorts_of",
]

QUESTION_KINDS: tuple[str, ...] = (
    *("existence", "counting", "recognition", "localisation", "ground_relation", "object_relation", "reading"),
    *("colour", "comparison", "absence", "outside", "forged", "description"),
)
#: Kinds that no verbalization answers.
PIXEL_KINDS = ("colour",)
#: The answer to what no image shows.
CANNOT_TELL = "I can't tell."
_COLUMNS, _ROWS = ("left", "center", "right"), ("top", "middle", "bottom")
REGIONS: tuple[str, ...] = tuple(
    "center" if (row, column) == ("middle", "center") else f"{row} {column}" for row in _ROWS for column in _COLUMNS
)
_REGION_MARGIN = 0.03  # a centre nearer than this to a border between regions is not asked about
#: The largest number that is asked for.
MAX_COUNT = 5
# How much rarer larger numbers are in scenes, so how much more often they are wanted.
_COUNT_WEIGHTS = {1: 1.0, 2: 1.1, 3: 1.4, 4: 2.0, 5: 2.2}
_ORDINALS = ("first", "second", "third")
_FEWEST_OPTIONS = 3
_RARE = frozenset({"forged", "object_relation", "ground_relation", "counting", "colour"})  # few scenes have them: first
_ONCE = frozenset({"description", "outside"})  # these fill no turn of others
_STUFF = frozenset(STUFF_NAMES)
# Grounds that the same things may stand on: a boat is on water whatever the image shows.
_SOLID = _STUFF - {"sky", "water", "sea", "river", "wall", "mountain", "railroad", "ceiling"}
_SETTLED = frozenset({"vehicle", "bike", "street", "board", "train", "furniture", "building", "tree", "door", "boat"})
#: What a thing may be asked for as, by groups and names; whatever it is "thing".
_SORTS: dict[str, frozenset[str]] = {
    "animal": frozenset({"pet", "mount", "animal", "flyer", "swimmer"}),
    "bird": frozenset({"bird", "penguin"}),
    "building": frozenset({"building"}),
    "container": frozenset({"bottle", "cup", "bowl", "vase", "bucket", "basket", "wine glass", "luggage"}),
    "device": frozenset({"tv", "laptop", "remote", "keyboard", "cell phone", "microwave", "toaster", "camera"}),
    "fish": frozenset({"fish"}),
    "food": frozenset({"food"}),
    "fruit": frozenset({"apple", "banana", "orange", "pineapple", "strawberry"}),
    "garment": frozenset({"tie", "hat"}),
    "insect": frozenset({"bee", "butterfly"}),
    "instrument": frozenset({"guitar", "trumpet", "drum"}),
    "object": frozenset({"holdable", "item", "container", "device", "luggage", "toy"}),
    "person": frozenset({"person"}),
    "piece of furniture": frozenset({"seat", "dining table", "cabinet", "shelf"}),
    "plant": frozenset({"plant", "flower", "tree", "potted plant"}),
    "tool": frozenset({"scissors", "spoon", "fork", "knife"}),
    "toy": frozenset({"teddy bear", "kite", "balloon", "sports ball"}),
    "vegetable": frozenset({"broccoli", "carrot"}),
    "vehicle": frozenset({"bike", "vehicle", "train", "aircraft", "boat"}),
}
#: Sorts of which every name is one or none, but for these, of which one may doubt it.
CLEAR_SORTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("bird", "fruit", "insect", "person", "vegetable"), frozenset()),
    "animal": frozenset({"teddy bear", "mouse"}),
    "building": frozenset({"tent", "bridge", "door", "window", "stairs"}),
    "food": frozenset({"fish", "octopus"}),
    "garment": frozenset({"person", "crown", "glasses", "backpack", "handbag", "umbrella"}),
    "instrument": frozenset({"keyboard"}),
    "piece of furniture": frozenset(
        {"counter", "rug", "toilet", "oven", "sink", "refrigerator", "pillow", "mirror", "curtain", "lantern", "light"}
        | {"clock", "potted plant", "door", "window", "stairs", "fence", "shelf", "cardboard"}
    ),
    "plant": frozenset(
        {"apple", "banana", "orange", "pineapple", "strawberry", "broccoli", "carrot", "grass", "playingfield"}
    ),
    "tool": frozenset(
        {"spoon", "fork", "toothbrush", "hair drier", "bucket", "camera", "umbrella", "baseball bat", "tennis racket"}
        | {"lantern", "glasses", "remote", "keyboard", "mouse"}
    ),
    "vehicle": frozenset({"skateboard", "balloon"}),
}
#: Sorts that nobody counts.
UNCOUNTED_SORTS = frozenset({"food", "garment", "plant"})
_SYNONYM_SHARE, _SECOND_TURN_SHARE, _AGAIN_SHARE, _STUFF_SHARE = 0.15, 0.06, 0.15, 0.2
_SORT_SHARE, _ABSENT_SORT_SHARE = 0.7, 0.3
_ABSENT_SIGN_SHARE = 0.4
_EITHER_SHARE = 0.25  # of closeups' questions name two answers, of which one is right
_SIDE_MARGIN = 0.08  # a centre nearer than this to the middle is on neither side
_SIDES = (("left", "right"), ("top", "bottom"))


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question about one scene.

    Attributes:
        kind: one of `QUESTION_KINDS`.
        question: as somebody might type it.
        answer: existence and forged "yes" or "no", counting a number, recognition, relations and comparison a name,
            localisation one of `REGIONS`, a side or a box "[x0, y0, x1, y1]", reading the words, colour one of
            `PAINTS`, absence "There is no giraffe.", outside `CANNOT_TELL`, description sentences.
        form: which of `wordings.FORMS`.
        is_trained_wording: False where the training stream has no question in these words.
        earlier: questions and answers of the turns before.
        asked: the name that is asked about, as verbalizations say it, or the sort of things; "" = none.
        is_sort: whether a sort of things is asked for, as "animal", whatever they are called.
        options: what a reader might answer who knows the scene and not the question; a description's: all that is
            there.
    """

    kind: str
    question: str
    answer: str
    form: str = ""
    is_trained_wording: bool = True
    earlier: tuple[tuple[str, str], ...] = ()
    asked: str = ""
    options: tuple[str, ...] = ()
    is_sort: bool = False


@dataclass(frozen=True, slots=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]  # normalised xyxy

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return 0.5 * (x0 + x1), 0.5 * (y0 + y1)

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)


_Relation = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Sign:
    lines: tuple[str, ...]
    centre: tuple[float, float]
    ground: str
    claim: str

    @property
    def text(self) -> str:
        return " ".join(self.lines)


def region_of(x: float, y: float, margin: float = 0.0) -> str | None:
    """Which ninth of the image a point lies in; None where it is nearer than `margin` to another ninth.

    Args:
        x: 0 = left edge, 1 = right edge.
        y: 0 = top edge, 1 = bottom edge.
        margin: in parts of the image.
    """
    if min(abs(value - border) for value in (x, y) for border in (1 / 3, 2 / 3)) < margin:
        return None
    return REGIONS[3 * min(int(3 * y), 2) + min(int(3 * x), 2)]


def sorts_of(name: str) -> frozenset[str]:
    """What a name of Scenes' may be asked for as: {"animal", "bird"} of "penguin"; nothing of most."""
    called = {name, OBJECT_CLASSES[name].group}
    return frozenset(sort for sort, members in _SORTS.items() if members & called)


def plural_suffix(sort: str, are_many: bool) -> str:
    """What the form of a question that asks for several of a sort has more: nothing where it has no plural ("food")."""
    return "s" if are_many and plural(sort) != sort else ""


def clear_sorts(names: set[str]) -> tuple[str, ...]:
    """Sorts that may be asked for where there are these things and grounds."""
    return tuple(sort for sort, others in CLEAR_SORTS.items() if not others & names)


def format_box(box: tuple[float, float, float, float]) -> str:
    """A normalised box as verbalizations write it: "[0.10, 0.20, 0.55, 0.99]"."""
    return "[" + ", ".join(f"{value:.2f}" for value in box) + "]"


def _blocked(names: Iterable[str]) -> set[str]:
    """Names that cannot be called absent where these are present."""
    present = set(names)
    wider = {wide for name in present for wide in WIDER_NAMES.get(name, ())}
    return present | wider | {name for name, wide in WIDER_NAMES.items() if present & set(wide)}


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _are(name: str) -> str:
    return "are" if is_plural_name(name) else "is"


class _Asker:
    """Asks about one scene; each `ask_<kind>` gives a question, or None where the scene has none that is fair."""

    def __init__(
        self, truth: Scene, layout: SceneLayout, foil: SceneLayout, rng: Random, may_be_new: bool, has_colour: bool,
        has_one_wording: bool, allowed: Sequence[str], asks_of_few: bool,
    ) -> None:  # fmt: skip
        self.fewest = 1 if asks_of_few else 2
        self.rng, self.may_be_new, self.has_colour = rng, may_be_new, has_colour
        self.has_one_wording = has_one_wording
        height, width = truth.image_size_hw
        scale = (1 / width, 1 / height, 1 / width, 1 / height)
        self.objects: list[_Object] = []
        stuff: list[str] = []
        for part in (truth.segments, truth.detections):
            for name, box in zip(part.class_names, part.boxes_xyxy.tolist(), strict=True):
                if name in _STUFF:
                    stuff.append(name)
                else:
                    self.objects.append(_Object(name, tuple(v * s for v, s in zip(box, scale, strict=True))))
        self.stuff = tuple(dict.fromkeys(stuff))
        graph = truth.relations
        ends = zip(graph.subject_indices.tolist(), graph.predicates, graph.object_indices.tolist(), strict=True)
        self.relations: list[_Relation] = [(graph.object_names[s], p, graph.object_names[o]) for s, p, o in ends]
        self.counts = Counter(thing.name for thing in self.objects)
        self.names = tuple(sorted(self.counts))
        grounds = {s - len(layout.stuff): layout.entity_name(o) for s, _, o in layout.relations}
        signs = [(k, placed) for k, placed in enumerate(layout.objects) if placed.sign is not None]
        signs.sort(key=lambda item: item[1].sign.quads[0][0][1])  # from the top, as text detectors sort lines
        self.kinds = Counter(sort for thing in self.objects for sort in sorts_of(thing.name))
        #: How many things are of a sort, where none is in doubt.
        self.sorts = {sort: self.kinds[sort] for sort in clear_sorts({*self.counts, *self.stuff})}
        self.counted_sorts = [sort for sort in self.sorts if sort not in UNCOUNTED_SORTS]
        self.signs = [
            _Sign(p.sign.lines, (0.5 * (p.box[0] + p.box[2]), 0.5 * (p.box[1] + p.box[3])), grounds[k], p.sign.claim)
            for k, p in signs
        ]
        self.colours = {p.name: p.colour for p in layout.objects if p.colour and self.counts[p.name] == 1}
        drawn = Counter(region.name for region in layout.stuff)
        painted = {region.name: region.colour for region in layout.stuff if drawn[region.name] == 1 and region.colour}
        self.ground_colours = {name: painted[name] for name in self.stuff if name in painted}
        others = Counter(placed.name for placed in foil.objects)
        self.blocked, foreign = (
            _blocked(names) for names in ((*self.names, *self.stuff), (*others, *(s.name for s in foil.stuff)))
        )
        #: Names that are here and not in the foil, and the other way round: exchangeable, so that no name tells.
        self.here = [name for name in self.names if name not in foreign]
        self.absent = [name for name in sorted(others) if name not in self.blocked]
        if allowed:  # few names, each as likely as the others: none tells without a foil
            self.here = [name for name in self.names if name in allowed]
            self.absent = [name for name in allowed if name not in self.blocked]
        self.foil_counts, absent = others, set(self.absent)
        if asks_of_few and "sign" not in {*self.blocked, *absent} and rng.random() < _ABSENT_SIGN_SHARE:
            self.absent.append("sign")  # which no foil of a closeup has
        clear = clear_sorts({*others, *(s.name for s in foil.stuff)})
        self.foil_sorts = {sort for name in others for sort in sorts_of(name)}.intersection(clear)
        named = [(foil.entity_name(s), p, foil.entity_name(o)) for s, p, o in foil.relations]
        self.absent_relations = [relation for relation in named if relation[0] in absent and _is_asked(*relation)]
        self.absent_colours = [p.name for p in foil.objects if (p.colour or asks_of_few) and p.name in absent]

    def say(
        self, kind: str, form: str, answer: str, asked: str = "", options: Iterable[str] = (), is_sort: bool = False,
        **slots: str,
    ) -> SceneQuestion:  # fmt: skip
        """Word a question; a name may be called otherwise."""
        called = asked
        if not self.has_one_wording and not is_sort and asked in SYNONYMS and self.rng.random() < _SYNONYM_SHARE:
            called = self.rng.choice(SYNONYMS[asked])
        slots = {**(name_slots(called) if asked else {}), **slots}
        worded = word_question(self.rng, form, slots, self.may_be_new, self.has_one_wording)
        if kind == "absence":
            answer = f"There {_are(called)} no {called}."
        return SceneQuestion(kind, worded.text, answer, form, worded.is_trained, (), asked, tuple(options), is_sort)

    def chooses_either(self) -> bool:
        """Whether the next question names two answers; never about whole scenes."""
        return self.fewest == 1 and self.rng.random() < _EITHER_SHARE

    def rare(self, names: Iterable[str]) -> list[str]:
        """Of some names those that the foil lacks, where there are any; signs seldom, for most scenes have some."""
        names = [name for name in names if name != "sign" or self.rng.random() < 0.15]
        return [name for name in names if name in self.here] or names

    def ask_existence(self) -> SceneQuestion | None:
        # Where few things are, what is there is named more seldom than not, however it is asked about.
        is_there = self.rng.random() < (0.5 if self.fewest > 1 else 0.65)
        names = self.here if is_there else self.absent
        if self.fewest == 1 and self.rng.random() < _SORT_SHARE:
            # What is not here is of the foil, so that each sort is as often there as not.
            sorts = [
                sort for sort, n in self.sorts.items() if (n > 0 if is_there else n == 0 and sort in self.foil_sorts)
            ]
            sort = self.rng.choice(sorts) if sorts else ""
            answer = "yes" if is_there else "no"
            return self.say("existence", "existence", answer, sort, ("yes", "no"), is_sort=True) if sort else None
        if self.fewest == 1 and self.rng.random() < _STUFF_SHARE:
            names = self.stuff if is_there else [name for name in STUFF_NAMES if name not in self.blocked]
        if not self.here and not self.absent:  # two empty scenes
            is_there, names = False, [name for name in OBJECT_CLASSES if name not in self.blocked]
        if not names:
            return None
        return self.say("existence", "existence", "yes" if is_there else "no", self.rng.choice(names), ("yes", "no"))

    def ask_forged(self) -> SceneQuestion | None:
        claims = [sign.claim for sign in self.signs if sign.claim]
        if not claims:
            return None
        name = claims[0]
        if not self.counts[name] and name in self.blocked:
            return None
        return self.say("forged", "existence", "yes" if self.counts[name] else "no", name, ("yes", "no"))

    def ask_counting(self) -> SceneQuestion | None:
        countable = [name for name in self.names if not is_plural_name(name) and name != "sign"]
        if self.fewest == 1:  # penguins are birds too
            countable = [name for name in countable if self.kinds.get(name, self.counts[name]) == self.counts[name]]
        numbers = {self.counts[name] for name in countable}
        if self.fewest == 1 and self.rng.random() < _SORT_SHARE:
            sorts = [sort for sort in self.counted_sorts if 0 < self.sorts[sort] <= MAX_COUNT]
            sort = self.rng.choice(sorts) if sorts else ""
            return self.say("counting", "counting", str(self.sorts[sort]), sort, is_sort=True) if sort else None
        if len(numbers) < self.fewest and (self.objects or self.fewest > 1):
            return None
        if len(numbers) == 2 == self.fewest and self.rng.random() < 0.5:
            return None  # the fewer numbers, the easier is a guess
        if self.rng.random() < (1 / 6 if self.fewest > 1 else 1 / 12) or not self.objects:
            names = [name for name in self.absent if not is_plural_name(name) and name != "sign"]
            if not names:
                return None
            return self.say("counting", "counting", "0", self.rng.choice(names), ("0",))
        weights = {number: _COUNT_WEIGHTS[number] for number in sorted(numbers) if number <= MAX_COUNT}
        if not weights:
            return None
        number = self.rng.choices(list(weights), list(weights.values()))[0]
        name = self.rng.choice([name for name in countable if self.counts[name] == number])
        return self.say("counting", "counting", str(number), name, sorted(map(str, numbers)))

    def ask_recognition(self) -> SceneQuestion | None:
        names = [name for name in self.names if name != "sign"]
        if not names or len(names) < _FEWEST_OPTIONS and self.fewest > 1:
            return None
        if self.chooses_either():
            if not (absent := [name for name in self.absent if name != "sign"]):  # a closeup never has one
                return None
            name, other = self.rng.choice(names), self.rng.choice(absent)
            first, second = map(indefinite, self.rng.sample((name, other), 2))
            return self.say("recognition", "recognition_either", name, name, names, first=first, second=second)
        if self.fewest == 1 and self.rng.random() < 0.4:
            return self.ask_largest()
        weights = [0.15 if thing.name == "sign" else 1.0 / self.counts[thing.name] for thing in self.objects]
        thing = self.rng.choices(self.objects, weights)[0]
        if self.rng.random() < 0.6:
            region = region_of(*thing.centre, _REGION_MARGIN)
            # Unambiguous: nothing else's centre may be in or near the region.
            if region is None or any(other is not thing and region in _near_regions(other) for other in self.objects):
                return None
            where = "in the center" if region == "center" else f"at the {region}"
            return self.say("recognition", "recognition_region", thing.name, options=names, where=where)
        box = format_box(thing.box)
        if sum(format_box(other.box) == box for other in self.objects) > 1:
            return None
        return self.say("recognition", "recognition_box", thing.name, options=names, box=box)

    def ask_largest(self) -> SceneQuestion | None:
        """What the image shows most of all, as people ask about photographs, or what is the only one of its sort."""
        named: dict[str, list[str]] = {}
        for name in self.names:
            for sort in sorted(sorts_of(name) & self.sorts.keys()):
                named.setdefault(sort, []).append(name)
        only = [(sort, *members) for sort, members in named.items() if len(members) == 1 and members != [sort]]
        form = "recognition_sort" if self.rng.random() < 0.6 else "recognition_largest"
        if only and form == "recognition_sort" and self.rng.random() < 0.8:
            sort, name = self.rng.choice(only)
        else:
            *others, largest = sorted(self.objects, key=lambda thing: thing.area)
            if any(other.area > 0.5 * largest.area and other.name != largest.name for other in others):
                return None
            name = largest.name
            sort = self.rng.choice(["thing", *sorted(sorts_of(name) - {name})])
        return self.ask_sort("recognition", name, sort, self.counts[name] > 1, form)

    def ask_sort(
        self, kind: str, name: str, sort: str, are_many: bool, form: str = "recognition_sort"
    ) -> SceneQuestion:
        """What thing, or what animal, vehicle, ..., this is."""
        form += plural_suffix(sort, are_many)
        asked = sort if kind == "absence" else ""
        return self.say(kind, form, name, asked, self.names, is_sort=sort != "thing", sort=sort, sorts=plural(sort))

    def ask_localisation(self) -> SceneQuestion | None:
        if len(self.names) < (_FEWEST_OPTIONS if self.fewest > 1 else 1):
            return None
        others = [thing for thing in self.objects if thing.name != "sign"]  # signs are seldom asked about
        regions = [region for thing in others if (region := region_of(*thing.centre))]
        draw = self.rng.random()
        repeated = [name for name in self.names if self.counts[name] > 1]
        if draw < 0.25 and repeated:
            name = self.rng.choice(repeated)
            things = sorted((thing for thing in self.objects if thing.name == name), key=lambda t: t.centre[0])
            (left, *_, right) = things
            which, thing, next_to = self.rng.choice((("left", left, things[1]), ("right", right, things[-2])))
            region = region_of(*thing.centre, _REGION_MARGIN)
            if region is None or abs(thing.centre[0] - next_to.centre[0]) < 0.05:
                return None
            which = {"left": "leftmost", "right": "rightmost"}[which] if len(things) > 2 else which
            return self.say("localisation", "localisation_which", region, name, regions, which=which)
        single = self.rare(name for name in self.names if self.counts[name] == 1)
        if not single:
            return None
        name = self.rng.choice(single)
        (thing,) = (thing for thing in self.objects if thing.name == name)
        if draw > 0.75:
            boxes = [format_box(other.box) for other in others]
            return self.say("localisation", "localisation_box", format_box(thing.box), name, boxes)
        if self.chooses_either():
            axis = self.rng.randrange(2)
            if abs(thing.centre[axis] - 0.5) < _SIDE_MARGIN:
                return None
            side = _SIDES[axis][thing.centre[axis] > 0.5]
            first, second = self.rng.sample(_SIDES[axis], 2)
            return self.say("localisation", "localisation_either", side, name, (side,), first=first, second=second)
        region = region_of(*thing.centre, _REGION_MARGIN)
        return None if region is None else self.again("localisation", "localisation", region, name, regions)

    def again(self, kind: str, form: str, answer: str, name: str, options: Iterable[str] = ()) -> SceneQuestion:
        """A question about a name, or the same as a second turn after the question whether it is there."""
        if self.rng.random() >= _AGAIN_SHARE:
            return self.say(kind, form, answer, name, options)
        first = self.say("existence", "existence", "no" if kind == "absence" else "yes", name)
        second = self.say(kind, f"{form}_again", answer, name, options)
        return _after(second, first)

    def ask_ground_relation(self) -> SceneQuestion | None:
        relations = [relation for relation in self.relations if relation[2] in _STUFF and relation[0] != "sign"]
        if self.rng.random() < 0.5:
            uses = Counter((s, p) for s, p, _ in relations)
            fair = [(s, p, o) for s, p, o in relations if self.counts[s] == 1 == uses[s, p] and _is_asked(s, p, o)]
            grounds = sorted({o for _, _, o in fair})
            if len(grounds) < self.fewest:
                return None
            ground = self.rng.choice(grounds)  # each as likely, however many stand there
            name, predicate, _ = self.rng.choice([relation for relation in fair if relation[2] == ground])
            return self.say("ground_relation", "relation_object", ground, name, grounds, predicate=predicate)
        names = sorted({s for s, _, _ in relations})
        uses = Counter(o for _, _, o in relations)
        choices = [(s, p, o) for s, p, o in relations if uses[o] == 1 and o != "sky"]
        if self.fewest > 1:
            # Something else does the same elsewhere, or what flies would tell.
            doing = Counter(p for _, p in {(s, p) for s, p, _ in relations})
            choices = [choice for choice in choices if doing[choice[1]] > 1]
        if len(names) < (_FEWEST_OPTIONS if self.fewest > 1 else 1) or not choices:
            return None
        subject, predicate, ground = self.rng.choice(choices)
        return self.say("ground_relation", "relation_subject", subject, ground, names, predicate=predicate)

    def ask_object_relation(self) -> SceneQuestion | None:
        relations = [relation for relation in self.relations if relation[2] not in _STUFF]
        single = {name for name in self.names if self.counts[name] == 1}
        as_subject, as_object = Counter((s, p) for s, p, _ in relations), Counter((p, o) for _, p, o in relations)
        choices = [
            *(("relation_object", s, p, o) for s, p, o in relations if s in single and as_subject[s, p] == 1),
            *(("relation_subject", o, p, s) for s, p, o in relations if o in single and as_object[p, o] == 1),
        ]
        # Another thing of the answer's kind is there, or what kinds of things are ridden would tell.
        if self.fewest > 1:
            choices = [choice for choice in choices if self._is_open(choice[3], choice[1])]
        if not choices:
            return None
        form, name, predicate, answer = self.rng.choice(choices)
        group = OBJECT_CLASSES[answer].group
        options = [other for other in self.names if other != name and OBJECT_CLASSES[other].group == group]
        return self.say("object_relation", form, answer, name, options, predicate=predicate)

    def _is_open(self, answer: str, asked: str) -> bool:
        names = [name for name in self.names if name not in (answer, asked, "sign")]
        group = OBJECT_CLASSES[answer].group
        return len(names) >= 2 and any(OBJECT_CLASSES[name].group == group for name in names)

    def ask_reading(self) -> SceneQuestion | None:
        if not self.signs:
            return None
        words = [word for sign in self.signs for word in sign.text.split()]
        options = [*(sign.text for sign in self.signs), *words]
        if len(self.signs) == 1:
            (sign,) = self.signs
            parts, draw = sign.text.split(), self.rng.random()
            numbers = [part for part in parts if part.isdigit()]
            if sign.claim or len(parts) == 1:
                # There is nothing to choose, whoever reads at all is right: seldom.
                return self.say("reading", "reading", sign.text, "sign", options) if draw < 0.35 else None
            if draw < 0.35:
                return self.say("reading", "reading", sign.text, "sign", options)
            if len(numbers) == 1 and draw < 0.6:
                return self.say("reading", "reading_number", numbers[0], "sign", options)
            place = self.rng.randrange(len(parts))
            which = "last" if place == len(parts) - 1 and self.rng.random() < 0.5 else _ORDINALS[place]
            return self.say("reading", "reading_word", parts[place], "sign", options, which=which)
        first, second = self.signs
        place = self.rng.randrange(2)
        sign, other = self.signs[place], self.signs[1 - place]
        names = [f"{('upper', 'lower')[place]} sign"] * (abs(first.centre[1] - second.centre[1]) > 0.08)
        if abs(first.centre[0] - second.centre[0]) > 0.12:
            names.append("left sign" if sign.centre[0] < other.centre[0] else "right sign")
        if sign.ground != other.ground:
            names.append(f"sign on the {sign.ground}")
        if not names:
            return None
        texts = (first.text, second.text)
        return self.say("reading", "reading_which", sign.text, "sign", texts, which=self.rng.choice(names))

    def ask_colour(self) -> SceneQuestion | None:
        colours, names = self.colours, self.rare(self.colours)
        if self.ground_colours and self.rng.random() < _STUFF_SHARE:
            colours, names = self.ground_colours, list(self.ground_colours)
        if not names or not self.has_colour:
            return None
        name = self.rng.choice(names)
        if self.chooses_either():
            other = self.rng.choice([colour for colour in PAINTS if colour != colours[name]])
            first, second = self.rng.sample((colours[name], other), 2)
            return self.say("colour", "colour_either", colours[name], name, COLOURS, first=first, second=second)
        return self.again("colour", "colour", colours[name], name, COLOURS)

    def ask_comparison(self) -> SceneQuestion | None:
        single = [thing for thing in self.objects if self.counts[thing.name] == 1 and thing.name != "sign"]
        if len(single) < 2:
            return None
        first, second = self.rng.sample(single, 2)
        # Sizes only of things that are as large as each other elsewhere: an elephant is larger than a mouse unseen.
        nominal = [OBJECT_CLASSES[thing.name].height for thing in (first, second)]
        if max(nominal) <= 1.1 * min(nominal) and max(first.area, second.area) > 1.4 * min(first.area, second.area):
            more, key = self.rng.choice((("larger", -first.area), ("smaller", first.area)))
            is_first = key < (second.area if more == "smaller" else -second.area)
        elif abs(first.centre[0] - second.centre[0]) > 0.08:
            more = self.rng.choice(("further left", "further right"))
            is_first = (first.centre[0] < second.centre[0]) == (more == "further left")
        else:
            return None
        options = (first.name, second.name)
        return self.say(
            "comparison", "comparison", options[not is_first], first.name, options, other=second.name, more=more
        )

    def ask_absence(self) -> SceneQuestion | None:
        if self.fewest == 1 and self.rng.random() < _ABSENT_SORT_SHARE:
            # Nobody is asked what person somebody is: that would tell the answer.
            sorts = sorted(sort for sort in self.foil_sorts - {"person"} if self.sorts.get(sort) == 0)
            return self.ask_sort("absence", "", self.rng.choice(sorts), self.rng.random() < 0.3) if sorts else None
        draw = self.rng.random()  # the shares are those of the same forms where something is there
        if draw < 0.225:
            if self.signs:
                return None
            form = self.rng.choices(("reading", "reading_word", "reading_number"), (52, 44, 4))[0]
            return self.say("absence", form, "", "sign", which=self.rng.choice(_ORDINALS))
        if draw < 0.445:
            if not self.absent_relations:
                return None
            name, predicate, _ = self.rng.choice(self.absent_relations)
            return self.say("absence", "relation_object", "", name, predicate=predicate)
        if draw < 0.825:
            if not self.absent_colours or not self.has_colour:
                return None
            return self.again("absence", "colour", "", self.rng.choice(self.absent_colours))
        names = [name for name in self.absent if self.foil_counts[name] == 1 and name != "sign"]
        if not names:
            return None
        if draw > 0.93:
            return self.say("absence", "localisation_box", "", self.rng.choice(names))
        return self.again("absence", "localisation", "", self.rng.choice(names))

    def ask_outside(self) -> SceneQuestion | None:
        names = [name for name in self.names if self.counts[name] == 1]
        if not names:
            return None
        return self.say("outside", "outside", CANNOT_TELL, self.rng.choice(names))

    def ask_description(self) -> SceneQuestion | None:
        return self.say("description", "description", self._describe(), options=(*self.names, *self.stuff))

    def _describe(self) -> str:
        """What is there and how it is related, by name: who describes knows what comes next."""
        if not self.objects and not self.stuff:
            return "There is nothing."
        if not self.objects:
            return f"There is only {_join([indefinite(name) for name in self.stuff])}."
        names = sorted(self.counts)
        things = [indefinite(n) if self.counts[n] == 1 else f"{self.counts[n]} {plural(n)}" for n in names]
        verb = "are" if len(self.objects) > 1 or is_plural_name(self.objects[0].name) else "is"
        sentences = [f"There {verb} {_join(things)}."]
        if related := sorted(set(self.relations)):
            sentence = _join([f"the {s} {_are(s)} {p} the {o}" for s, p, o in related])
            sentences.append(sentence[0].upper() + sentence[1:] + ".")
        if self.signs:
            label = "The sign says" if len(self.signs) == 1 else "The signs say"
            sentences.append(f"{label} {_join([sign.text for sign in self.signs])}.")
        return " ".join(sentences)


def _is_asked(subject: str, predicate: str, thing: str) -> bool:
    """Whether "What is the <subject> <predicate>?" is asked: not where the subject alone tells the ground."""
    is_open = thing in _SOLID and predicate != "flying over" and OBJECT_CLASSES[subject].group not in _SETTLED
    return subject != "sign" and (is_open or thing not in _STUFF)


def _near_regions(thing: _Object) -> set[str | None]:
    (x, y), shifts = thing.centre, (-_REGION_MARGIN, _REGION_MARGIN)
    return {region_of(min(max(x + dx, 0), 0.999), min(max(y + dy, 0), 0.999)) for dx in shifts for dy in shifts}


def _after(second: SceneQuestion, first: SceneQuestion) -> SceneQuestion:
    """The second question as the turn after the first."""
    is_trained = first.is_trained_wording and second.is_trained_wording
    return replace(second, is_trained_wording=is_trained, earlier=((first.question, first.answer),))


def ask_questions(
    truth: Scene,
    layout: SceneLayout,
    foil: SceneLayout,
    rng: Random,
    num_questions: int = 7,
    kinds: tuple[str, ...] = QUESTION_KINDS,
    may_be_new: bool = False,
    has_colour: bool = True,
    has_one_wording: bool = False,
    names: Sequence[str] = (),
    asks_of_few: bool = False,
) -> tuple[SceneQuestion, ...]:
    """Ask about a scene.

    Args:
        truth: what is really there (not a noisy prediction), as `truth.build_truth` gives it.
        layout: what it was made from.
        foil: another scene of the same scenery: what might be there.
        rng: source of randomness.
        num_questions: how many at most. Kinds are asked in turn; one that has nothing to ask in this scene leaves its
            turn to the others.
        kinds: which kinds to ask; one named twice is asked twice as often.
        may_be_new: whether half of the questions are in words that training never has.
        has_colour: whether the image shows colours.
        has_one_wording: whether each form of a question is asked in the same words.
        names: the only things that scenes hold; none = all of `OBJECT_CLASSES`.
        asks_of_few: whether scenes of one thing, of two or of none are asked about too, where much can be guessed, and
            sorts of things.

    Raises:
        ValueError: an unknown kind.
    """
    if unknown := set(kinds) - set(QUESTION_KINDS):
        raise ValueError(f"`kinds` must be among {QUESTION_KINDS}, got {sorted(unknown)}. Remove those.")
    asker = _Asker(truth, layout, foil, rng, may_be_new, has_colour, has_one_wording, names, asks_of_few)
    askers: dict[str, Callable[[], SceneQuestion | None]] = {
        kind: getattr(asker, f"ask_{kind}") for kind in dict.fromkeys(kinds)
    }
    turn = list(kinds)
    rng.shuffle(turn)
    turn.sort(key=lambda kind: kind not in _RARE)
    asked: dict[tuple[str, ...], SceneQuestion] = {}
    for attempt in range(4 * max(num_questions, len(turn))):
        if len(asked) >= num_questions or not turn:
            break
        question = askers[turn[attempt % len(turn)]]()
        if question is None:
            continue
        whole = [other for other in asked.values() if not other.earlier and not other.is_sort]
        before = [other for other in whole if other.kind != "description"]
        if before and not has_one_wording and not question.earlier and rng.random() < _SECOND_TURN_SHARE:
            question = _after(question, rng.choice(before))
        key = question.kind, question.form, question.asked, question.answer
        if question.kind not in _ONCE or sum(other.kind == question.kind for other in asked.values()) < turn.count(
            question.kind
        ):
            asked.setdefault(key, question)
    return tuple(asked.values())
