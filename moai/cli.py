"""The command line: ``moai ask``, ``moai verbalize``, ``moai train``, ``moai convert``, ``moai info``.

Commands parse, call one function, print. Exit codes: 0 = all done (an answer without some of the verbalizers counts as
done and says so); 1 = failed; 2 = wrong usage; 3 = some of several pictures or questions were skipped, the others are
answered; 130 = interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_ablation import ablate
from .cli_training import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="moai",
    help="A vision-language model that reads what specialised computer vision sees.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_FAILED, EXIT_USAGE, EXIT_PARTIAL, EXIT_INTERRUPTED = 1, 2, 3, 130
DEFAULT_MODEL = "moai-nano"

ModelOption = Annotated[
    str, typer.Option("--model", "-m", envvar="MOAI_MODEL", help="Checkpoint folder, bundled name or hub name.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per result.")]
ShowOption = Annotated[bool, typer.Option("--show", help="Save a drawing of what was found and print its path.")]
OverlayOption = Annotated[
    Path | None, typer.Option("--overlay", help="Where --show saves (implies it); a folder for several pictures.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.0, help="Seconds per picture that a verbalizer has; 0 = no limit.")
]
VerbalizersOption = Annotated[
    str | None, typer.Option("--verbalizers", help="Names such as ocr,ocr/rapidocr instead of the checkpoint's; none.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' messages.")]


@contextmanager
def reporting_errors(is_debugging: bool) -> Iterator[None]:
    """Turn an exception into one message on standard error and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        raise typer.Exit(EXIT_FAILED) from None
    except typer.Exit:
        raise
    except (ValueError, ImportError, OSError) as error:
        _fail(str(error), is_debugging)
    except Exception as error:  # noqa: BLE001 - the last place where a message can replace a traceback
        _fail(f"unexpected {type(error).__name__}: {error}. --debug shows where.", is_debugging)


def _fail(message: str, is_debugging: bool, code: int = EXIT_FAILED) -> None:
    """Print an error and leave."""
    from rich.console import Console
    from rich.text import Text

    from .cli_rendering import printable

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if is_debugging:
        console.print_exception()
    console.print(Text.assemble(("error: ", "bold red"), printable(message)))
    raise typer.Exit(code)


def _exit_for(num_failed: int, num_all: int | None) -> None:
    if num_failed:
        raise typer.Exit(EXIT_FAILED if num_failed == num_all else EXIT_PARTIAL)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from . import __version__

        print(f"moai-vlm {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Entry point; see the commands."""


@app.command(no_args_is_help=True)
def ask(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar='PICTURE... "QUESTION"', help="Pictures, then one question.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    show: ShowOption = False,
    overlay: OverlayOption = None,
    json_output: JsonOption = False,
    scene: Annotated[
        list[Path] | None, typer.Option("--scene", help="Findings of your own (JSON); once per picture, in order.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", help='JSONL of {"image", "question", "id", "scene"} instead.')
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSONL for the answers; a killed run goes on.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start --out anew.")] = False,
    max_errors: Annotated[int, typer.Option("--max-errors", min=0, help="Bad lines to skip in --questions.")] = 10,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Word by word; default: terminal.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures per pass.")] = 8,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 128,
    num_beams: Annotated[int, typer.Option("--num-beams", min=1, help="Beam search; 1 = greedy.")] = 1,
    routing: Annotated[
        str | None, typer.Option("--routing", help="gated, uniform, random_expert, or weights such as 0.5,0.3,0.2.")
    ] = None,
    verbalizers: VerbalizersOption = None,
    timeout: TimeoutOption = 60.0,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16.")] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="nf4 decoder (bitsandbytes).")] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="int8 decoder (bitsandbytes).")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing beside answers and errors.")] = False,
    debug: DebugOption = False,
) -> None:
    """Ask about pictures: moai ask street.png "What is written on the sign?"."""
    from .cli_answering import answer_pictures
    from .cli_question_files import answer_file
    from .cli_settings import AnswerSettings, load_pipeline, read_scene

    with reporting_errors(debug):
        pictures, question = _split_arguments(arguments or [], questions, debug)
        settings = AnswerSettings(
            is_json=json_output,
            is_drawing=show or overlay is not None,
            overlay=overlay,
            is_streaming=False if num_beams > 1 else stream,
            timeout_s=timeout or None,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            routing=routing,
            is_quiet=quiet,
            generate={"num_beams": num_beams} if num_beams > 1 else {},
        )
        scenes = [read_scene(path) for path in scene or []]
        if scenes and len(scenes) != len(pictures):
            raise ValueError(f"expected one --scene per picture ({len(pictures)}), got {len(scenes)}.")
        choice: dict[str, Any] = {"device": device, "dtype": dtype}
        choice |= {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
        load = partial(load_pipeline, model, verbalizers, debug, quiet, **choice)
        if questions is not None:
            _exit_for(answer_file(load, model, questions, out, settings, max_errors, overwrite), None)
        else:
            _exit_for(answer_pictures(load(), pictures, question, scenes, settings), len(pictures))


def _split_arguments(arguments: list[str], questions: Path | None, is_debugging: bool) -> tuple[list[str], str]:
    """Pictures and the question; none where a file of questions is given."""
    if questions is not None:
        if arguments:
            _fail('expected either PICTURE... "QUESTION" or --questions FILE, got both.', False, EXIT_USAGE)
        return [], ""
    if len(arguments) < 2 or (arguments[-1].strip() and Path(arguments[-1]).is_file()):
        got = " ".join(repr(argument) for argument in arguments) or "nothing"
        _fail(f"expected one or more pictures and then a question in quotes, got {got}.", False, EXIT_USAGE)
    return arguments[:-1], arguments[-1]


@app.command(no_args_is_help=True)
def verbalize(
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE...|DATASET", help="Pictures; or a folder, .jsonl, LLaVA .json."),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Whose verbalizers look; default: the bundled one's; DATASET: the OCR."),
    ] = None,
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="Only these: segmentation, detection, scene_graph, ocr.")
    ] = None,
    verbalizers: VerbalizersOption = None,
    show: ShowOption = False,
    overlay: OverlayOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="DATASET: folder for Parquet shards; a killed run goes on.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="DATASET: local (processes) or ray (a cluster).")] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="DATASET: processes; default: one per GPU or two cores.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="DATASET: pictures per pass.")] = 8,
    image_folder: Annotated[
        Path | None, typer.Option("--image-folder", help="DATASET: where the paths in a JSON file begin.")
    ] = None,
    column: Annotated[str | None, typer.Option("--column", help="DATASET: column of a datasets folder.")] = None,
    retry_failures: Annotated[
        bool, typer.Option("--retry-failures", help="DATASET: look again where a verbalizer failed.")
    ] = False,
    json_output: JsonOption = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also print time and peak memory of each verbalizer.")
    ] = False,
    timeout: TimeoutOption = 60.0,
    debug: DebugOption = False,
) -> None:
    """Print what computer vision finds in pictures, in words, or keep it for a whole data set (--out)."""
    from .checkpoints.io.lookup import list_bundled_checkpoints
    from .cli_settings import AnswerSettings, silence_libraries
    from .cli_verbalizing import verbalize_pictures

    with reporting_errors(debug):
        from .cli_dataset import DatasetSettings, selects_dataset, verbalize_datasets

        if not debug:
            silence_libraries()
        chosen = [kind.strip() for kind in kinds.split(",")] if kinds else None
        limit = timeout or None
        if selects_dataset(pictures, out):
            if show or overlay is not None or profile:
                names = "--profile, --show and --overlay"
                raise ValueError(f"expected {names} with pictures only, got a data set. Leave them out.")
            options = (engine, workers, batch_size, image_folder, column, limit, retry_failures, json_output)
            _exit_for(*verbalize_datasets(pictures, model, verbalizers, chosen, DatasetSettings(out, *options)))
            return
        if model is None and verbalizers is None and DEFAULT_MODEL in list_bundled_checkpoints():
            model = DEFAULT_MODEL  # as `moai ask` looks
        settings = AnswerSettings(json_output, show or overlay is not None, overlay, timeout_s=limit)
        _exit_for(verbalize_pictures(pictures, model, verbalizers, chosen, settings, profile), len(pictures))


@app.command(no_args_is_help=True)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder or hub name of an official MoAI, or file of a PSGTR.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, float16, bfloat16; default: as it is.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")] = None,
    segmentation: Annotated[
        str | None, typer.Option("--segmentation", help="Folder or hub name; default: the published segmenter.")
    ] = None,
    detection: Annotated[
        str | None, typer.Option("--detection", help="Folder or hub name; default: the published OWLv2.")
    ] = None,
    scene_graph: Annotated[
        str | None, typer.Option("--scene-graph", help="Folder, hub name or published file of a PSGTR.")
    ] = None,
    vocabulary: Annotated[
        str | None, typer.Option("--vocabulary", help="What the detector looks for: a text file, or lvis+imagenet.")
    ] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a released checkpoint into this project's format: moai convert BK-Lee/MoAI-7B moai-7b."""
    with reporting_errors(debug):
        from .checkpoints.convert import PublishedVerbalizers
        from .checkpoints.convert import convert as convert_checkpoint

        names = {"segmentation": segmentation, "detection": detection, "scene_graph": scene_graph}
        chosen = {name: value for name, value in (names | {"vocabulary": vocabulary}).items() if value is not None}
        report = convert_checkpoint(
            source,
            output,
            dtype=dtype,
            force=force,
            revision=revision,
            verbalizers=PublishedVerbalizers(**chosen) if chosen else None,
        )
        if json_output:
            from .cli_rendering import print_json

            print_json(report.to_dict())
        else:
            print(report)


@app.command()
def info(json_output: JsonOption = False, debug: DebugOption = False) -> None:
    """Print versions, verbalizers, optional packages and bundled checkpoints."""
    with reporting_errors(debug):
        from .cli_info import collect_info, print_info

        print_info(collect_info(), json_output)


app.command(no_args_is_help=True)(train)
app.command(no_args_is_help=True)(ablate)

if __name__ == "__main__":
    app()
