"""Questions whose answers follow from a scene's truth, of seven kinds.

Every question can be answered from the truth's verbalization alone (names, boxes with two decimals, relations, text),
because a decoder first learns to read verbalizations; questions that would be ambiguous there are not asked.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from moai.scenes.vocabulary import (
    GROUPS,
    OBJECT_CLASSES,
    STUFF_NAMES,
    WIDER_NAMES,
    indefinite,
    is_plural_name,
    plural,
)
from verbalizers.core.scene import verbalize_scene
from verbalizers.core.structures import Scene

__all__ = ["QUESTION_KINDS", "REGIONS", "SceneQuestion", "ask_questions", "format_box", "region_of"]

QUESTION_KINDS: tuple[str, ...] = (
    "existence",
    "counting",
    "recognition",
    "localisation",
    "relation",
    "reading",
    "description",
)
_COLUMNS, _ROWS = ("left", "center", "right"), ("top", "middle", "bottom")
REGIONS: tuple[str, ...] = tuple(
    "center" if (row, column) == ("middle", "center") else f"{row} {column}" for row in _ROWS for column in _COLUMNS
)
_REGION_MARGIN = 0.03  # a centre nearer than this to a border between regions is not asked about
_MAX_COUNT = 5
_SIGN_WEIGHT = 0.15  # two scenes in three have a sign: it would become everybody's answer
_BOX_SHARE, _VERBALIZATION_SHARE = 0.25, 0.5
_STUFF = frozenset(STUFF_NAMES)


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question about one scene.

    Attributes:
        kind: one of `QUESTION_KINDS`.
        question: in words, with a question mark or a full stop.
        answer: existence "yes"/"no", counting a number, recognition a name, localisation one of `REGIONS` or a box
            "[x0, y0, x1, y1]", relation a name or a predicate, reading the words, description sentences.
    """

    kind: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]  # normalised xyxy

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return 0.5 * (x0 + x1), 0.5 * (y0 + y1)


@dataclass(frozen=True, slots=True)
class _Facts:
    scene: Scene
    objects: tuple[_Object, ...]
    stuff: tuple[str, ...]
    counts: Counter
    relations: tuple[tuple[str, str, str], ...]
    signs: tuple[str, ...]  # what each sign says, from the top


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


def format_box(box: tuple[float, float, float, float]) -> str:
    """A normalised box as verbalizations write it: "[0.10, 0.20, 0.55, 0.99]"."""
    return "[" + ", ".join(f"{value:.2f}" for value in box) + "]"


def _collect(scene: Scene) -> _Facts:
    height, width = scene.image_size_hw
    scale = (1 / width, 1 / height, 1 / width, 1 / height)
    objects, stuff = [], []
    found = [(scene.segments.class_names, scene.segments.boxes_xyxy)] if scene.segments is not None else []
    if scene.detections is not None:
        found.append((scene.detections.class_names, scene.detections.boxes_xyxy))
    for names, boxes in found:
        for name, box in zip(names, boxes.tolist(), strict=True):
            if name in _STUFF:
                stuff.append(name)
            else:
                objects.append(_Object(name, tuple(v * s for v, s in zip(box, scale, strict=True))))
    relations = ()
    if (graph := scene.relations) is not None:
        ends = zip(graph.subject_indices.tolist(), graph.predicates, graph.object_indices.tolist(), strict=True)
        relations = tuple((graph.object_names[s], p, graph.object_names[o]) for s, p, o in ends)
    counts = Counter(thing.name for thing in objects)
    return _Facts(scene, tuple(objects), tuple(stuff), counts, relations, _read_signs(scene, objects, scale))


def _read_signs(scene: Scene, objects: list[_Object], scale: tuple[float, ...]) -> tuple[str, ...]:
    if scene.text_lines is None or not scene.text_lines.texts:
        return ()
    boxes = [thing.box for thing in objects if thing.name == "sign"]
    centres = scene.text_lines.quads.mean(axis=1).tolist()
    lines: dict[int, list[str]] = {}
    for (x, y), text in zip(centres, scene.text_lines.texts, strict=True):
        inside = [k for k, b in enumerate(boxes) if b[0] <= x * scale[0] <= b[2] and b[1] <= y * scale[1] <= b[3]]
        lines.setdefault(inside[0] if inside else -1, []).append(text)
    return tuple(" ".join(texts) for texts in lines.values())


def _are(name: str) -> str:
    return "are" if is_plural_name(name) else "is"


def _sampled_absent_name(facts: _Facts, rng: Random) -> str:
    """A plausible name that is not in the scene: of a present object's group, or another stuff, or any."""
    present = set(facts.counts) | set(facts.stuff)
    blocked = present | {wide for name in present for wide in WIDER_NAMES.get(name, ())}
    while True:
        draw = rng.random()
        if draw < 0.45 and facts.objects:
            group = OBJECT_CLASSES[rng.choice(facts.objects).name].group
            name = rng.choice(GROUPS[group]).name
        elif draw < 0.6:
            name = rng.choice(STUFF_NAMES)
        else:
            name = rng.choice(tuple(OBJECT_CLASSES))
        if name not in blocked and not present & set(WIDER_NAMES.get(name, ())):
            return name


def _ask_existence(facts: _Facts, rng: Random) -> SceneQuestion | None:
    things, stuff = sorted(facts.counts), sorted(set(facts.stuff))
    is_there = rng.random() < 0.5 and bool(things or stuff)
    if is_there:
        name = rng.choice(things if things and (rng.random() < 0.75 or not stuff) else stuff)
    else:
        name = _sampled_absent_name(facts, rng)
    thing = indefinite(name)
    question = rng.choice(
        (
            f"{_are(name).capitalize()} there {thing} in the picture?",
            f"{_are(name).capitalize()} there {thing}?",
            f"Do you see {thing}?",
            f"Can you see {thing} in the image?",
            f"Does the image contain {thing}?",
        )
    )
    return SceneQuestion("existence", question, "yes" if is_there else "no")


def _ask_counting(facts: _Facts, rng: Random) -> SceneQuestion | None:
    countable = [name for name in sorted(facts.counts) if not is_plural_name(name) and facts.counts[name] <= _MAX_COUNT]
    several = [name for name in countable if facts.counts[name] > 1]
    draw = rng.random()
    if several and draw < 0.85:
        name = rng.choice(several)
    elif countable and draw < 0.5:
        name = rng.choice(countable)
    else:
        name = _sampled_absent_name(facts, rng)
        while name in _STUFF or is_plural_name(name):
            name = _sampled_absent_name(facts, rng)
    names = plural(name)
    question = rng.choice(
        (
            f"How many {names} are there?",
            f"How many {names} are in the picture?",
            f"How many {names} can you see?",
            f"Count the {names}.",
        )
    )
    return SceneQuestion("counting", question, str(facts.counts.get(name, 0)))


def _at_region(region: str) -> str:
    if region == "center":
        return "in the center"
    return f"at the {region}"


def _ask_recognition(facts: _Facts, rng: Random) -> SceneQuestion | None:
    if not facts.objects:
        return None
    if rng.random() < 0.6:
        # Unambiguous: nothing else's centre may be in or near the region.
        nearby = Counter()
        for thing in facts.objects:
            x, y = thing.centre
            shifts = [(dx, dy) for dx in (-_REGION_MARGIN, _REGION_MARGIN) for dy in (-_REGION_MARGIN, _REGION_MARGIN)]
            nearby.update({region_of(min(max(x + dx, 0), 0.999), min(max(y + dy, 0), 0.999)) for dx, dy in shifts})
        clear = [(region_of(*thing.centre, _REGION_MARGIN), thing.name) for thing in facts.objects]
        clear = [(region, name) for region, name in clear if region is not None and nearby[region] == 1]
        if clear:
            region, name = rng.choices(clear, [_SIGN_WEIGHT if name == "sign" else 1.0 for _, name in clear])[0]
            where = _at_region(region)
            question = rng.choice(
                (f"What is {where}?", f"Which object is {where}?", f"What do you see {where} of the picture?")
            )
            return SceneQuestion("recognition", question, name)
    boxes = Counter(format_box(thing.box) for thing in facts.objects)
    weights = [_SIGN_WEIGHT if thing.name == "sign" else 1.0 for thing in facts.objects]
    thing = rng.choices(facts.objects, weights)[0]
    box = format_box(thing.box)
    if boxes[box] > 1:
        return None
    question = rng.choice((f"What is at {box}?", f"Which object is in the box {box}?", f"What is inside {box}?"))
    return SceneQuestion("recognition", question, thing.name)


def _ask_localisation(facts: _Facts, rng: Random) -> SceneQuestion | None:
    single = [thing for thing in facts.objects if facts.counts[thing.name] == 1]
    if not single:
        return None
    thing = rng.choice(single)
    name = thing.name
    if rng.random() < _BOX_SHARE:
        question = rng.choice((f"What is the box of the {name}?", f"Give the coordinates of the {name}."))
        return SceneQuestion("localisation", question, format_box(thing.box))
    region = region_of(*thing.centre, _REGION_MARGIN)
    if region is None:
        return None
    question = rng.choice(
        (
            f"Where {_are(name)} the {name}?",
            f"Where in the picture {_are(name)} the {name}?",
            f"In which part of the picture {_are(name)} the {name}?",
        )
    )
    return SceneQuestion("localisation", question, region)


def _ask_relation(facts: _Facts, rng: Random) -> SceneQuestion | None:
    unique = {name for name, count in facts.counts.items() if count == 1} | set(facts.stuff)
    subject_uses = Counter((s, p) for s, p, _ in facts.relations)
    object_uses = Counter((p, o) for _, p, o in facts.relations)
    ground_uses = Counter(o for _, _, o in facts.relations)
    pair_uses = Counter(frozenset((s, o)) for s, _, o in facts.relations)
    choices: list[tuple[float, str, str]] = []
    for s, p, o in facts.relations:
        weight = _SIGN_WEIGHT if s == "sign" else 1.0 if o in _STUFF else 4.0
        if s in unique and subject_uses[s, p] == 1:
            choices.append((weight, f"What {_are(s)} the {s} {p}?", o))
        # "What is on the grass?" would be ambiguous with one thing on and another one standing on it.
        if o in unique and (object_uses[p, o] == 1 if o not in _STUFF else ground_uses[o] == 1 and o != "sky"):
            choices.append((weight, f"What is {p} the {o}?", s))
        if s in unique and o in unique and pair_uses[frozenset((s, o))] == 1:
            form = rng.choice(("How {are} the {s} related to the {o}?", "What is the relation of the {s} to the {o}?"))
            choices.append((weight, form.format(are=_are(s), s=s, o=o), p))
    if not choices:
        return None
    _, question, answer = rng.choices(choices, [weight for weight, _, _ in choices])[0]
    return SceneQuestion("relation", question, answer)


def _ask_reading(facts: _Facts, rng: Random) -> SceneQuestion | None:
    if not facts.signs:
        return None
    if len(facts.signs) == 1:
        question = rng.choice(
            (
                "What does the sign say?",
                "What is written on the sign?",
                "Read the sign.",
                "Which words can you read?",
                "What text is in the picture?",
            )
        )
        return SceneQuestion("reading", question, facts.signs[0])
    which = rng.randrange(2)
    position = ("upper", "lower")[which]
    question = rng.choice(
        (
            f"What does the {position} sign say?",
            f"What is written on the {position} sign?",
            f"Read the {position} sign.",
        )
    )
    return SceneQuestion("reading", question, facts.signs[which])


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _describe(facts: _Facts) -> str:
    sentences = []
    things = [indefinite(n) if c == 1 else f"{c} {plural(n)}" for n, c in facts.counts.items()]
    if things:
        verb = "are" if len(facts.objects) > 1 or is_plural_name(facts.objects[0].name) else "is"
        sentences.append(f"There {verb} {_join(things)}.")
    if facts.relations:
        said = dict.fromkeys(f"the {s} {_are(s)} {p} the {o}" for s, p, o in facts.relations)
        sentence = _join(list(said))
        sentences.append(sentence[0].upper() + sentence[1:] + ".")
    if facts.signs:
        label = "The sign says" if len(facts.signs) == 1 else "The signs say"
        sentences.append(f"{label} {_join(list(facts.signs))}.")
    return " ".join(sentences)


def _ask_description(facts: _Facts, rng: Random) -> SceneQuestion | None:
    if rng.random() < _VERBALIZATION_SHARE:
        answer = verbalize_scene(facts.scene)
        question = rng.choice(("Describe the picture with boxes.", "List everything in the image with its box."))
    else:
        answer = _describe(facts)
        question = rng.choice(("Describe the picture.", "What is in the image?", "Write a caption for this picture."))
    return SceneQuestion("description", question, answer) if answer else None


_ASKERS: dict[str, Callable[[_Facts, Random], SceneQuestion | None]] = {
    "existence": _ask_existence,
    "counting": _ask_counting,
    "recognition": _ask_recognition,
    "localisation": _ask_localisation,
    "relation": _ask_relation,
    "reading": _ask_reading,
    "description": _ask_description,
}


def ask_questions(
    truth: Scene, rng: Random, num_questions: int = 7, kinds: tuple[str, ...] = QUESTION_KINDS
) -> tuple[SceneQuestion, ...]:
    """Ask about a scene.

    Args:
        truth: what is really there (not a noisy finding), as `scene_truth.build_truth` gives it.
        rng: source of randomness.
        num_questions: how many at most. Kinds are asked in turn; one that has nothing to ask in this scene leaves its
            turn to the others.
        kinds: which kinds to ask.

    Raises:
        ValueError: an unknown kind.
    """
    if unknown := set(kinds) - set(QUESTION_KINDS):
        raise ValueError(f"`kinds` must be among {QUESTION_KINDS}, got {sorted(unknown)}. Remove those.")
    facts = _collect(truth)
    turn = list(kinds)
    rng.shuffle(turn)
    asked: dict[str, SceneQuestion] = {}
    for attempt in range(4 * max(num_questions, len(turn))):
        if len(asked) >= num_questions or not turn:
            break
        question = _ASKERS[turn[attempt % len(turn)]](facts, rng)
        if question is not None:
            asked.setdefault(question.question, question)
    return tuple(asked.values())
