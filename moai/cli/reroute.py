"""``moai reroute MODEL TEST``: whether questions answered before say which routing to take."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

from .errors import reporting_errors
from .options import DebugOption, TimeoutOption, VerbalizersOption

__all__ = ["reroute"]


def reroute(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or name of a MoAI.")],
    test: Annotated[str, typer.Argument(metavar="TEST", help="scenes, a file of questions, or a YAML of settings.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the test: per_kind=400.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results; default: runs/reroute/MODEL-TEST.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Questions of the references, as TEST; default: Scenes' validation split."),
    ] = None,
    references: Annotated[
        Path | None, typer.Option("--references", help="A references.safetensors of another run, instead.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Gradient steps per question; 0 = none.")] = 5,
    oracle: Annotated[
        bool, typer.Option("--oracle/--no-oracle", help="Answer under every routing, not only under chosen ones.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the shuffled neighbours.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions per pass.")] = 32,
    verbalizers: VerbalizersOption = None,
    timeout: TimeoutOption = 60.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start --out anew.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print results.json instead of tables.")] = False,
    debug: DebugOption = False,
) -> None:
    """Re-route at test time (R2-T2): moai reroute moai-nano scenes per_kind=400.

    Scores the routings on questions with known answers (OUT/references), then answers TEST by the gates, by each
    routing, and by what the nearest references say. The same command again goes on after a kill. With the references
    answers are given by: moai ask IMAGE QUESTION --option reroute=OUT/references/references.safetensors
    """
    with reporting_errors(debug):
        from ..checkpoints.io.adapter_files import read_config
        from ..checkpoints.io.lookup import find_checkpoint
        from .answer_settings import AnswerSettings, describe_deciding_settings, load_pipeline, silence_libraries
        from .rendering import note, print_json, progress_bar

        folder = find_checkpoint(model)
        if not debug:
            silence_libraries()
        if read_config(folder).get("model_type") != "moai":
            raise ValueError(f"expected a MoAI, which has gates to route by, got {model}, which has none.")
        if source is not None and references is not None:
            raise ValueError("expected --from or --references, got both. Leave one out.")
        from ..evaluation.loading import load_test
        from ..evaluation.question_settings import FileTest, load_test_settings
        from ..evaluation.rerouting import ReroutingRun, build_references, describe_rerouting, run_rerouting

        words = list(overrides or [])
        asked = load_test(load_test_settings(test, words))
        if source is None and references is None and isinstance(asked.settings, FileTest):
            raise ValueError("expected references for a file of questions: name others with answers by --from FILE.")
        known = None
        if references is None:
            known = load_test(load_test_settings(source or test, words if source else [*words, "split=validation"]))
            if not {str(q.identity) for q in known.questions}.isdisjoint(str(q.identity) for q in asked.questions):
                raise ValueError("expected references about other images than the test's, got some of its own.")
        is_looking = "live" in {each.settings.source for each in (asked, known) if each is not None}
        chosen = verbalizers if is_looking else "none"
        choice = {"device": device, "dtype": dtype, "load_in_4bit": False, "load_in_8bit": False}
        settings = AnswerSettings(timeout_s=timeout or None)
        deciding = describe_deciding_settings(model, chosen, settings, choice)
        for name in ("max_new_tokens", "json", "options", "num_beams", *(() if is_looking else ("timeout",))):
            del deciding[name]
        run = ReroutingRun(
            out or Path("runs", "reroute", f"{Path(model).name}-{Path(test).stem}"),
            steps, batch_size, timeout or None, seed, oracle, overwrite,
        )  # fmt: skip
        load = cache(partial(load_pipeline, model, chosen, debug, **choice))
        if known is not None:
            with progress_bar("references", len(known.questions)) as show:
                references = build_references(load, known, run, deciding, show)
        with progress_bar("answering", len(asked.questions)) as show:
            content = run_rerouting(load, model, asked, references, run, deciding, show)
        if json_output:
            print_json(content)
            return
        print(describe_rerouting(content))
        note(f"results.json: {run.out}; references: {references}")
