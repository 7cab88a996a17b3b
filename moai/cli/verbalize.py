"""``moai verbalize``: what computer vision finds in images, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..bundled import find_bundled
from .errors import exit_for, reporting_errors
from .options import DebugOption, JsonOption, OverlayOption, ShowOption, TimeoutOption, VerbalizersOption

__all__ = ["verbalize"]


def verbalize(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...|DATASET", help="Images; or a folder, .jsonl, LLaVA .json."),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", envvar="MOAI_MODEL", help="Whose verbalizers look; default: the bundled one's."),
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
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="DATASET: images per pass.")] = 8,
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
    """Print what computer vision finds in images, in words, or keep it for a whole data set (--out)."""
    from .answer_settings import silence_libraries
    from .overlays import Overlays
    from .verbalizing import verbalize_images

    with reporting_errors(debug):
        from .dataset import DatasetSettings, selects_dataset, verbalize_datasets

        if not debug:
            silence_libraries()
        images = [str(find_bundled("examples", image) or image) for image in images]
        chosen = [kind.strip() for kind in kinds.split(",")] if kinds else None
        limit = timeout or None
        if selects_dataset(images, out):
            if show or overlay is not None or profile:
                names = "--profile, --show and --overlay"
                raise ValueError(f"expected {names} with images only, got a data set. Leave them out.")
            options = (engine, workers, batch_size, image_folder, column, limit, retry_failures, json_output)
            exit_for(*verbalize_datasets(images, model, verbalizers, chosen, DatasetSettings(out, *options)))
            return
        overlays = Overlays(images, overlay) if show or overlay is not None else None
        num_failed = verbalize_images(images, model, verbalizers, chosen, limit, overlays, json_output, profile)
        exit_for(num_failed, len(images))
