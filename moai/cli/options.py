"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "moai-nano"

ModelOption = Annotated[
    str, typer.Option("--model", "-m", envvar="MOAI_MODEL", help="Checkpoint folder, bundled name or hub name.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per result.")]
ShowOption = Annotated[bool, typer.Option("--show", help="Save a drawing of what was found and print its path.")]
OverlayOption = Annotated[
    Path | None, typer.Option("--overlay", help="Where --show saves (implies it); a folder for several images.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.0, help="Seconds per image that a verbalizer has; 0 = no limit.")
]
VerbalizersOption = Annotated[
    str | None,
    typer.Option(
        "--verbalizers",
        help="Only these: ocr,detection (the checkpoint's own), ocr/paddleocr, published, moai-nano (its four), none.",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' messages.")]
