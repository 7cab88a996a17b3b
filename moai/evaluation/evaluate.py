"""Test questions about scenes, a model's answers to them, and the accuracy of each kind.

    from moai.evaluation.evaluate import EvaluationSettings, evaluate, summarise

    answered = evaluate("checkpoints/moai-nano", EvaluationSettings(per_kind=100, image_size=96))
    print(summarise(answered)["reading"])

Verbalizations are the truth with realistic noise, a cache's, or made by verbalizers that look at the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, StrictInt
from transformers import AutoModelForImageTextToText, AutoProcessor

import moai  # noqa: F401  (registers the Auto classes)
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.findings import Findings, FindingsReader, MissingFindingsError
from moai.models.moai.task_moai import draw_routing
from moai.scenes.export import encode_picture
from moai.scenes.scenes import QUESTION_KINDS, Scenes, SceneSample, add_noise
from moai.settings import Number, settings
from verbalizers import SCENE_FIELDS, WordSettings
from verbalizers.core.scene import parse_scene, verbalize_scene
from verbalizers.core.verbalizer import Verbalizer

from .intervals import wilson_interval
from .metrics import has_repeated_clause, is_abstention, is_right, mentioned_names, name_f1

__all__ = [
    "Answered",
    "AskedQuestion",
    "EvaluationSettings",
    "answer_questions",
    "ask",
    "collect_questions",
    "evaluate",
    "load_model",
    "summarise",
]

#: Kinds of questions with one right answer.
SHORT_KINDS = tuple(kind for kind in QUESTION_KINDS if kind != "description")
#: Bounds on the tokens of an answer: short ones, and descriptions.
_SHORT, _LONG = 24, 160


@dataclass(frozen=True)
class AskedQuestion:
    """A test question with everything a model may see.

    Attributes:
        kind: One of ``QUESTION_KINDS``.
        question: The question.
        answer: What is right, from the truth.
        image: uint8 (H, W, 3).
        auxiliary_text: Verbalization of the image.
        auxiliary_image: uint8 (H, W, 3) segmentation map that goes with it; None where segmentation is silent.
        earlier: Questions and answers of the turns before.
        is_trained_wording: Whether training may have met these words.
        options: See :class:`moai.scenes.scenes.SceneQuestion`.
    """

    kind: str
    question: str
    answer: str
    image: np.ndarray
    auxiliary_text: str
    auxiliary_image: np.ndarray | None
    earlier: tuple[tuple[str, str], ...] = ()
    is_trained_wording: bool = True
    options: tuple[str, ...] = ()

    def messages(self) -> list[dict[str, Any]]:
        """The conversation up to this question, as chat templates read it."""
        turns = [turn for pair in self.earlier for turn in zip(("user", "assistant"), pair, strict=True)]
        content = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        content.append({"role": "user", "content": [{"type": "text", "text": self.question}]})
        content[0]["content"].insert(0, {"type": "image"})
        return content


#: Scenes in a row without a question of a wanted kind after which asking ends.
_PATIENCE = 3000
#: Questions with the answers that a model gave.
Answered = list[tuple[AskedQuestion, str]]
#: Answers of one batch; the second argument bounds the tokens of each.
Answerer = Callable[[Sequence[AskedQuestion], int], list[str]]


@settings
class EvaluationSettings:
    """A test on scenes whose verbalizations are the truth with noise.

    Attributes:
        per_kind: Questions of each kind.
        kinds: Kinds of questions.
        split: Which scenes.
        seed: Seed of scenes, noise and random routing.
        image_size: Height and width in pixels.
        num_objects: Fewest and most objects per scene.
        noise: Strength of the verbalizers' errors; 0 = the truth.
        verbalizers: Kinds of predictions that are verbalized; None = all, the others are silent.
        routing: Expert routing: ``gated``, ``uniform``, ``random_expert`` or ``random_weights``; None = the model's.
        top_k: Experts mixed per token where gates decide; None = the model's.
        batch_size: Questions per batch.
    """

    per_kind: Annotated[StrictInt, Field(ge=2)] = 100
    kinds: tuple[Literal[QUESTION_KINDS], ...] = SHORT_KINDS
    split: Literal["validation", "test"] = "test"
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    image_size: Annotated[StrictInt, Field(ge=1)] = 448
    num_objects: tuple[StrictInt, StrictInt] = (0, 9)
    noise: Annotated[Number, Field(ge=0)] = 1.0
    verbalizers: tuple[Literal[tuple(SCENE_FIELDS)], ...] | None = None
    routing: Literal["gated", "uniform", "random_expert", "random_weights"] | None = None
    top_k: Annotated[StrictInt, Field(ge=1, le=3)] | None = None
    batch_size: Annotated[StrictInt, Field(ge=1)] = 60


def collect_questions(
    per_kind: int,
    noise: float = 1.0,
    image_size: int = 448,
    num_objects: tuple[int, int] = (0, 9),
    seed: int = 0,
    split: str = "test",
    kinds: Sequence[str] = QUESTION_KINDS,
    verbalizers: Sequence[Verbalizer] = (),
    words: WordSettings | None = None,
    reader: FindingsReader | None = None,
    said: Sequence[str] | None = None,
) -> Iterator[AskedQuestion]:
    """Questions of a split in order, up to a number per kind; fewer where a cache ends before.

    Args:
        per_kind: How many of each kind.
        noise: Strength of the verbalizers' errors; 0 = the truth.
        image_size: Height and width of the images in pixels.
        num_objects: Fewest and most objects per scene.
        seed: Seed of the stream and of the noise.
        split: Which scenes.
        kinds: Which kinds.
        verbalizers: Real ones to look at the images, instead of the noisy truth.
        words: What of their predictions is worth saying; None = the defaults.
        reader: Reads what verbalizers found before, in place of looking; asking ends with the first scene it lacks.
        said: Kinds of predictions that are verbalized, of the noisy truth or of `verbalizers`; None = all.

    Raises:
        ValueError: Scenes of so few objects have no question of a kind.
    """
    missing = dict.fromkeys(kinds, per_kind)
    scenes, in_vain = Scenes(split, seed, image_size, num_objects, max(7, len(kinds)), tuple(kinds)), 0
    for sample in scenes:
        if not any(missing.values()):
            return
        wanted = [asked for asked in sample.questions if missing[asked.kind] > 0]
        if not wanted:
            in_vain += 1
            if in_vain == _PATIENCE:
                absent = [kind for kind, number in missing.items() if number]
                raise ValueError(
                    f"expected questions of the kinds {absent} about scenes of {num_objects} objects, got none in "
                    f"{_PATIENCE} scenes. Raise `num_objects` or leave those kinds out."
                )
            continue
        in_vain = 0
        if reader is not None:
            try:
                findings = reader.read(encode_picture(sample.image), sample.image)
            except MissingFindingsError:
                return
        else:
            findings = _look(sample, verbalizers, words, Random(f"{seed} {sample.index}"), noise, said)
        is_mapped = said is None or "segmentation" in said
        painted = findings.paint_map(sample.image_size_hw) if is_mapped else None
        for asked in wanted:
            if missing[asked.kind] > 0:
                missing[asked.kind] -= 1
                yield AskedQuestion(
                    asked.kind, asked.question, asked.answer, sample.image, findings.text, painted,
                    asked.earlier, asked.is_trained_wording, asked.options,
                )  # fmt: skip


def _look(
    sample: SceneSample,
    verbalizers: Sequence[Verbalizer],
    words: WordSettings | None,
    rng: Random,
    noise: float,
    said: Sequence[str] | None,
) -> Findings:
    """Predictions of verbalizers, or what poor ones might have predicted."""
    found = parse_scene([sample.image], verbalizers)[0] if verbalizers else add_noise(sample.truth, rng, noise)
    return Findings(verbalize_scene(found, said, settings=words), found)


@torch.inference_mode()
def answer_questions(
    model: Any,
    processor: Any,
    asked: Sequence[AskedQuestion],
    has_auxiliary: bool,
    max_new_tokens: int,
    routing: Any = None,
) -> list[str]:
    """Answers of one batch, greedy.

    Args:
        model: MoAIForConditionalGeneration.
        processor: Its processor.
        asked: The batch.
        has_auxiliary: Whether verbalization and map are given.
        max_new_tokens: Bound on each answer.
        routing: Expert routing, see :func:`mixer.resolve_routing`; None = the model's.
    """
    auxiliary = {}
    if has_auxiliary:
        auxiliary["auxiliary_text"] = [item.auxiliary_text for item in asked]
        if asked[0].auxiliary_image is not None:
            auxiliary["auxiliary_images"] = [item.auxiliary_image for item in asked]
    prompts = processor.apply_chat_template([item.messages() for item in asked], add_generation_prompt=True)
    batch = processor(images=[[item.image] for item in asked], text=prompts, **auxiliary).to(model.device)
    chosen = {} if routing is None else {"routing": routing}
    generated = model.generate(**batch, **chosen, max_new_tokens=max_new_tokens, do_sample=False)
    texts = processor.batch_decode(generated[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def ask(
    questions: Iterable[AskedQuestion], answerers: Mapping[str, Answerer], batch_size: int = 32
) -> dict[str, Answered]:
    """Answer all questions with every answerer.

    Args:
        questions: What is asked.
        answerers: By name, what answers a batch.
        batch_size: Questions per batch.

    Returns:
        By name: pairs of question and answer.
    """
    answered: dict[str, Answered] = {name: [] for name in answerers}
    remaining = iter(questions)
    while batch := list(islice(remaining, batch_size)):
        # Descriptions are long, the rest is short: apart, so that short answers do not wait.
        for bound in (_SHORT, _LONG):
            part = [item for item in batch if (item.kind == "description") == (bound == _LONG)]
            for name, answer in answerers.items() if part else ():
                answered[name] += zip(part, answer(part, bound), strict=True)
    return answered


def load_model(name_or_path: str | Path) -> tuple[Any, Any]:
    """Model in evaluation mode and processor, in float32.

    Args:
        name_or_path: A checkpoint or an adapter: folder, bundled name or hub name.
    """
    folder = find_checkpoint(name_or_path)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def evaluate(model: str | Path | tuple[Any, Any], test: EvaluationSettings) -> Answered:
    """A model's answers to a test.

    Args:
        model: A checkpoint (see :func:`load_model`), or model and processor.
        test: What is asked, and how experts are routed.

    Returns:
        Pairs of question and answer, the same questions in the same order for every model.
    """
    words = None if isinstance(model, tuple) else VerbalizerSettings.load(find_checkpoint(model)).words
    model, processor = model if isinstance(model, tuple) else load_model(model)
    questions = collect_questions(
        test.per_kind, test.noise, test.image_size, test.num_objects, test.seed, test.split, test.kinds,
        words=words, said=test.verbalizers,
    )  # fmt: skip
    numbers = count()

    def answer(asked: Sequence[AskedQuestion], max_new_tokens: int) -> list[str]:
        routing = None
        if test.routing is not None or test.top_k is not None:
            mixer = model.config.mixer_config
            chosen = test.routing or mixer.routing, test.top_k or mixer.top_k
            routing = draw_routing(*chosen, (test.seed, next(numbers)), len(model.model.mixers.layer_indices))
        return answer_questions(model, processor, asked, True, max_new_tokens, routing)

    return ask(questions, {"model": answer}, test.batch_size)["model"]


def summarise(answered: Sequence[tuple[AskedQuestion, str]]) -> dict[str, dict[str, Any]]:
    """Per kind: questions, accuracy and its 95 % interval; for descriptions the mean F1 of the names mentioned.

    Args:
        answered: Pairs of question and answer.

    Returns:
        Rows by kind. ``trained`` and ``never_trained`` in a row are such rows of the questions in words that training
        may have met and in words that it has not; ``abstained`` is the share of answers that say that something is
        not there or cannot be told. Descriptions also have the shares with a ``repeated`` clause and with a name of
        something ``absent``.
    """
    table: dict[str, dict[str, Any]] = {}
    for kind in QUESTION_KINDS:
        pairs = [pair for pair in answered if pair[0].kind == kind]
        if pairs:
            halves = {
                name: [pair for pair in pairs if pair[0].is_trained_wording == is_trained]
                for name, is_trained in (("trained", True), ("never_trained", False))
            }
            table[kind] = _row(kind, pairs) | {name: _row(kind, half) for name, half in halves.items() if half}
    return table


def _row(kind: str, pairs: Answered) -> dict[str, Any]:
    if kind == "description":
        scores = np.array([name_f1(item.answer, given) for item, given in pairs])
        reach = 1.96 * scores.std() / np.sqrt(len(scores))
        low, high = max(0.0, scores.mean() - reach), min(1.0, scores.mean() + reach)
        row = {"measure": "name F1", "value": float(scores.mean())}
        row["repeated"] = sum(has_repeated_clause(given) for _, given in pairs) / len(pairs)
        absent = [mentioned_names(given) - mentioned_names(item.answer) - set(item.options) for item, given in pairs]
        row["absent"] = sum(map(bool, absent)) / len(pairs)
    else:
        right = sum(is_right(item.answer, given) for item, given in pairs)
        low, high = wilson_interval(right, len(pairs))
        row = {"measure": "accuracy", "value": right / len(pairs), "right": right}
        row["abstained"] = sum(is_abstention(given) for _, given in pairs) / len(pairs)
    return {"asked": len(pairs), **row, "interval95": [float(low), float(high)]}
