"""Readers that take shortcuts: none of them may do better on a kind of question than chance and ten points.

    python -m moai.evaluation.shortcuts --num-scenes 2000

A reader knows the truth's verbalization, or the question, or both, and does not do what the question asks for. It
answers the questions that its shortcut is about and is scored on those. Chance is the better of two on the same
questions: the commonest answer, and a guess among what the scene offers (`SceneQuestion.options`), for example any of
its names. So a kind that a shortcut answers is found, however the shortcut is hidden in the mean.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from moai.scenes.questions import REGIONS, format_box, region_of
from moai.scenes.scenes import QUESTION_KINDS, SceneQuestion, Scenes, SceneSample
from moai.scenes.vocabulary import STUFF_NAMES

from .scene_answers import is_right
from .tables import format_table

__all__ = ["EXEMPT_KINDS", "Score", "Shortcuts", "abstention_by_question", "main", "score_shortcuts"]

#: Kinds without a shortcut to test: what is outside an image is told by the question, as it should be, so that what
#: counts is that nothing else is called unanswerable; an absence is a decision between two, see
#: :func:`abstention_by_question`; a description is scored by what it names.
EXEMPT_KINDS = ("outside", "absence", "description")
_LEEWAY = 0.1
_NUM_ANSWERS = 60  # the commonest answers, among which a reader of questions chooses where it is given none

Asked = tuple[SceneSample, SceneQuestion]
Guess = tuple[str, Sequence[str]]  # an answer, and what a guess among the same would choose from


def _words(question: str) -> list[str]:
    words = question.casefold().replace("?", " ").replace(".", " ").replace(",", " ").replace(":", " ").split()
    return [*words, *(f"{first} {second}" for first, second in pairwise(words))]


class QuestionReader:
    """Naive Bayes from a question's words and pairs of words to its answer: no image, no verbalization.

    Args:
        pairs: Questions with their answers (or whatever is to be told).
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.answers: Counter[str] = Counter()
        self.words: dict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in pairs:
            self.answers[answer] += 1
            self.words[answer].update(_words(question))
        self.totals = {answer: sum(words.values()) for answer, words in self.words.items()}
        self.commonest = [answer for answer, _ in self.answers.most_common(_NUM_ANSWERS)]
        self.size = len({word for words in self.words.values() for word in words}) + 1

    def read(self, question: str, answers: Iterable[str] | None = None) -> str:
        """The likeliest answer, of all or of some."""
        words = _words(question)

        def likelihood(answer: str) -> float:
            known, total = self.words.get(answer, {}), self.totals.get(answer, 0) + self.size
            return math.log(self.answers[answer] + 0.1) + sum(math.log((known.get(w, 0) + 1) / total) for w in words)

        return max(answers or self.commonest, key=likelihood)


def _names(sample: SceneSample) -> list[str]:
    """Names of objects in the order of the verbalization, repetitions included."""
    parts = (sample.truth.segments, sample.truth.detections)
    return [name for part in parts for name in part.class_names if name not in STUFF_NAMES]


def _boxes(sample: SceneSample) -> list[tuple[str, tuple[float, ...]]]:
    size = sample.image_size
    parts = (sample.truth.segments, sample.truth.detections)
    pairs = [
        (n, tuple(v / size for v in b))
        for p in parts
        for n, b in zip(p.class_names, p.boxes_xyxy.tolist(), strict=True)
    ]
    return [(name, box) for name, box in pairs if name not in STUFF_NAMES]


def _place(question: SceneQuestion, box: tuple[float, ...]) -> str:
    """A box as a question of localisation wants it."""
    if question.answer.startswith("["):
        return format_box(box)
    return region_of(0.5 * (box[0] + box[2]), 0.5 * (box[1] + box[3])) or REGIONS[4]


def _relations(sample: SceneSample) -> list[tuple[str, str, str]]:
    graph = sample.truth.relations
    ends = zip(graph.subject_indices, graph.predicates, graph.object_indices, strict=True)
    return [(graph.object_names[s], p, graph.object_names[o]) for s, p, o in ends]


class Shortcuts:
    """All readers, after they have seen training questions.

    Args:
        training: Scenes with questions from which the commonest answers are learnt.

    Attributes:
        readers: By name: a function of sample and question to a guess, or None where its shortcut says nothing.
    """

    def __init__(self, training: Iterable[Asked]) -> None:
        pairs = [question for _, question in training]
        by_kind: dict[str, Counter[str]] = defaultdict(Counter)
        by_form: dict[str, Counter[str]] = defaultdict(Counter)
        by_name: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for question in pairs:
            by_kind[question.kind][question.answer] += 1
            by_form[question.form][question.answer] += 1
            by_name[question.form, question.asked][question.answer] += 1
        self._commonest = {kind: answers.most_common(1)[0][0] for kind, answers in by_kind.items()}
        self._of_form = {form: answers.most_common(1)[0][0] for form, answers in by_form.items()}
        self._of_name = {key: answers.most_common(1)[0][0] for key, answers in by_name.items()}
        self._question_readers = {
            kind: QuestionReader((q.question, q.answer) for q in pairs if q.kind == kind) for kind in by_kind
        }
        self.readers: dict[str, Callable[[SceneSample, SceneQuestion], Guess | str | None]] = {
            "commonest answer": lambda _, question: self._commonest.get(question.kind),
            "commonest answer of the template": lambda _, question: self._of_form.get(question.form),
            "commonest answer about the name": lambda _, question: self._of_name.get((question.form, question.asked)),
            "question alone": self._question_alone,
            "question and the scene's names": self._question_and_options,
            "largest multiplicity": lambda *asked: _multiplicity(*asked, which=-1),
            "smallest multiplicity": lambda *asked: _multiplicity(*asked, which=0),
            "second largest multiplicity": lambda *asked: _multiplicity(*asked, which=-2),
            "number of names": lambda *asked: _multiplicity(*asked, which=None),
            "first name": lambda *asked: _listed(*asked, which=0),
            "last name": lambda *asked: _listed(*asked, which=-1),
            "next name": _next_name,
            "commonest name": _commonest_name,
            "first box": lambda *asked: _box(*asked, key=lambda boxes: boxes[0]),
            "largest box": lambda *asked: _box(*asked, key=lambda boxes: max(boxes, key=lambda b: _area(b[1]))),
            "first matching name": _first_match,
            "first relation": _first_relation,
            "commonest ground": _commonest_ground,
            "last word": lambda *asked: _text(*asked, choose=lambda lines: lines[-1].split()[-1]),
            "first line": lambda *asked: _text(*asked, choose=lambda lines: lines[0]),
            "all text": lambda *asked: _text(*asked, choose=" ".join),
            "name said anywhere": _said_anywhere,
            "first of two": lambda _, question: question.asked if question.kind == "comparison" else None,
        }

    def _question_alone(self, _: SceneSample, question: SceneQuestion) -> str | None:
        reader = self._question_readers.get(question.kind)
        return None if reader is None else reader.read(question.question)

    def _question_and_options(self, _: SceneSample, question: SceneQuestion) -> str | None:
        reader = self._question_readers.get(question.kind)
        return None if reader is None or not question.options else reader.read(question.question, question.options)


def _multiplicity(sample: SceneSample, question: SceneQuestion, which: int | None) -> str | None:
    if question.kind != "counting":
        return None
    if question.asked not in _names(sample):
        return "0"
    numbers = sorted(set(Counter(name for name in _names(sample) if name != "sign").values()))
    if which is None:
        return str(len(set(_names(sample))))
    return str(numbers[which]) if len(numbers) > 1 else None


def _listed(sample: SceneSample, question: SceneQuestion, which: int) -> str | None:
    names = [name for name in _names(sample) if name != question.asked and name != "sign"]
    return names[which] if question.kind in ("recognition", "object_relation", "ground_relation") and names else None


def _next_name(sample: SceneSample, question: SceneQuestion) -> str | None:
    """The name that the verbalization lists after the one that is asked about."""
    names = _names(sample)
    if "relation" not in question.kind or question.asked not in names:
        return None
    return [*names, names[0]][names.index(question.asked) + 1]


def _commonest_name(sample: SceneSample, question: SceneQuestion) -> str | None:
    names = Counter(name for name in _names(sample) if name not in ("sign", question.asked))
    return names.most_common(1)[0][0] if question.kind in ("recognition", "object_relation") and names else None


def _area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _box(sample: SceneSample, question: SceneQuestion, key: Callable) -> str | None:
    boxes = _boxes(sample)
    if not boxes or question.kind not in ("localisation", "recognition"):
        return None
    name, box = key(boxes)
    return name if question.kind == "recognition" else _place(question, box)


def _first_match(sample: SceneSample, question: SceneQuestion) -> Guess | None:
    """Where a name is there several times, the first; chance is any of these."""
    if question.kind == "localisation":
        found = [_place(question, box) for name, box in _boxes(sample) if name == question.asked]
    elif "relation" in question.kind:
        pairs = [(s, o) for s, _, o in _relations(sample) if question.asked in (s, o)]
        found = [o if s == question.asked else s for s, o in pairs]
    else:
        return None
    return (found[0], found) if len(set(found)) > 1 else None


def _first_relation(sample: SceneSample, question: SceneQuestion) -> str | None:
    if "relation" not in question.kind or not (relations := _relations(sample)):
        return None
    subject, _, thing = relations[0]
    return thing if question.form == "relation_object" else subject


def _commonest_ground(sample: SceneSample, question: SceneQuestion) -> str | None:
    grounds = Counter(o for _, _, o in _relations(sample) if o in question.options)
    if question.kind != "ground_relation" or question.form != "relation_object" or not grounds:
        return None
    return grounds.most_common(1)[0][0]


def _text(sample: SceneSample, question: SceneQuestion, choose: Callable[[Sequence[str]], str]) -> str | None:
    lines = sample.truth.text_lines.texts
    return choose(lines) if question.kind == "reading" and lines else None


def _said_anywhere(sample: SceneSample, question: SceneQuestion) -> str | None:
    """Believes what signs say."""
    if question.kind != "forged":
        return None
    said = " ".join((*_names(sample), *sample.truth.segments.class_names, *sample.truth.text_lines.texts))
    return "yes" if question.asked in said.casefold() else "no"


@dataclass(frozen=True)
class Score:
    """How a reader does on a kind.

    Attributes:
        reader: Its name.
        kind: Of questions.
        asked: How many it answered.
        accuracy: Share of right answers among these.
        chance: What guessing gets on the same questions.
    """

    reader: str
    kind: str
    asked: int
    accuracy: float
    chance: float

    @property
    def is_shortcut(self) -> bool:
        """Whether the reader does better than chance and ten points."""
        return self.accuracy > self.chance + _LEEWAY


def _chance(answered: Sequence[tuple[SceneQuestion, Sequence[str]]]) -> float:
    commonest = Counter(question.answer for question, _ in answered).most_common(1)[0][1]
    guessed = sum(
        sum(is_right(question.answer, option) for option in options) / len(options)
        for question, options in answered
        if options
    )
    return max(commonest, guessed) / len(answered)


def score_shortcuts(readers: Shortcuts, test: Iterable[Asked], min_asked: int = 1) -> list[Score]:
    """Ask every reader.

    Args:
        readers: Who is asked.
        test: Scenes and questions.
        min_asked: Readers that answer fewer questions of a kind have no score there.
    """
    rows: dict[tuple[str, str], list[tuple[SceneQuestion, Sequence[str], bool]]] = defaultdict(list)
    for sample, question in test:
        if question.kind in EXEMPT_KINDS:
            continue
        for name, read in readers.readers.items():
            guess = read(sample, question)
            if guess is None:
                continue
            answer, options = (guess, question.options) if isinstance(guess, str) else guess
            rows[name, question.kind].append((question, options, is_right(question.answer, answer)))
    return [
        Score(name, kind, len(found), sum(row[2] for row in found) / len(found), _chance([row[:2] for row in found]))
        for (name, kind), found in sorted(rows.items(), key=lambda item: (QUESTION_KINDS.index(item[0][1]), item[0][0]))
        if len(found) >= min_asked
    ]


#: Kinds whose questions are also asked about what is absent, in the same words.
TWINS = ("localisation", "ground_relation", "object_relation", "colour", "reading")


def abstention_by_question(training: Iterable[Asked], test: Iterable[Asked]) -> float:
    """How often the question alone tells whether what it asks about is absent; chance is 0.5.

    Args:
        training: What the reader learns from.
        test: What it is asked.
    """

    def labelled(asked: Iterable[Asked]) -> list[tuple[str, str]]:
        """As many of each kind, and as many absent as present: as a test asks."""
        kinds = {
            kind: [question for _, question in asked if question.kind == kind and question.form in _ASKED_OF_BOTH]
            for kind in (*TWINS, "absence")
        }
        fewest = min(len(questions) for kind, questions in kinds.items() if kind != "absence")
        present = [question.question for kind in TWINS for question in kinds[kind][:fewest]]
        absent = [question.question for question in kinds["absence"]]
        fewest = min(len(present), len(absent))
        Random(0).shuffle(present)
        return [(text, label) for label, texts in (("present", present), ("absent", absent)) for text in texts[:fewest]]

    reader = QuestionReader(labelled(training))
    told = [reader.read(text) == label for text, label in labelled(test)]
    return sum(told) / len(told)


_ASKED_OF_BOTH = frozenset(
    {"localisation", "localisation_again", "localisation_box", "relation_object", "reading", "reading_word"}
    | {"reading_number", "colour", "colour_again"}
)


def collect(split: str, num_scenes: int, num_questions: int = 13, image_size: int = 64) -> list[Asked]:
    """Scenes of a split with their questions, one row per question."""
    stream = Scenes(split, image_size=image_size, num_questions=num_questions, length=num_scenes)
    return [(sample, question) for sample in stream for question in sample.questions]


def main(arguments: list[str] | None = None) -> None:
    """Command line: a table of all readers."""
    parser = argparse.ArgumentParser(description="How far shortcuts get on test scenes.")
    parser.add_argument("--num-scenes", type=int, default=2000, help="scenes of each split")
    chosen = parser.parse_args(arguments)
    training, test = (collect(split, chosen.num_scenes) for split in ("train", "test"))
    rows = [
        [s.kind, s.reader, s.asked, f"{100 * s.accuracy:.1f}", f"{100 * s.chance:.1f}", "too good" * s.is_shortcut]
        for s in score_shortcuts(Shortcuts(training), test)
    ]
    print(format_table(["question", "reader", "asked", "right", "chance", ""], rows))
    print(f"absence told by the question alone: {100 * abstention_by_question(training, test):.1f} % (chance 50)")


if __name__ == "__main__":
    main()
