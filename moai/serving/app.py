"""The HTTP application: OpenAI's chat completions, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from verbalizers.core.valid_text import make_valid

from ..pipeline.answers import CONFIDENCE_DIGITS
from ..pipeline.pipeline import Pipeline
from ..pipeline.rows import AnswerRow
from .chat_messages import ChatRequest, ReplyWriter, describe_error, read_messages, write_part
from .engine import Engine, EngineClosedError, Job, Result
from .guard import Guard
from .media import MediaReader
from .metrics import Metrics
from .page_routes import add_page
from .scene_cache import SceneCache
from .scene_reading import read_scene
from .settings import ServingSettings

__all__ = ["build_app"]

logger = logging.getLogger(__name__)
#: Seconds between looks at whether the client is still there.
_LOOK_S = 0.25


class ErrorReply(Exception):
    """An error for the client.

    Args:
        status: HTTP status.
        message: What was expected, what came, what to do next.
        param: The field of the request that it is about.
        code: OpenAI's short name of it.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.content = status, describe_error(message, status, param, code)


def build_app(pipeline: Pipeline, settings: ServingSettings) -> FastAPI:
    """The application with its engine, which stands in ``app.state.engine``, as its guard in ``app.state.guard``.

    Args:
        pipeline: What answers; nothing else may use it meanwhile.
        settings: Names and limits.

    Returns:
        An ASGI application; :meth:`.Engine.close` ends its threads.
    """
    if settings.max_pixels is not None:
        pipeline.answering.processor.max_image_pixels = min(settings.max_pixels, pipeline.answering.max_image_pixels)
    metrics = Metrics()
    engine = Engine(
        pipeline,
        settings.batch_size,
        SceneCache(settings.cache_bytes),
        metrics,
        settings.max_prompt_tokens,
        settings.verbalizer_timeout_s,
        settings.max_drawn_images,
    )
    app = FastAPI(title="MoAI", docs_url=None, redoc_url=None)
    app.state.engine, app.state.settings = engine, settings
    guard: list[Guard] = []

    def build_guard(inner: Any) -> Guard:
        guard.append(Guard(inner, settings, metrics))
        return guard[0]

    app.add_middleware(build_guard)
    app.state.guard = lambda: guard[0] if guard else None
    add_error_handlers(app)
    chat = ChatEndpoint(engine, settings)
    error_form = {"description": "OpenAI's form of an error", "content": {"application/json": {}}}
    answers = dict.fromkeys((400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504), error_form)

    @app.post("/v1/chat/completions", responses=answers)
    async def complete_chat(body: ChatRequest, request: Request) -> Response:
        return await chat.answer(body, request)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [chat.model_card]}

    @app.get("/v1/models/{name:path}", responses={404: error_form})
    async def show_model(name: str) -> dict[str, Any]:
        chat.check_model(name)
        return chat.model_card

    @app.get("/health")
    async def tell_health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", responses={503: error_form})
    async def tell_readiness() -> dict[str, str]:
        if guard and guard[0].is_draining:
            raise ErrorReply(503, "this server is being ended")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> str:
        return metrics.render()

    if settings.has_page:
        add_page(app, engine, settings, chat.media)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Give every error OpenAI's form."""

    @app.exception_handler(ErrorReply)
    async def reply(request: Request, error: ErrorReply) -> JSONResponse:
        return JSONResponse(error.content, error.status)

    @app.exception_handler(HTTPException)
    async def reply_http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(describe_error(str(error.detail), error.status_code), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def reply_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or None
        return JSONResponse(describe_error(f"{place or 'body'}: {first['msg']}", 422, place), 422)

    @app.exception_handler(Exception)
    async def reply_unexpected(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(describe_error("the server failed on this request; its log tells why.", 500), 500)


class _Answering:
    """One job between the engine's threads and the event loop."""

    def __init__(self, engine: Engine, deadline: float) -> None:
        self._engine, self._deadline = engine, deadline
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue()
        self.job: Job | None = None

    def tell(self, event: str | Result) -> None:
        """Hand an event over from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has ended, nobody listens
            logger.debug("an answer came after the server's end")

    def start(self, job: Job) -> None:
        """Give the job to the engine."""
        self.job = job
        try:
            self._engine.submit(job)
        except EngineClosedError as error:
            raise ErrorReply(503, str(error)) from error

    async def wait(self, request: Request | None = None) -> str | Result:
        """The next piece of text, or the end.

        Raises:
            ErrorReply: The time is over, the client has left, or there is no answer.
        """
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise ErrorReply(
                    504, "expected an answer in time, got none yet. Ask for less, or again.", code="timeout"
                )
            try:
                event = await asyncio.wait_for(self._events.get(), min(left, _LOOK_S))
            except TimeoutError:
                if request is not None and await request.is_disconnected():
                    raise ErrorReply(499, "the client has left") from None
                continue
            if isinstance(event, Result) and event.error is not None:
                if isinstance(event.error, ValueError):
                    raise ErrorReply(400, str(event.error)) from event.error
                raise ErrorReply(500, "the server failed on this request; its log tells why.") from event.error
            return event

    async def wait_for_end(self, request: Request) -> Result:
        """The end; raises as :meth:`wait`."""
        while not isinstance(event := await self.wait(request), Result):
            pass
        return event

    def leave(self) -> None:
        """Cancel the job of a client that has gone, which frees its row."""
        if self.job is not None and not self.job.is_done:
            self._engine.cancel(self.job)


class ChatEndpoint:
    """Answers chat requests with an engine.

    Args:
        engine: Answers.
        settings: Name and limits.
    """

    def __init__(self, engine: Engine, settings: ServingSettings) -> None:
        self.engine, self.settings = engine, settings
        self.media = MediaReader(settings.media_hosts, settings.max_image_bytes)
        self.model_card = {"id": settings.name, "object": "model", "created": int(time.time()), "owned_by": "moai-vlm"}

    def check_model(self, name: str) -> None:
        """Check that a request is for this model.

        Raises:
            ErrorReply: It is not.
        """
        if name != self.settings.name:
            message = f"expected the model {self.settings.name!r}, got another. /v1/models lists what is here."
            raise ErrorReply(404, message, "model", "model_not_found")

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        """Answer a request, whole or as a stream."""
        deadline = time.monotonic() + self.settings.request_timeout_s
        waitings: list[_Answering] = []
        try:
            try:
                check_shape(body, self.settings)
                waitings += [_Answering(self.engine, deadline) for _ in range(body.n or 1)]
                jobs = await asyncio.wait_for(
                    run_in_threadpool(self._build_jobs, body, waitings), self.settings.request_timeout_s
                )
            except (ValueError, RecursionError) as error:
                raise ErrorReply(400, str(error), "messages") from error
            except TimeoutError as error:
                raise ErrorReply(504, "expected its images in time, got none. Send them as data URLs.") from error
            for waiting, job in zip(waitings, jobs, strict=True):
                waiting.start(job)
            writer = ReplyWriter(self.settings.name)
            if body.stream:
                (waiting,) = waitings
                # The first event decides the status: an error before it is an error of HTTP, not of a stream.
                pieces = self._stream(waiting, await waiting.wait(request), writer, body)
                return StreamingResponse(pieces, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
            results = [await waiting.wait_for_end(request) for waiting in waitings]
            answers = {job.row: result.text for job, result in zip(jobs, results, strict=True)}
            extras = self._explain(jobs[0], results[0])
            if len(jobs) > 1:
                extras["confidences"] = [_round(job.row.confidence) for job in jobs]
            return JSONResponse(writer.write_whole(answers, extras))
        except BaseException:
            for waiting in waitings:
                waiting.leave()
            raise

    def _build_jobs(self, body: ChatRequest, waitings: Sequence[_Answering]) -> list[Job]:
        """The jobs of a request, one per answer; reads its images.

        Raises:
            ErrorReply: Another model is wanted.
            ValueError: What is asked for cannot be done; the message tells why.
        """
        self.check_model(body.model)
        messages, urls = read_messages(body.messages)
        if len(urls) > self.settings.max_images:
            raise ValueError(f"expected at most {self.settings.max_images} images, got {len(urls)}. Send fewer.")
        extras, scenes = body.moai, None
        if extras.scenes is not None:
            if len(extras.scenes) != len(urls):
                raise ValueError(f"expected one scene per image ({len(urls)}), got {len(extras.scenes)}.")
            scenes = [read_scene(scene, self.settings.max_pixels) for scene in extras.scenes]
        options = self.engine.check_options(make_valid(extras.options))
        if options.get("images") and len(waitings) * extras.num_beams > 1:
            raise ValueError("expected one answer without beams where it may hold images, got `n` or `num_beams`.")
        wanted = [tokens for tokens in (body.max_completion_tokens, body.max_tokens) if tokens is not None]
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        images = [self.media.read(url) for url in urls]
        kinds = None if extras.verbalizers is None else frozenset(extras.verbalizers)
        jobs = []
        for index, waiting in enumerate(waitings):
            row = AnswerRow(
                max_new_tokens=min([*wanted, self.settings.max_new_tokens]),
                stops=tuple(make_valid(stop) for stop in stops),
                temperature=body.temperature or 0.0,
                top_p=1.0 if body.top_p is None else body.top_p,
                seed=None if body.seed is None else body.seed + index,
                num_beams=extras.num_beams,
                num_likeliest=(body.top_logprobs or 0) if body.logprobs else None,
                on_text=waiting.tell if body.stream else None,
            )
            jobs.append(Job(messages, images, row, waiting.tell, scenes, kinds, options, extras.explain))
        return jobs

    async def _stream(
        self, waiting: _Answering, event: str | Result, writer: ReplyWriter, body: ChatRequest
    ) -> AsyncIterator[bytes]:
        """Server-sent events of an answer."""
        job, num_told = waiting.job, 0
        try:
            yield _as_event(writer.write_piece({"role": "assistant", "content": ""}))
            while True:
                choices = None
                if job.row.num_likeliest is not None:
                    choices = job.row.choices[num_told:]
                    num_told += len(choices)
                if isinstance(event, Result):
                    extras, reason = self._explain(job, event), job.row.finish_reason or "stop"
                    yield _as_event(writer.write_piece({}, choices, reason, extras))
                    break
                yield _as_event(writer.write_piece({"content": event}, choices))
                event = await waiting.wait()
            if body.stream_options is not None and body.stream_options.include_usage:
                yield _as_event(writer.write_usage_piece(job.row))
            yield b"data: [DONE]\n\n"
        except ErrorReply as error:
            yield _as_event(error.content)
        finally:
            waiting.leave()

    def _explain(self, job: Job, result: Result) -> dict[str, Any]:
        """What only this server tells about an answer: how sure it is, and where it was asked for, what it rests on."""
        confidence = job.row.confidence
        is_unsure = confidence is not None and confidence < self.engine.pipeline.answering.confidence_threshold
        told = {"confidence": _round(confidence), "is_unsure": is_unsure}
        if result.answer is None:
            return told
        parts = {"parts": [write_part(part) for part in result.answer.parts]} if job.is_drawing else {}
        if not job.is_explaining:
            return told | parts
        report = result.answer.to_dict()
        off = [] if job.kinds is None else [kind for kind in self.engine.kinds if kind not in job.kinds]
        return {
            **told,
            **parts,
            "scenes": [scene.to_dict() for scene in result.answer.scenes],
            "verbalization": result.answer.auxiliary_text,
            "missing": report.pop("missing") | dict.fromkeys(off, "switched off by the request"),
            **{name: value for name, value in report.items() if name not in _SAID_OTHERWISE},
        }


def _round(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, CONFIDENCE_DIGITS)


def check_shape(body: ChatRequest, settings: ServingSettings) -> None:
    """Check that a request's answers and beams are as many as may be, and go with what else it asks for.

    Raises:
        ValueError: They are not.
    """
    num_answers, num_beams = body.n or 1, body.moai.num_beams
    if max(num_answers, num_beams) > settings.max_rows:
        raise ValueError(
            f"expected at most {settings.max_rows} of `n` and `num_beams`, got {num_answers} and {num_beams}."
        )
    if num_answers > 1 and num_beams > 1:
        raise ValueError("expected `n` or `num_beams`, got both. Leave one out.")
    if num_answers > 1 and not body.temperature:
        raise ValueError("expected a `temperature` with `n`, got none: the answers would be one and the same.")
    if body.stream and max(num_answers, num_beams) > 1:
        raise ValueError("expected one answer without beams to stream, got `n` or `num_beams`. Leave `stream` out.")
    if num_beams > 1 and (body.temperature or body.logprobs or "choices" in body.moai.options):
        raise ValueError(
            "expected `num_beams` without `temperature`, `logprobs` and `choices`, got them together. Leave one out."
        )


_SAID_OTHERWISE = ("answer", "confidence", "is_unsure", "scene", "scenes", "auxiliary_text", "error")


def _as_event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
