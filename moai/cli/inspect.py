"""``moai inspect IMAGE "QUESTION"``: one page about one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..bundled import find_bundled
from .errors import reporting_errors
from .options import DEFAULT_MODEL, DebugOption, ModelOption, TimeoutOption, VerbalizersOption

__all__ = ["inspect"]


def inspect(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image.")],
    question: Annotated[str, typer.Argument(metavar='"QUESTION"', help="The question.")],
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("inspection.html"),
    scene: Annotated[Path | None, typer.Option("--scene", help="Findings of your own (JSON).")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="The model's own; MoAI: routing=uniform, choices=yes,no."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 128,
    verbalizers: VerbalizersOption = None,
    timeout: TimeoutOption = 60.0,
    debug: DebugOption = False,
) -> None:
    """Look inside an answer: layers of what was found, verbalization, gates as heat maps, tokens' probabilities."""
    with reporting_errors(debug):
        from verbalizers.core.durable_files import atomic_file
        from verbalizers.core.valid_text import make_valid

        from ..data.scene_files import read_scene
        from ..processing.image_loading import load_image
        from .answer_settings import load_pipeline, parse_options
        from .rendering import note, print_plain

        if out.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"expected a page's name for --out, as inspection.html, got {str(out)!r}.")
        source = str(find_bundled("examples", image) or image)
        if out.exists() and Path(source).exists() and out.samefile(source):
            raise ValueError(f"expected another file for the page than the image {source!r}. Name another --out.")
        loaded, found = load_image(source), None if scene is None else read_scene(scene)
        options = parse_options(option or [])
        pipeline = load_pipeline(model, verbalizers, debug, options=options)
        from ..evaluation.inspecting import inspect_answer, write_inspection

        inspection = inspect_answer(
            pipeline,
            loaded,
            make_valid(question),
            found,
            options=options,
            timeout_s=timeout or None,
            max_new_tokens=max_new_tokens,
            is_completing_scenes=True,
        )
        with atomic_file(out) as temporary:
            temporary.write_text(make_valid(write_inspection(inspection, f"{model}: {Path(source).name}")), "utf-8")
        print_plain(inspection.answer.answer)
        note(f"the page: {out}")
