"""Objects from command-line options: settings of an answer, the pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verbalizers.core.verbalizer import fingerprint_checkpoint

from ..checkpoints.io.contents import hash_checkpoint
from ..checkpoints.io.lookup import find_checkpoint
from .overlays import Overlays
from .rendering import note

if TYPE_CHECKING:
    from ..pipeline.pipeline import Pipeline

__all__ = [
    "AnswerSettings",
    "describe_deciding_settings",
    "load_pipeline",
    "parse_options",
    "parse_verbalizers",
    "silence_libraries",
]


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made and shown; the options of ``moai ask``.

    Attributes:
        is_json: One JSON object per answer on standard output.
        overlays: Where each image's drawing goes; None = nothing is drawn.
        image_out: Where the first image of an answer is saved; None = answers are text.
        is_streaming: Show pieces as they come; None = on a terminal.
        timeout_s: Seconds per image for a verbalizer.
        batch_size: Images per pass.
        max_new_tokens: Longest answer.
        options: The model's own, by name, as they were written.
        is_quiet: Say nothing beside answers and errors.
        generate: Further arguments of ``generate``.
    """

    is_json: bool = False
    overlays: Overlays | None = None
    image_out: Path | None = None
    is_streaming: bool | None = None
    timeout_s: float | None = None
    batch_size: int = 8
    max_new_tokens: int = 128
    options: Mapping[str, str] = field(default_factory=dict)
    is_quiet: bool = False
    generate: Mapping[str, Any] = field(default_factory=dict)

    def to_kwargs(self) -> dict[str, Any]:
        """Arguments of :meth:`Pipeline.answer_each`."""
        return {
            "timeout_s": self.timeout_s,
            "max_new_tokens": self.max_new_tokens,
            "options": self.options,
            "is_reporting": self.is_json,
            "is_completing_scenes": True,
            **self.generate,
        }


def load_pipeline(
    model: str,
    verbalizers: str | None,
    is_debugging: bool,
    options: Mapping[str, str] | None = None,
    **settings: Any,
) -> Pipeline:
    """Load a model for the command line: no progress bars or warnings between a user and the answer.

    Args:
        model: Folder, bundled name or hub name.
        verbalizers: None = the checkpoint's; names separated by commas; "none".
        is_debugging: Let the libraries talk.
        options: Of the answers to come, which the model must have.
        **settings: To :meth:`Pipeline.from_pretrained`.

    Raises:
        ValueError: No such checkpoint or verbalizer, which is known before torch is imported; or a wrong option.
    """
    from ..checkpoints.io.verbalizer_settings import VerbalizerSettings, build_named_verbalizers

    folder, names = find_checkpoint(model), parse_verbalizers(verbalizers)
    chosen = None if names is None else build_named_verbalizers(names, VerbalizerSettings.load_pretrained(folder))
    if not is_debugging:
        silence_libraries()
    from ..checkpoints.io.adapter_files import read_config
    from ..models.registry import find_answering
    from ..pipeline.pipeline import Pipeline

    find_answering(folder, read_config(folder).get("model_type")).parse_options(options or {})
    return Pipeline.from_pretrained(folder, chosen, **settings)


def describe_deciding_settings(
    model: str, verbalizers: str | None, settings: AnswerSettings, choice: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything beside image, question and scene that decides an answer: what answers in one file have in common.

    The batch size does not count: samples are padded so that it changes nothing.

    Args:
        model: Folder, bundled name or hub name; counts by its files' content, a hub name by its commit.
        verbalizers: As for :func:`load_pipeline`; each counts with its settings and weights.
        settings: How answers are made.
        choice: ``device``, ``dtype`` and quantization; of the device its kind counts.

    Returns:
        JSON-able values by name.
    """
    from ..checkpoints.io.verbalizer_settings import VerbalizerSettings, build_named_verbalizers

    folder, names = find_checkpoint(model), parse_verbalizers(verbalizers)
    stored = VerbalizerSettings.load_pretrained(folder)
    built, absent = stored.build() if names is None else (build_named_verbalizers(names, stored), {})
    import torch  # only now: a wrong name is told at once

    device = torch.device(choice["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
    looking = dict.fromkeys(absent, "not available") | {v.kind: f"{v.backend} {v.fingerprint()}" for v in built}
    said = {name: value for name, value in stored.to_dict().items() if name != "verbalizers"}
    return {
        "model": _hash_model(folder),
        "verbalizers": looking,
        "words": said.pop("words"),
        **said,
        "max_new_tokens": settings.max_new_tokens,
        "options": {name: _name_content(value) for name, value in settings.options.items()},
        "num_beams": settings.generate.get("num_beams", 1),
        "timeout": settings.timeout_s,
        "json": settings.is_json,
        **choice,
        "device": device.type,
    }


def _name_content(option: str) -> str:
    """An option as it decides an answer: of a file its content."""
    return fingerprint_checkpoint(option) if os.path.isfile(option) else option


def _hash_model(folder: str) -> dict[str, str]:
    """Hashes of a checkpoint's files by name, those of an adapter's base included; the commit of a hub name."""
    from ..checkpoints.io.adapter_files import find_adapter_base

    if not Path(folder).is_dir():
        from transformers.utils import cached_file

        for name in ("config.json", "adapter_config.json"):
            if file := cached_file(folder, name, _raise_exceptions_for_missing_entries=False):
                return {"commit": Path(file).parent.name}
    hashes = hash_checkpoint(folder)
    generation = Path(folder) / "generation_config.json"
    if generation.is_file():
        hashes[generation.name] = fingerprint_checkpoint(generation)
    base = find_adapter_base(folder)
    if base is not None and Path(base.name) != Path(folder).absolute():  # a whole model may hold its adapter
        hashes |= {f"base {name}": value for name, value in _hash_model(base.name).items()}
    return {name: value[:16] for name, value in hashes.items()}


def silence_libraries() -> None:
    """Switch off the libraries' log lines and progress bars, here and in worker processes.

    Results say themselves what is missing; what is left out of an image's text, and no result tells, is still said.
    transformers reads the variables when it is imported: that may be never.
    """
    import logging
    import os
    import sys
    import warnings

    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    from verbalizers.core.words import LeftOutWarning

    for name in ("verbalizers", "bitsandbytes"):  # the latter reports each fast path that it does without
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=LeftOutWarning)
    warnings.filterwarnings("default", message=".* was cut to its first")  # the processor's, which knows no verbalizer
    warnings.showwarning = lambda message, *_, **__: note(str(message))


def parse_options(words: Sequence[str]) -> dict[str, str]:
    """``["routing=uniform"]`` as a mapping.

    Raises:
        ValueError: A word is no ``name=value``, or a name stands there twice.
    """
    options: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name or name in options:
            raise ValueError(f"expected --option NAME=VALUE, each name once, got {word!r}.")
        options[name] = value
    return options


def parse_verbalizers(names: str | None) -> list[str] | None:
    """``"ocr,detection/owlv2"`` as a list; "none" is an empty one."""
    if names is None:
        return None
    return [] if names.strip().lower() == "none" else [name.strip() for name in names.split(",") if name.strip()]
