"""``moai ask``: questions about images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bundled import find_bundled
from .errors import EXIT_FAILED, EXIT_USAGE, exit_for, fail, reporting_errors
from .options import (
    DEFAULT_MODEL,
    DebugOption,
    JsonOption,
    ModelOption,
    OverlayOption,
    ShowOption,
    TimeoutOption,
    VerbalizersOption,
)

__all__ = ["ask"]


def ask(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar='IMAGE... "QUESTION"', help="Images, then one question.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    show: ShowOption = False,
    overlay: OverlayOption = None,
    json_output: JsonOption = False,
    scene: Annotated[
        list[Path] | None, typer.Option("--scene", help="Findings of your own (JSON); once per image, in order.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", help='JSONL of {"image", "question", "id", "scene"} instead.')
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSONL for the answers; a killed run goes on.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start --out anew.")] = False,
    image_out: Annotated[
        Path | None,
        typer.Option("--image-out", help="Draw (Emu): texts and images, in order, are the prompt; FILE to save."),
    ] = None,
    max_errors: Annotated[int, typer.Option("--max-errors", min=0, help="Bad lines to skip in --questions.")] = 10,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Word by word; default: terminal.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per pass.")] = 8,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 128,
    num_beams: Annotated[int, typer.Option("--num-beams", min=1, help="Beam search; 1 = greedy.")] = 1,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="NAME=VALUE", help="The model's own; MoAI: routing=uniform, or weights as 0.5,0.3,0.2."
        ),
    ] = None,
    shots: Annotated[
        Path | None,
        typer.Option("--shots", help='JSONL of {"image", "question", "answer"}: demonstrations before each question.'),
    ] = None,
    verbalizers: VerbalizersOption = None,
    timeout: TimeoutOption = 60.0,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16.")] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="nf4 decoder (bitsandbytes).")] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="int8 decoder (bitsandbytes).")] = False,
    quantize_all: Annotated[
        bool, typer.Option("--quantize-all", help="With 4 or 8 bits: MoAI's vision tower, compressor and head too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing beside answers and errors.")] = False,
    debug: DebugOption = False,
) -> None:
    """Ask about images: moai ask street.png "What is written on the sign?"."""
    with reporting_errors(debug):
        from ..checkpoints.io.lookup import find_checkpoint
        from ..data.scene_files import read_scene
        from .answer_settings import AnswerSettings, describe_deciding_settings, load_pipeline, parse_options
        from .answering import answer_images, read_first_image, report_unreadable
        from .drawing import draw_image, read_parts
        from .overlays import Overlays, check_image_out
        from .question_files import answer_file
        from .rendering import print_json

        given = {"--out": out, "--overwrite": overwrite or None}
        if questions is not None:
            given = {"--show": show or None, "--overlay": overlay, "--scene": scene, "--stream": stream}
            given["--image-out"] = image_out
        if wrong := [name for name, value in given.items() if value is not None]:
            wanted = 'IMAGE... "QUESTION"' if questions is not None else "--questions"
            fail(f"expected {', '.join(wrong)} with {wanted} only. Leave them out.", False, EXIT_USAGE)
        choice: dict[str, Any] = {"device": device, "dtype": dtype}
        choice |= {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
        if quantize_all:
            if not load_in_4bit and not load_in_8bit:
                raise ValueError("expected --load-in-4bit or --load-in-8bit beside --quantize-all, got neither.")
            choice["quantize_all"] = True
        model_options = parse_options([*(option or []), *([] if shots is None else [f"shots={shots}"])])
        has_images = model_options.get("images", "0") != "0"  # in answers, beside their text
        if has_images and image_out is None:
            fail("expected --image-out FILE with --option images=N, got none.", False, EXIT_USAGE)
        if image_out is not None and not has_images:
            given = {"--show": show or None, "--overlay": overlay, "--scene": scene, "--stream": stream}
            given |= {"--verbalizers": verbalizers, "--num-beams": None if num_beams == 1 else num_beams}
            if wrong := [name for name, value in given.items() if value is not None]:
                fail(f"expected --image-out without {', '.join(wrong)}: it draws. Leave them out.", False, EXIT_USAGE)
            parts = read_parts(arguments or [])
            check_image_out(image_out, [part for part in parts if isinstance(part, Path)])
            pipeline = load_pipeline(model, "none", debug, model_options, **choice)
            row = draw_image(pipeline, parts, image_out, model_options)
            print_json(row) if json_output else print(row["image"])
            return
        images, question = _split_arguments(arguments or [], questions, debug)
        settings = AnswerSettings(
            is_json=json_output,
            overlays=Overlays(images, overlay) if show or overlay is not None else None,
            is_streaming=False if num_beams > 1 else stream,
            timeout_s=timeout or None,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            options=model_options,
            image_out=image_out,
            is_quiet=quiet,
            generate={"num_beams": num_beams} if num_beams > 1 else {},
        )
        scenes = [read_scene(path) for path in scene or []]
        if scenes and len(scenes) != len(images):
            raise ValueError(f"expected one --scene per image ({len(images)}), got {len(scenes)}.")
        if image_out is not None:
            check_image_out(image_out, [*images, *(scene or [])])
        if settings.overlays:
            settings.overlays.check(scene or [])
        load = partial(load_pipeline, model, verbalizers, debug, settings.options, **choice)
        if questions is not None:
            deciding = partial(describe_deciding_settings, model, verbalizers, settings, choice)
            exit_for(answer_file(load, model, questions, out, settings, deciding, max_errors, overwrite), None)
            return
        find_checkpoint(model)  # a wrong name is told at once
        read = read_first_image(images)
        if isinstance(read, list):
            report_unreadable(read, question, settings)
            raise typer.Exit(EXIT_FAILED)
        exit_for(answer_images(load(), images, question, scenes, settings, read), len(images))


def _split_arguments(arguments: list[str], questions: Path | None, is_debugging: bool) -> tuple[list[str], str]:
    """Images and the question; none where a file of questions is given."""
    if questions is not None:
        if arguments:
            fail('expected either IMAGE... "QUESTION" or --questions FILE, got both.', False, EXIT_USAGE)
        return [], ""
    if len(arguments) < 2 or (arguments[-1].strip() and Path(arguments[-1]).is_file()):
        got = " ".join(repr(argument) for argument in arguments) or "nothing"
        fail(f"expected one or more images and then a question in quotes, got {got}.", False, EXIT_USAGE)
    from verbalizers.core.valid_text import make_valid

    images = [str(find_bundled("examples", image) or image) for image in arguments[:-1]]
    return images, make_valid(arguments[-1])  # bytes that are no UTF-8 come as lone surrogates
