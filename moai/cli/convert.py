"""``moai convert``: released checkpoints in this project's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import reporting_errors
from .options import DebugOption, JsonOption

__all__ = ["convert"]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Folder, file or hub name of an official MoAI, Emu, OpenFlamingo, Prismer, TCL or PSGTR.",
        ),
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
    text: Annotated[
        str | None, typer.Option("--text", help="Folder or hub name of OpenFlamingo's decoder, or Emu's tokenizer.")
    ] = None,
    vision: Annotated[
        str | None, typer.Option("--vision", help="OpenFlamingo: folder or hub name of its CLIP.")
    ] = None,
    label_encoder: Annotated[
        str | None, typer.Option("--label-encoder", help="Prismer: folder or hub name of a CLIP, to read label names.")
    ] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a released checkpoint into this project's format: moai convert BK-Lee/MoAI-7B moai-7b."""
    with reporting_errors(debug):
        from ..checkpoints.convert import PublishedVerbalizers
        from ..checkpoints.convert import convert as convert_checkpoint

        names = {"segmentation": segmentation, "detection": detection, "scene_graph": scene_graph}
        chosen = {name: value for name, value in (names | {"vocabulary": vocabulary}).items() if value is not None}
        own = {"text": text, "vision": vision, "label_encoder": label_encoder}
        report = convert_checkpoint(
            source,
            output,
            dtype=dtype,
            force=force,
            revision=revision,
            verbalizers=PublishedVerbalizers(**chosen) if chosen else None,
            **{name: value for name, value in own.items() if value is not None},
        )
        if json_output:
            from .rendering import print_json

            print_json(report.to_dict())
        else:
            print(report)
