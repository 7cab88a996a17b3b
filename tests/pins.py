"""What must not change when files move: weights' names, commands and their options, public names, the cache's manifest.

    python tests/pins.py    # writes tests/data/pins/*.json anew, after a change that is meant; the diff shows it

tests/test_pins.py compares. Options are listed from the parsers, not copied from printed help: how help is laid out
differs between releases of Python, click and rich.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

REPO_ROOT = Path(__file__).resolve().parent.parent
DATA_FOLDER = REPO_ROOT / "tests" / "data"
PINS_FOLDER = DATA_FOLDER / "pins"
PACKAGES = ("moai", "verbalizers", "compressor", "mixer")


def read_pin(name: str) -> Any:
    """The content of ``tests/data/pins/NAME.json``."""
    return json.loads((PINS_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------------- weights


def describe_tensors(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Names with ``#`` for their numbers -> dtype, shape, and where: ``float32 (64, 64) at 0, 1``."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        what = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        places[re.sub(r"\d+", "#", name), what].append(".".join(re.findall(r"\d+", name)))
    found: dict[str, list[str]] = defaultdict(list)
    for (name, what), numbers in sorted(places.items()):
        found[name].append(f"{what} at {', '.join(sorted(numbers))}" if any(numbers) else what)
    return {name: "; ".join(lines) for name, lines in found.items()}


def list_tiny_models() -> dict[str, dict[str, Any]]:
    """Arguments of ``build_tiny_model`` by name: all families, with and without partial LoRA, and the release's
    compressor.
    """
    from builders import FAMILIES

    models = {f"{family} plora_rank={n}": {"family": family, "plora_rank": n} for family in FAMILIES for n in (0, 4)}
    return models | {"llama perceiver": {"family": "llama", "compressor": {"architecture": "perceiver"}}}


def describe_checkpoint(folder: Path) -> dict[str, str]:
    """The tensors in a checkpoint's file."""
    from safetensors.torch import load_file

    return describe_tensors(load_file(folder / "model.safetensors"))


def list_checkpoints() -> list[str]:
    """Bundled checkpoints, as paths from the repository's top."""
    files = sorted((REPO_ROOT / "checkpoints").rglob("model.safetensors"))
    return [file.parent.relative_to(REPO_ROOT).as_posix() for file in files]


def collect_state_dicts() -> dict[str, dict[str, str]]:
    """Of tiny models of all decoder families, with and without partial LoRA, and of the bundled checkpoints."""
    from builders import build_tiny_model

    models = list_tiny_models().items()
    tiny = {name: describe_tensors(build_tiny_model(**options).state_dict()) for name, options in models}
    return tiny | {name: describe_checkpoint(REPO_ROOT / name) for name in list_checkpoints()}


# ---------------------------------------------------------------------- commands


class _ParserFoundError(Exception):
    """Carries a parser out of a ``main`` before it reads anything."""


def list_command_modules() -> list[str]:
    """What ``python -m`` runs besides ``moai``, which stands for its sub-commands."""
    folders = ("moai", "benchmarks", "recipes")
    files = [file for folder in folders for file in sorted((REPO_ROOT / folder).rglob("*.py"))]
    return [
        _module_name(file).removesuffix(".__main__")
        for file in files
        if '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8")
        and file.name != "cli.py"
        and _module_name(file) != "moai.__main__"  # the command `moai` itself
    ]


def collect_commands() -> dict[str, list[str]]:
    """Command -> what it is for, then one line per argument and option with its default."""
    return describe_moai_commands() | {f"python -m {name}": describe_module(name) for name in list_command_modules()}


def describe_moai_commands() -> dict[str, list[str]]:
    """The sub-commands of ``moai``."""
    import typer

    from moai.cli import app

    group = typer.main.get_command(app)
    commands = {f"moai {name}": command for name, command in sorted(group.commands.items())}
    return {name: _describe_typer(command) for name, command in {"moai": group, **commands}.items()}


def _describe_typer(command: Any) -> list[str]:
    lines = [inspect.cleandoc(command.help or "")]
    for parameter in command.params:
        if parameter.name in ("install_completion", "show_completion"):  # typer's own
            continue
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        words = [names, *(["flag"] if getattr(parameter, "is_flag", False) else [])]
        words += ["required"] if parameter.required else _describe_default(parameter.default)
        words += [f"env {parameter.envvar}"] if parameter.envvar else []
        words += ["several"] if parameter.nargs == -1 or getattr(parameter, "multiple", False) else []
        # An argument's help is kept by new releases of typer only.
        told = "" if parameter.param_type_name == "argument" else parameter.help or ""
        lines.append(f"{' | '.join(words)}: {told}")
    return lines


def describe_module(name: str) -> list[str]:
    """The command line of ``python -m NAME``, asked of its ``main``."""

    def leave(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _ParserFoundError(parser)

    is_package = (REPO_ROOT / name.replace(".", "/") / "__main__.py").is_file()
    main = importlib.import_module(f"{name}.__main__" if is_package else name).main
    # `--threads` defaults to this machine's number.
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", leave),
        mock.patch("torch.get_num_threads", return_value=1),
    ):
        try:
            main()
        except _ParserFoundError as found:
            return _describe_argparse(found.args[0])
    raise AssertionError(f"{name}.main reads no arguments")


def _describe_argparse(parser: argparse.ArgumentParser) -> list[str]:
    lines = [inspect.cleandoc(parser.description or "")]
    for action in parser._actions:
        if action.dest == "help":
            continue
        words = [", ".join(action.option_strings) or action.dest, type(action).__name__.strip("_")]
        words += ["required"] if action.required else _describe_default(action.default)
        words += [f"one of {list(action.choices)}"] if action.choices else []
        words += [f"nargs {action.nargs}"] if action.nargs is not None else []
        lines.append(f"{' | '.join(words)}: {action.help or ''}")
    return lines


def _describe_default(value: Any) -> list[str]:
    if isinstance(value, Path):
        value = str(value)
    is_plain = isinstance(value, str | int | float | bool | list | tuple)
    return [f"default {value!r}".replace(str(REPO_ROOT), "REPOSITORY")] if is_plain else []


# ---------------------------------------------------------------------- names


def collect_names() -> dict[str, list[str]]:
    """Package -> its ``__all__``."""
    return {package: sorted(importlib.import_module(package).__all__) for package in PACKAGES}


def _module_name(path: Path) -> str:
    parts = path.relative_to(REPO_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# ---------------------------------------------------------------------- the cache


def collect_manifest() -> dict[str, Any]:
    """The ``verbalization.json`` of a cache that three verbalizers fill."""
    from cache_verbalizers import MeanColour, TwoHalves, load_small
    from PIL import Image

    from verbalizers import build_verbalizer
    from verbalizers.store.building import build_cache
    from verbalizers.store.sources import read_sources

    looking = [TwoHalves(), MeanColour(), build_verbalizer("scene_graph", "geometric")]
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.png")
        Image.new("RGB", (8, 6)).save(image)
        cache = build_cache(read_sources(image), looking, Path(folder, "cache"), load_small, num_workers=0).folder
        return json.loads((cache / "verbalization.json").read_text(encoding="utf-8"))


COLLECTORS = {
    "state_dicts": collect_state_dicts,
    "commands": collect_commands,
    "public_names": collect_names,
    "cache_manifest": collect_manifest,
}


def main() -> None:
    """Write all pins anew."""
    PINS_FOLDER.mkdir(parents=True, exist_ok=True)
    for name, collect in COLLECTORS.items():
        text = json.dumps(collect(), indent=1, ensure_ascii=False)
        (PINS_FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{name}: {len(text)} bytes")


if __name__ == "__main__":
    sys.path[:0] = [str(REPO_ROOT), str(REPO_ROOT / "tests")]
    main()
