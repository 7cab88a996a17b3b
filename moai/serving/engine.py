"""The engine: questions in from any thread, answers out, three stages side by side.

    prepare (decode an image, find its scene among those kept) -> look (verbalizers) -> generate (one batch at a time)

Each stage is a thread. A question whose scene is at hand passes by those that wait for verbalizers; whatever is ready
when the model is free shares its next batch. A question that fails, is called off or has its answer leaves alone.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from verbalizers import Scene
from verbalizers.core.scene import keep_kinds

from ..pipeline.answers import Answer
from ..pipeline.pipeline import DEFAULT_TIMEOUT_S, Pipeline
from ..pipeline.queries import Query, hash_image
from ..pipeline.rows import AnswerRow
from .metrics import Metrics
from .scene_cache import SceneCache

__all__ = ["Engine", "EngineClosedError", "Job", "Result"]

logger = logging.getLogger(__name__)
#: Answers to choose from, say: each costs a pass of the model, which nothing interrupts.
_MAX_OPTION_VALUES = 64
#: Of drawing an image, likewise.
_MAX_STEPS = 50


class EngineClosedError(RuntimeError):
    """The engine takes no further questions."""


@dataclass(frozen=True, eq=False)
class Result:
    """What has become of a job.

    Attributes:
        text: The answer.
        row: How it ended.
        answer: Parts, scenes, verbalization and report; None unless ``Job.is_explaining`` or ``Job.is_drawing``.
        error: Why there is no answer: a ValueError is the asker's, anything else ours.
    """

    text: str
    row: AnswerRow
    answer: Answer | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Job:
    """One question on its way.

    Attributes:
        messages: See :class:`moai.pipeline.queries.Query`; images stand in ``images``.
        images: Encoded images in reading order.
        row: How the answer is generated; its ``on_text`` is called in the engine's thread.
        on_result: Called once, in a thread of the engine, when all is done.
        scenes: Findings brought along, one per image; None = the verbalizers look.
        kinds: Which kinds of findings the model is told; None = all. With none of them, nobody looks.
        options: The model's own, parsed.
        is_explaining: Hand back scenes, verbalization, and what the model tells about how it answered.
    """

    messages: Sequence[Mapping[str, Any]]
    images: Sequence[bytes]
    row: AnswerRow
    on_result: Callable[[Result], None]
    scenes: Sequence[Scene] | None = None
    kinds: frozenset[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    is_explaining: bool = False
    query: Query | None = None
    keys: list[Any] = field(default_factory=list)
    is_done: bool = False

    @cached_property
    def batch_key(self) -> str:
        """Key that is equal for jobs that may share a batch; beams, and images between texts, have one of their own."""
        own = id(self) if self.row.num_beams > 1 or self.is_drawing else None
        return json.dumps([own, self.is_explaining, self.options], sort_keys=True, default=repr)

    @property
    def is_drawing(self) -> bool:
        """Whether the answer may hold images."""
        return bool(self.options.get("images"))


class _Stage:
    """A queue between two threads."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, job: Job) -> None:
        with self._changed:
            self.jobs.append(job)
            self._changed.notify()

    def take(self, most: int) -> list[Job]:
        """Wait for jobs; up to `most` that may share a batch, the oldest among them. Empty = closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.jobs or self._is_closed)
            if not self.jobs:
                return []
            key = self.jobs[0].batch_key
            taken = [job for job in self.jobs if job.batch_key == key][:most]
            self.jobs = deque(job for job in self.jobs if job not in taken)
            return taken

    def discard(self, job: Job) -> bool:
        """Take a job out; whether it stood there."""
        with self._changed:
            try:
                self.jobs.remove(job)
            except ValueError:
                return False
            return True

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class Engine:
    """Answers questions of many askers with one pipeline.

    Args:
        pipeline: Its model and verbalizers are used by this engine's threads alone.
        batch_size: Most questions per pass of the model.
        cache: Scenes by content; None = nothing is kept.
        metrics: Where stages are counted; None = nowhere else.
        max_prompt_tokens: Longest text of a question, counted before anything else is done; None = the model's.
        timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.
        max_drawn_images: Most images in an answer.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        batch_size: int = 8,
        cache: SceneCache | None = None,
        metrics: Metrics | None = None,
        max_prompt_tokens: int | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        max_drawn_images: int = 0,
    ) -> None:
        self.pipeline, self.batch_size = pipeline, batch_size
        self._bounds = {"images": max_drawn_images, "steps": _MAX_STEPS}
        self.cache = SceneCache(0) if cache is None else cache
        self.metrics = metrics or Metrics()
        self.max_prompt_tokens = max_prompt_tokens or pipeline.answering.longest_sequence
        self._timeout_s = timeout_s
        # On a CPU a look at several images takes as long as several looks, and the first would wait for the last.
        self._look_size = 1 if pipeline.model.device.type == "cpu" else batch_size
        self._arrived, self._blind, self._ready = _Stage(), _Stage(), _Stage()
        self._places = threading.BoundedSemaphore(2 * batch_size)  # decoded images are large: so many at a time
        self._is_closed = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=work, name=f"moai-answer-{work.__name__.strip('_')}", daemon=True)
            for work in (self._prepare_all, self._look_all, self._generate_all)
        ]
        for thread in self._threads:
            thread.start()
        for name, what, stage in (
            ("moai_waiting_to_prepare", "Requests whose image is not read yet.", self._arrived),
            ("moai_waiting_to_look", "Requests that wait for verbalizers.", self._blind),
            ("moai_waiting_to_generate", "Requests that wait for the model.", self._ready),
        ):
            self.metrics.watch(name, what, lambda stage=stage: len(stage.jobs))
        self.metrics.watch("moai_scene_cache_bytes", "Memory of kept scenes.", lambda: self.cache.num_bytes)

    @property
    def kinds(self) -> list[str]:
        """What the pipeline's verbalizers find."""
        return [verbalizer.kind for verbalizer in self.pipeline.verbalizers]

    def submit(self, job: Job) -> None:
        """Take a question; its callbacks tell the rest.

        Raises:
            EngineClosedError: The engine was closed.
        """
        if self._is_closed:
            raise EngineClosedError("expected a running engine, got a closed one. Ask another server.")
        self._arrived.put(job)

    def cancel(self, job: Job) -> None:
        """Call a question off: at once where it waits, at its next token where it is being answered."""
        job.row.cancel()
        if any(stage.discard(job) for stage in (self._arrived, self._blind, self._ready)):
            self._end(job, Result("", job.row))

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The model's options, parsed.

        Raises:
            ValueError: The model has no such option for strangers, or the value is wrong.
        """
        answering = self.pipeline.answering
        if refused := sorted(set(options) - set(answering.served_options)):
            known = ", ".join(answering.served_options) or "none"
            raise ValueError(f"expected options that are served ({known}), got {len(refused)} others. Leave them out.")
        for name, value in options.items():
            given = value.split(",") if isinstance(value, str) else value
            if isinstance(given, Sized) and len(given) > _MAX_OPTION_VALUES:
                raise ValueError(f"expected at most {_MAX_OPTION_VALUES} values of an option, got more for {name}.")
        try:
            parsed = answering.parse_options(options)
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"expected options that this model reads, got others ({type(error).__name__}).") from error
        for name, most in self._bounds.items():
            if name in parsed and parsed[name] > most:
                raise ValueError(f"expected at most {most} of `{name}`, as this server allows, got {parsed[name]}.")
        return parsed

    def close(self) -> None:
        """Answer what was taken, take nothing more."""
        self._is_closed = True
        for stage, thread in zip((self._arrived, self._blind, self._ready), self._threads, strict=True):
            stage.close()
            thread.join()

    # ------------------------------------------------------------------ the stages

    def _end(self, job: Job, result: Result) -> None:
        """Hand a result over, once."""
        with self._lock:
            if job.is_done:
                return
            job.is_done = True
        if job.query is not None:
            job.query.release()
            self._places.release()
        job.images = ()
        self.metrics.count("moai_tokens_total", job.row.num_prompt_tokens, of="prompts")
        self.metrics.count("moai_tokens_total", job.row.num_tokens, of="answers")
        job.on_result(result)

    def _fail(self, job: Job, error: Exception) -> None:
        if not isinstance(error, ValueError):
            logger.error("a question failed", exc_info=error)
        self._end(job, Result("", job.row, error=error))

    def _drop_cancelled(self, jobs: Sequence[Job]) -> list[Job]:
        for job in jobs:
            if job.row.is_cancelled:
                self._end(job, Result("", job.row))
        return [job for job in jobs if not job.is_done]

    def _prepare_all(self) -> None:
        while jobs := self._arrived.take(1):
            for job in self._drop_cancelled(jobs):
                try:
                    self._check_length(job)
                    self._places.acquire()
                    job.query = Query(0, list(job.images), job.messages, [None] * len(job.images))
                    with self.metrics.timing("prepare"):
                        self._prepare(job)
                except Exception as error:  # noqa: BLE001 - one question must not end the stage
                    self._fail(job, error)

    def _check_length(self, job: Job) -> None:
        """Whether the texts of a question can fit, before anything costs more than to count them."""
        if self.max_prompt_tokens is None:
            return
        texts = [part["text"] for message in job.messages for part in message["content"] if part["type"] == "text"]
        length = sum(map(len, texts))
        if length <= 64 * self.max_prompt_tokens:  # no tokenizer says that much with one token
            tokenizer = self.pipeline.answering.tokenizer
            length = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
        if length > self.max_prompt_tokens:
            raise ValueError(f"expected texts of at most {self.max_prompt_tokens} tokens, got more. Shorten them.")

    def _prepare(self, job: Job) -> None:
        if job.scenes is not None:
            job.query.scenes = [keep_kinds(scene, job.kinds) for scene in job.scenes]
        self.pipeline.prepare_queries([job.query], 1)
        if job.query.error is not None:
            self._fail(job, job.query.cause)
            return
        job.images = ()
        if job.scenes is None:
            if job.kinds is not None and not job.kinds or not self.pipeline.verbalizers:
                job.query.scenes = [Scene((image.height, image.width)) for image in job.query.images]
            else:
                job.keys = [hash_image(image) for image in job.query.images]
                if not self._recall(job):
                    self._blind.put(job)
                    return
        self._ready.put(job)

    def _recall(self, job: Job) -> bool:
        """Fill in scenes that are kept; whether all of them are."""
        known = [self.cache.get(key) for key in job.keys]
        for known_scene in known:
            self.metrics.count("moai_scene_cache_total", result="miss" if known_scene is None else "hit")
        job.query.scenes = known
        if None in known:
            return False
        job.query.scenes = [keep_kinds(scene, job.kinds) for scene in known]
        return True

    def _look_all(self) -> None:
        while jobs := self._blind.take(self._look_size):
            try:
                with self.metrics.timing("look"):
                    self._look(self._drop_cancelled(jobs))
            except Exception as error:  # noqa: BLE001 - likewise
                for job in jobs:
                    self._fail(job, error)

    def _look(self, jobs: Sequence[Job]) -> None:
        """Have the verbalizers look at images whose scene is not kept, each once."""
        blind: dict[Any, Query] = {}
        for job in jobs:
            pairs = zip(job.keys, job.query.images, job.query.scenes, strict=True)
            for key, image, scene in pairs:
                kept = scene or self.cache.get(key)  # it may have been looked at since for another job
                if key not in blind:
                    blind[key] = Query(len(blind), [image], "", [kept], images=[image])
        queries = list(blind.values())
        self.pipeline.verbalize_queries(queries, timeout_s=self._timeout_s)
        for key, query in blind.items():
            self.cache.put(key, query.scenes[0])
        for job in jobs:
            job.query.scenes = [keep_kinds(blind[key].scenes[0], job.kinds) for key in job.keys]
            self._ready.put(job)

    def _generate_all(self) -> None:
        while jobs := self._ready.take(self.batch_size):
            jobs = self._drop_cancelled(jobs)
            if jobs:
                self._generate(jobs)

    def _generate(self, jobs: Sequence[Job]) -> None:
        """Answer a batch; where it fails as a whole, each alone."""
        for index, job in enumerate(jobs):
            job.query.index, job.query.num_queries = index, 1
            if not (job.is_explaining or job.is_drawing):  # the others wait for what only the whole batch knows
                job.row.on_end = lambda job=job: self._end(job, Result(job.row.text, job.row))
        self.metrics.observe("moai_batch_size", len(jobs))
        try:
            with self.metrics.timing("generate"):
                answers = self.pipeline.generate_answers(
                    [job.query for job in jobs],
                    jobs[0].options,
                    is_reporting=jobs[0].is_explaining,
                    rows={index: job.row for index, job in enumerate(jobs)},
                )
        except Exception as error:  # noqa: BLE001 - likewise
            left = [job for job in jobs if not job.is_done]
            for job in left:
                if len(jobs) == 1 or job.row.text:  # what was said cannot be said anew
                    self._fail(job, error)
                else:
                    job.row.restart()
                    self._generate([job])
            return
        for index, job in enumerate(jobs):
            if index not in answers:
                self._fail(job, job.query.cause or RuntimeError("no answer"))
                continue
            answer = answers[index]
            if job.row.finish_reason is None:  # an answer that was chosen, not generated token by token
                job.row.extend(answer.answer)
                job.row.finish_reason, job.row.confidence = "stop", answer.confidence
            self._end(job, Result(answer.answer, job.row, answer if job.is_explaining or job.is_drawing else None))
