"""Objects from command-line options: settings of an answer, the pipeline, scene files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verbalizers import Scene

from ..checkpoints.io.lookup import find_checkpoint
from .rendering import note

if TYPE_CHECKING:
    from ..pipeline.pipeline_moai import MoAIPipeline

__all__ = ["AnswerSettings", "load_pipeline", "parse_routing", "parse_verbalizers", "read_scene", "silence_libraries"]


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made and shown; the options of ``moai ask``.

    Attributes:
        is_json: One JSON object per answer on standard output.
        is_drawing: Save an overlay of each image.
        overlay: Where; None = the working directory.
        is_streaming: Show pieces as they come; None = on a terminal.
        timeout_s: Seconds per image for a verbalizer.
        batch_size: Images per pass.
        max_new_tokens: Longest answer.
        routing: None, a mode's name, or ``"0.5,0.3,0.2"``.
        is_quiet: Say nothing beside answers and errors.
        generate: Further arguments of ``generate``.
    """

    is_json: bool = False
    is_drawing: bool = False
    overlay: Path | None = None
    is_streaming: bool | None = None
    timeout_s: float | None = None
    batch_size: int = 8
    max_new_tokens: int = 128
    routing: str | None = None
    is_quiet: bool = False
    generate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parse_routing(self.routing)  # wrong weights are told before anything is loaded

    def to_kwargs(self) -> dict[str, Any]:
        """Arguments of :meth:`MoAIPipeline.answer_each`."""
        return {
            "timeout_s": self.timeout_s,
            "max_new_tokens": self.max_new_tokens,
            "routing": parse_routing(self.routing),
            "output_routing": self.is_json,
            "is_completing_scenes": True,
            **self.generate,
        }


def parse_routing(text: str | None) -> Any:
    """``"uniform"`` stays, ``"0.5,0.3,0.2"`` becomes weights (auxiliary, other modality, self).

    Raises:
        ValueError: Numbers, but not three.
    """
    if text is None or "," not in text:
        return text
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"expected --routing as a mode or three numbers a,b,c, got {text!r}.") from error
    if len(weights) != 3:
        raise ValueError(f"expected three weights (auxiliary, other modality, self) in --routing, got {len(weights)}.")
    return weights


def load_pipeline(
    model: str, verbalizers: str | None, is_debugging: bool, is_quiet: bool = False, **settings: Any
) -> MoAIPipeline:
    """Load a model for the command line: no progress bars or warnings between a user and the answer.

    A checkpoint that knows few images says so, once, on standard error.

    Args:
        model: Folder, bundled name or hub name.
        verbalizers: None = the checkpoint's; names separated by commas; "none".
        is_debugging: Let the libraries talk.
        is_quiet: Do not tell which images the checkpoint knows.
        **settings: To :meth:`MoAIPipeline.from_pretrained`.

    Raises:
        ValueError: No such checkpoint or verbalizer; known before torch is imported.
    """
    from ..checkpoints.io.verbalizer_settings import build_named_verbalizers

    folder, names = find_checkpoint(model), parse_verbalizers(verbalizers)
    chosen = None if names is None else build_named_verbalizers(names)
    from ..pipeline.pipeline_moai import MoAIPipeline

    if not is_debugging:
        silence_libraries()
    pipeline = MoAIPipeline.from_pretrained(folder, chosen, **settings)
    if (domain := pipeline.model.config.domain) and not is_quiet:
        note(f"{model} knows {domain} only: its answers about other images are guesses")
    return pipeline


def silence_libraries() -> None:
    """Switch off the libraries' log lines and progress bars: results say themselves what is missing.

    What is left out of an image's text, and no result tells, is still said.
    """
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    from verbalizers.core.words import LeftOutWarning

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("verbalizers", "bitsandbytes"):  # the latter reports each fast path that it does without
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=LeftOutWarning)
    warnings.showwarning = lambda message, *_, **__: note(str(message))


def parse_verbalizers(names: str | None) -> list[str] | None:
    """``"ocr,detection/owlv2"`` as a list; "none" is an empty one."""
    if names is None:
        return None
    return [] if names.strip().lower() == "none" else [name.strip() for name in names.split(",") if name.strip()]


def read_scene(source: str | Path | Mapping[str, Any]) -> Scene:
    """Read findings: a scene's dict form, or an object that holds one under ``scene`` (as
    ``moai verbalize --json`` writes).

    Raises:
        ValueError: The file cannot be read or does not hold a scene; the message names it.
    """
    name = "the given object" if isinstance(source, Mapping) else str(source)
    try:
        data = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
        if isinstance(data, Mapping) and isinstance(data.get("scene"), Mapping):
            data = data["scene"]
        if not isinstance(data, Mapping):
            raise ValueError(f"expected a JSON object, got a {type(data).__name__}")
        return Scene.from_dict(data)
    except OSError as error:
        raise ValueError(f"expected a scene file, got {name!r} ({error.strerror}). Check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{name} is no scene: {error}. Expected what Scene.to_dict() or `moai verbalize --json` writes."
        ) from error
