"""Evaluation: a test's questions to a pipeline, batch by batch, under one condition or several.

from moai import Pipeline
from moai.evaluation.evaluate import answer_test
from moai.evaluation.loading import load_test
from moai.evaluation.question_settings import load_test_settings

test = load_test(load_test_settings("scenes", ["per_kind=100"]))
rows = [row for batch in answer_test(Pipeline.from_pretrained("moai-nano"), test) for row in batch.rows["model"]]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from moai.pipeline.pipeline import DEFAULT_TIMEOUT_S, Answer, Pipeline
from verbalizers import Scene
from verbalizers.core.scene import keep_kinds

from .conditions import MODEL, Condition
from .loading import Test
from .metrics import build_metric
from .question_settings import SceneTest
from .questions import TestImage, TestQuestion

__all__ = ["AnsweredBatch", "Looking", "answer_test", "metric_of"]

#: Answers of this share and more are right.
RIGHT_AT = 0.5


@dataclass(frozen=True)
class AnsweredBatch:
    """Questions of one batch with their answers.

    Attributes:
        questions: In the test's order.
        rows: By condition, one JSON-able row per question.
        looks: By image key: the image and what was found in it; an image that cannot be read is left out.
    """

    questions: Sequence[TestQuestion]
    rows: Mapping[str, list[dict[str, Any]]]
    looks: Mapping[str, tuple[Image.Image, Scene]] = field(default_factory=dict)


def metric_of(test: Test) -> Any:
    """The metric that a test's settings name."""
    chosen = test.settings.metric or ("scenes" if isinstance(test.settings, SceneTest) else "exact")
    return build_metric(chosen, test.questions)


def answer_test(
    pipeline: Pipeline,
    test: Test,
    conditions: Sequence[Condition] | None = None,
    *,
    batch_size: int = 32,
    starts: Mapping[str, int] | None = None,
    options: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] | None = None,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
    **generate_kwargs: Any,
) -> Iterator[AnsweredBatch]:
    """Answer a test, greedily where nothing else is said; each image is looked at once.

    Args:
        pipeline: Who looks, and answers under the condition "model".
        test: What is asked.
        conditions: From :func:`.conditions.build_conditions`; None = the model alone.
        batch_size: Questions per batch.
        starts: By condition the batch to begin with; None = the first.
        options: The model's own, by name; or a function from the number of a batch to them.
        timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.
        **generate_kwargs: To ``generate``.

    Yields:
        The batches.
    """
    conditions = [Condition(MODEL, pipeline, is_reporting=True)] if conditions is None else conditions
    metric, looking = metric_of(test), Looking(pipeline, test, timeout_s)
    needs_others = any(condition.name == "other-scene" for condition in conditions)
    starts = starts or {}
    first_open = min(starts.get(condition.name, 0) for condition in conditions)
    for number in range(first_open, -(-len(test.questions) // batch_size)):
        first = number * batch_size
        batch = test.questions[first : first + batch_size]
        looking.look([question.image for question in batch])
        if needs_others:
            looking.look([looking.other(question.image) for question in batch])
        chosen = options(number) if callable(options) else options or {}
        rows = {}
        for condition in conditions:
            if number < starts.get(condition.name, 0):
                continue
            answers = _answer(condition, batch, looking, chosen, test.settings.ranks, generate_kwargs)
            rows[condition.name] = [
                _row(question, answer, metric.score) for question, answer in zip(batch, answers, strict=True)
            ]
        found = {question.image.key: question.image for question in batch}
        yield AnsweredBatch(batch, rows, {key: looking.seen[key] for key in found if key in looking.seen})
        looking.forget({question.image.key for question in test.questions[first + batch_size :][: batch_size * 2]})


class Looking:
    """What is known about images: read, painted or looked at once, and kept while it is needed.

    Attributes:
        seen: By image key: the image and its scene.
        problems: By image key: why it cannot be read.
    """

    def __init__(self, pipeline: Pipeline, test: Test, timeout_s: float | None) -> None:
        self.pipeline, self.test, self.timeout_s = pipeline, test, timeout_s
        self.seen: dict[str, tuple[Image.Image, Scene]] = {}
        self.problems: dict[str, str] = {}
        self._images = {question.image.key: question.image for question in test.questions}
        keys = list(self._images)
        self._next = dict(zip(keys, [*keys[1:], *keys[:1]], strict=True))

    def other(self, image: TestImage) -> TestImage:
        """The test's next image."""
        return self._images[self._next[image.key]]

    def look(self, images: Sequence[TestImage]) -> None:
        """Fill in what is not yet known."""
        unseen = {image.key: image for image in images if image.key not in self.seen | self.problems}
        loaded: dict[str, Image.Image] = {}
        for key, image in unseen.items():
            try:
                loaded[key] = image.load()
                scene = self._known_scene(image, loaded[key])
                if scene is not None:
                    self.seen[key] = loaded[key], self._said(scene)
            except ValueError as error:
                self.problems[key] = str(error)
        looking = {key: image for key, image in loaded.items() if key not in self.seen and key not in self.problems}
        if looking:
            scenes = self.pipeline.verbalize(list(looking.values()), timeout_s=self.timeout_s)
            for (key, image), scene in zip(looking.items(), scenes, strict=True):
                self.seen[key] = image, self._said(scene)

    def _known_scene(self, image: TestImage, loaded: Image.Image) -> Scene | None:
        if self.test.settings.source == "none":
            return Scene((loaded.height, loaded.width))
        return None if image.read_scene is None else image.read_scene()

    def _said(self, scene: Scene) -> Scene:
        return keep_kinds(scene, self.test.settings.verbalizers)

    def forget(self, wanted: set[str]) -> None:
        """Drop all images but some, and those that follow them."""
        wanted = wanted | {self._next[key] for key in wanted}
        self.seen = {key: value for key, value in self.seen.items() if key in wanted}


def _answer(
    condition: Condition,
    batch: Sequence[TestQuestion],
    looking: Looking,
    options: Mapping[str, Any],
    is_ranking: bool,
    generate_kwargs: Mapping[str, Any],
) -> list[Answer]:
    """One answer per question, in order."""
    if condition.pipeline is None:
        return [Answer((condition.fixed.get(question.kind, ""),)) for question in batch]
    answers: dict[str, Answer] = {}
    groups: dict[Any, list[TestQuestion]] = {}
    for question in batch:
        if question.image.key in looking.problems:
            answers[question.id] = Answer((), error=looking.problems[question.image.key])
        else:  # long answers apart, so that short ones do not wait
            key = question.max_new_tokens, question.choices if is_ranking else ()
            groups.setdefault(key, []).append(question)
    known = condition.pipeline.answering.option_names
    options = {name: value for name, value in options.items() if name in known}
    shown = {key: condition.change_image(image) for key, (image, _) in looking.seen.items()}
    for (max_new_tokens, choices), part in groups.items():
        images, scenes = [], []
        for question in part:
            own = looking.seen[question.image.key][1]
            other = looking.seen.get(looking.other(question.image).key, (None, own))[1]
            images.append(shown[question.image.key])
            scenes.append(condition.change_scene(own, other))
        outputs = condition.pipeline.answer_each(
            images,
            [question.question for question in part],
            scenes,
            earlier=[question.earlier for question in part],
            options=options | condition.choose_options(part) | ({"choices": list(choices)} if choices else {}),
            is_reporting=condition.is_reporting,
            max_new_tokens=max_new_tokens,
            batch_size=len(part),
            on_error="skip",
            **generate_kwargs,
        )
        answers |= {question.id: output for question, output in zip(part, outputs, strict=True)}
    return [answers[question.id] for question in batch]


def _row(question: TestQuestion, output: Answer, score: Callable[[TestQuestion, str], float]) -> dict[str, Any]:
    """A question, its answer and how good it is, JSON-able."""
    given = output.answer or ""
    value = 0.0 if output.error is not None else round(float(score(question, given)), 6)
    row = {
        "id": question.id,
        "kind": question.kind,
        "question": question.question,
        "earlier": [list(turn) for turn in question.earlier],
        "answers": list(question.answers),
        "given": given,
        "score": value,
        "right": value >= RIGHT_AT,
        "wording": question.wording,
        "verbalization": output.auxiliary_text,
    }
    told = {name: value for name, value in output.to_dict().items() if name not in _TOLD_OTHERWISE}
    return {name: value for name, value in (row | told).items() if value not in ("", [], {}, None) or name in _ALWAYS}


_ALWAYS = ("given", "question")
_TOLD_OTHERWISE = ("answer", "is_unsure", "scene", "auxiliary_text")
