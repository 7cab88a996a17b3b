"""``moai evaluate MODEL TEST``: a model measured on a test."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import EXIT_USAGE, fail, reporting_errors
from .options import DebugOption, TimeoutOption, VerbalizersOption

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Checkpoint folder or name.")] = None,
    test: Annotated[
        str | None, typer.Argument(metavar="TEST", help="scenes, a file of questions, or a YAML of settings.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the test: per_kind=100.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results; default: runs/evaluate/MODEL-TEST.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", help="Beside the model: words-in-prompt, image-only, commonest; may be repeated."),
    ] = None,
    mask_each: Annotated[
        bool,
        typer.Option("--mask-each", help="Also with each verbalizer silent, another image's scene, a black image."),
    ] = False,
    reader: Annotated[
        Path | None, typer.Option("--reader", help="Decoder for words-in-prompt; default: the model's own.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", help="Compare two results; runs nothing.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions per pass.")] = 32,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="The model's own, as in moai ask.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Demonstrations per question (the setting shots=N).")
    ] = None,
    num_beams: Annotated[int, typer.Option("--num-beams", min=1, help="Beam search; 1 = greedy.")] = 1,
    verbalizers: VerbalizersOption = None,
    timeout: TimeoutOption = 60.0,
    max_errors: Annotated[int, typer.Option("--max-errors", min=0, help="Rows of the file to leave out.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start --out anew.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16.")] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="nf4 decoder (bitsandbytes).")] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="int8 decoder (bitsandbytes).")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print results.json instead of tables.")] = False,
    debug: DebugOption = False,
) -> None:
    """Measure a model: moai evaluate moai-nano scenes per_kind=100.

    TEST settings are those of moai.evaluation.question_settings; of a TCL, which searches among captioned images,
    those of moai.evaluation.retrieval. The same command again goes on after a kill; --out holds results.json,
    samples.jsonl and report.html.
    """
    with reporting_errors(debug):
        if compare is not None:
            if model is not None:
                fail("expected either MODEL TEST or --compare A B, got both.", False, EXIT_USAGE)
            _compare(*compare, json_output)
            return
        if model is None or test is None:
            fail("expected MODEL and TEST, for example: moai evaluate moai-nano scenes", False, EXIT_USAGE)
        from ..checkpoints.io.contents import hash_checkpoint
        from ..checkpoints.io.lookup import find_checkpoint
        from ..checkpoints.io.verbalizer_settings import VerbalizerSettings
        from .answer_settings import (
            AnswerSettings,
            describe_deciding_settings,
            load_pipeline,
            parse_options,
            silence_libraries,
        )
        from .rendering import note, print_json, progress_bar

        folder = find_checkpoint(model)  # a wrong name is told at once
        if not debug:
            silence_libraries()
        from ..evaluation.retrieval import compares_texts

        if compares_texts(folder):
            given = {"--baseline": baseline, "--mask-each": mask_each, "--reader": reader, "--option": option}
            given |= {
                "--num-beams": num_beams > 1,
                "--dtype": dtype,
                "--verbalizers": verbalizers,
                "--max-errors": max_errors,
            }
            given |= {"--load-in-4bit": load_in_4bit, "--load-in-8bit": load_in_8bit}
            if strangers := [name for name, value in given.items() if value]:
                raise ValueError(
                    f"expected no {', '.join(strangers)} for {model}, which compares images and texts and answers "
                    "nothing. Leave it out."
                )
            _evaluate_retrieval(model, folder, test, overrides or [], out, batch_size, device, json_output)
            return
        from ..evaluation.conditions import BASELINES
        from ..evaluation.loading import load_test
        from ..evaluation.question_settings import load_test_settings
        from ..evaluation.running import EvaluationRun, describe_results, run_evaluation

        if unknown := sorted(set(baseline or ()) - set(BASELINES)):
            raise ValueError(f"expected --baseline among {', '.join(BASELINES)}, got {', '.join(unknown)}.")
        asked = load_test(
            load_test_settings(test, [*(overrides or []), *([] if shots is None else [f"shots={shots}"])])
        )
        for problem in asked.problems[: max_errors + 1]:
            note(f"left out: {problem}")
        if len(asked.problems) > max_errors:
            raise ValueError(
                f"{len(asked.problems)} rows of {test} cannot be asked, --max-errors allows {max_errors}. Mend them or "
                "allow more."
            )
        is_looking = asked.settings.source == "live"
        chosen = verbalizers if is_looking else "none"
        settings = AnswerSettings(
            timeout_s=timeout or None,
            options=parse_options(option or []),
            generate={"num_beams": num_beams} if num_beams > 1 else {},
        )
        choice: dict[str, Any] = {"device": device, "dtype": dtype}
        choice |= {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
        deciding = describe_deciding_settings(model, chosen, settings, choice)
        for name in ("max_new_tokens", "json", *(() if is_looking else ("timeout",))):
            del deciding[name]  # of `moai ask`; the test's settings name their own
        run = EvaluationRun(
            out or Path("runs", "evaluate", f"{Path(model).name}-{Path(test).stem}"),
            tuple(baseline or ()),
            mask_each,
            batch_size,
            settings.options,
            timeout or None,
            settings.generate,
            overwrite,
        )
        with progress_bar("answering", len(asked.questions)) as show:
            content = run_evaluation(
                partial(load_pipeline, model, chosen, debug, options=settings.options, **choice),
                model,
                VerbalizerSettings.load_pretrained(folder).kinds,
                asked,
                run,
                deciding,
                None if reader is None else partial(_load_reader, reader),
                show,
                None if reader is None else hash_checkpoint(reader),
            )
        if json_output:
            print_json(content)
            return
        print(describe_results(content))
        note(f"results.json, samples.jsonl and report.html: {run.out}")


def _evaluate_retrieval(
    model: str,
    folder: str | Path,
    test: str,
    overrides: list[str],
    out: Path | None,
    batch_size: int,
    device: str | None,
    is_json: bool,
) -> None:
    from ..evaluation.retrieval import evaluate_retrieval, format_retrieval
    from .rendering import note, print_json

    out = out or Path("runs", "evaluate", f"{Path(model).name}-{Path(test).stem}")
    results = evaluate_retrieval(folder, test, overrides, out, batch_size, device)
    if is_json:
        print_json(results)
        return
    print(format_retrieval(results))
    note(f"results.json: {out}")


def _load_reader(folder: Path) -> Any:
    from ..models.registry import TEXT_READER, load_named

    return load_named(TEXT_READER).from_folder(folder)


def _compare(first: Path, second: Path, is_json: bool) -> None:
    from ..evaluation.result_folder import read_rows
    from ..evaluation.summary import compare_rows, format_comparison

    comparison = compare_rows(read_rows(first), read_rows(second))
    names = (first.name, second.name) if first.name != second.name else ("first", "second")
    print(json.dumps(comparison, indent=1) if is_json else format_comparison(comparison, names))
