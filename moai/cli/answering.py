"""``moai ask IMAGE... QUESTION``: answers, shown as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from verbalizers import Scene

from ..processing.image_loading import ImageLoadError, TooManyPixelsError, load_image
from .answer_settings import AnswerSettings
from .drawing import save_images
from .rendering import (
    footer_of,
    is_terminal,
    live_answer,
    note,
    print_json,
    print_panel,
    print_plain,
)

if TYPE_CHECKING:
    from ..pipeline.answers import Answer
    from ..pipeline.pipeline import Pipeline

__all__ = ["answer_images", "read_first_image", "report_unreadable"]


def answer_images(
    pipeline: Pipeline,
    images: Sequence[str],
    question: str,
    scenes: Sequence[Scene],
    settings: AnswerSettings,
    read: Mapping[str, Image.Image],
) -> int:
    """Ask one question about each image and show the answers as they come.

    Args:
        pipeline: The pipeline.
        images: Paths.
        question: The question.
        scenes: One per image, or none.
        settings: How.
        read: Images that have been read, by path.

    Returns:
        How many images got no answer; each was reported.
    """
    is_interactive = is_terminal() and not settings.is_json
    kwargs = settings.to_kwargs() | {"on_error": "skip", "batch_size": settings.batch_size}
    if is_interactive and settings.is_streaming is not False and settings.image_out is None:
        return _stream_images(pipeline, images, question, scenes, settings, kwargs, read)
    if settings.is_streaming and not settings.is_json and len(images) == 1:
        kwargs["stream"] = lambda piece: print(piece, end="", flush=True)
    num_failed, saved = 0, []
    sources = [read.get(image, image) for image in images]
    outputs = pipeline.answer_each(sources, question, list(scenes) or None, **kwargs)
    for index, (image, output) in enumerate(zip(images, outputs, strict=True)):
        if output.error is not None:
            num_failed += 1
        overlay, obstacle = _draw(settings, output.scene, index, sources[index])
        drawn = _save_images(output, settings, saved)
        if settings.is_json:
            row = {"image": image, "question": question, **output.to_dict()}
            row |= {"images": [str(path) for path in drawn]} if drawn else {}
            print_json(row | ({} if overlay is None else {"overlay": str(overlay)}))
        elif output.error is not None:
            note(f"error: {output.error}")
        elif is_interactive:
            print_panel(image, question, output.answer, _footer(output, overlay, settings))
        elif "stream" in kwargs:
            print(flush=True)
            note(_footer(output, overlay, settings))
        else:
            print_plain(output.answer if len(images) == 1 else f"{image}\t{' '.join(output.answer.split())}")
            note(_footer(output, overlay, settings, "" if len(images) == 1 else image))
        if drawn and not settings.is_json:
            print_plain("\n".join(str(path) for path in drawn))
        if obstacle is not None:
            raise obstacle
    return num_failed


def _save_images(output: Answer, settings: AnswerSettings, saved: list[Path]) -> list[Path]:
    """Save an answer's images behind those that were saved before."""
    if settings.image_out is None:
        return []
    drawn = save_images(output.parts, settings.image_out, len(saved) + 1)
    saved += drawn
    return drawn


def read_first_image(images: Sequence[str]) -> dict[str, Image.Image] | list[tuple[str, str]]:
    """Read images until one can be read, before a model is loaded.

    Args:
        images: Paths.

    Returns:
        That image by its path, for :func:`answer_images`; empty where it is for the checkpoint to say how large an
        image may be. Where none can be read, each path with the reason.
    """
    problems = []
    for path in images:
        try:
            image = load_image(path)
        except TooManyPixelsError:
            return {}
        except ImageLoadError as error:
            problems.append((path, str(error)))
        else:
            image.filename = path  # Pillow's own name for it: messages name the file
            return {path: image}
    return problems


def report_unreadable(problems: Sequence[tuple[str, str]], question: str, settings: AnswerSettings) -> None:
    """Report images that cannot be read as if each had been asked about."""
    for image, problem in problems:
        if settings.is_json:
            print_json({"image": image, "question": question, "answer": None, "error": problem})
        else:
            note(f"error: {problem}")


def _draw(
    settings: AnswerSettings, scene: Scene | None, index: int, image: str | Image.Image
) -> tuple[Path | None, Exception | None]:
    return (None, None) if settings.overlays is None else settings.overlays.draw(scene, index, image)


def _stream_images(
    pipeline: Pipeline,
    images: Sequence[str],
    question: str,
    scenes: Sequence[Scene],
    settings: AnswerSettings,
    kwargs: dict[str, Any],
    read: Mapping[str, Image.Image],
) -> int:
    """Stream the answers, one growing panel after the other."""
    num_failed = 0
    for index, image in enumerate(images):
        scene, source = scenes[index] if scenes else None, read.get(image, image)
        with live_answer(image, question) as panel:
            output = next(pipeline.answer_each(source, question, scene, stream=panel.add, **kwargs))
            overlay, obstacle = _draw(settings, output.scene, index, source)
            if output.error is None:
                panel.finish(output.answer, _footer(output, overlay, settings))
            else:
                num_failed += 1
                panel.finish("", f"error: {output.error}")
        if obstacle is not None:
            raise obstacle
    return num_failed


def _footer(output: Answer, overlay: Path | None, settings: AnswerSettings, name: str = "") -> str:
    return "" if settings.is_quiet else footer_of(output, overlay, name)
