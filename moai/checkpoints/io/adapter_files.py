"""Adapter folders: which base model they name, and writing them so that both can be moved together.

An adapter folder holds PEFT's files, and ``config.json`` of the base model: transformers' Auto classes then hand the
folder itself to MoAI's ``from_pretrained``, which finds the base relative to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig
from transformers.utils import cached_file

from .lookup import ADAPTER_CONFIG
from .travelling_names import name_of, resolve_name

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's own name of what it wraps
_OTHER_BASE = "Write the right one as `base_model_name_or_path` in adapter_config.json."


@dataclass(frozen=True)
class AdapterBase:
    """What an adapter was made for.

    Attributes:
        name: Folder or hub name of the base model.
        revision: Of a hub name.
    """

    name: str
    revision: str | None = None


def is_adapter_folder(path: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(path).expanduser() / ADAPTER_CONFIG).is_file()


def find_adapter_base(name_or_path: str | Path | None, revision: str | None = None) -> AdapterBase | None:
    """Find the base model that an adapter names.

    Args:
        name_or_path: Folder or hub name.
        revision: Of a hub name.

    Returns:
        None where it is no adapter.

    Raises:
        ValueError: The adapter names no base model, or one that is not there; the message names the file.
    """
    if name_or_path is None:
        return None
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        file = folder / ADAPTER_CONFIG if is_adapter_folder(folder) else None
        if file is not None and any(folder.glob("model*.safetensors")):  # whole, with an adapter inside
            return AdapterBase(str(folder.absolute()))
    else:
        silent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(
            str(name_or_path), ADAPTER_CONFIG, revision=revision, _raise_exceptions_for_gated_repo=False, **silent
        )
        file = None if found is None else Path(found)
    if file is None:
        return None
    return _read_base(file)


def has_tuner(name_or_path: str, revision: str | None = None) -> bool:
    """Whether an adapter changes weights of its base; a learned prompt does not.

    Args:
        name_or_path: Folder or hub name of an adapter.
        revision: Of a hub name.
    """
    from peft import PeftConfig

    return not PeftConfig.from_pretrained(name_or_path, revision=revision or "main").is_prompt_learning


def read_config(name_or_path: str, revision: str | None = None) -> dict[str, Any]:
    """Content of a checkpoint's ``config.json``; of an adapter's base model where the adapter has none.

    Args:
        name_or_path: Folder or hub name.
        revision: Of a hub name.

    Returns:
        An empty mapping where there is no such file, or none that can be read: transformers says what is wrong with it.
    """
    silent = {"_raise_exceptions_for_missing_entries": False}
    file = cached_file(name_or_path, "config.json", revision=revision, **silent)
    if file is None and (base := find_adapter_base(name_or_path, revision)) is not None:
        file = cached_file(base.name, "config.json", revision=base.revision, **silent)
    try:
        content = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError:  # JSON and encoding errors
        return {}
    return content if isinstance(content, dict) else {}


def _read_base(file: Path) -> AdapterBase:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        name = content["base_model_name_or_path"]
        base = AdapterBase(resolve_name(name, file.parent), content.get("revision"))
    except (OSError, ValueError, KeyError, TypeError) as error:  # JSON and encoding errors are ValueErrors
        raise ValueError(
            f"expected `base_model_name_or_path` in {file}, got none that can be read ({type(error).__name__}: "
            f"{error}). Write the base model's path, relative to {file.parent}, or its hub name."
        ) from error
    if os.path.isabs(base.name) and not (Path(base.name) / "config.json").is_file():
        raise ValueError(
            f"expected the base model of the adapter {file.parent} in {base.name}, got no checkpoint there. Put it "
            f"there, or write its place, relative to the adapter, as `base_model_name_or_path` in {file}."
        )
    return base


def describe_base(base: AdapterBase, folder: Path) -> dict[str, str | None]:
    """Fields of an adapter's configuration that name its base model for a folder, see :func:`.name_of`."""
    name, commit = name_of(base.name, folder)
    return {"base_model_name_or_path": name, "revision": commit or base.revision}


def check_adapter_fits(model: Any, adapter: str | Path, base: AdapterBase, revision: str | None) -> None:
    """Check that every weight of an adapter has found its place in the model, and that none is lacking.

    Args:
        model: The base model with the adapter in it.
        adapter: Folder or hub name that it was loaded from.
        base: What it names.
        revision: Of a hub name.

    Raises:
        ValueError: Another model is meant; the message names both.
    """
    file = cached_file(str(adapter), ADAPTER_WEIGHTS, revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return
    with safe_open(file, framework="pt") as weights:
        stored = set(weights.keys())
    (name,) = model.peft_config
    places = {f"{PREFIX}{key}" for key in _adapter_state(model, name)}
    if odd := sorted(stored ^ places):
        raise ValueError(
            f"expected the base model that the adapter {adapter} was made for, got {base.name}: {len(odd)} weights "
            f"stand in one only ({', '.join(odd[:3])}, ...). {_OTHER_BASE}"
        )


def save_adapter(model: Any, folder: Path, base: AdapterBase) -> None:
    """Write the active adapter of a model that was loaded from an adapter folder.

    The weights come first and the configuration last: what a kill leaves behind is no adapter.

    Args:
        model: A model with an adapter in it, or PEFT's wrapper around it.
        folder: Where to; made where it lacks.
        base: What the adapter was made for.

    Raises:
        ValueError: Several adapters are active.
    """
    active = [name for name in model.peft_config if name in _active_adapters(model)]
    if len(active) != 1:
        raise ValueError(f"expected one active adapter to save, got {active}. Choose one with model.set_adapter(...).")
    folder.mkdir(parents=True, exist_ok=True)
    state = _adapter_state(model, active[0])
    prefix = "" if hasattr(model, "get_base_model") else PREFIX  # which PEFT's own wrapper has
    state = {f"{prefix}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    temporary = folder / f".{ADAPTER_WEIGHTS}.tmp"
    try:
        save_file(state, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / ADAPTER_WEIGHTS)
    finally:
        temporary.unlink(missing_ok=True)
    write_adapter_config(model.peft_config[active[0]], folder, base)


def _adapter_state(model: Any, name: str) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    # Embeddings are frozen; without the flag PEFT asks the hub whether the vocabulary has grown.
    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def _active_adapters(model: nn.Module) -> set[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            return set(module.active_adapters)
    return set(model.peft_config)


def write_adapter_config(config: Any, folder: Path, base: AdapterBase) -> None:
    """Write an adapter's configuration with a name of its base that holds from that folder, and the base's own.

    Args:
        config: A ``peft.PeftConfig``; it is left as it is.
        folder: Where to.
        base: The base model.
    """
    written = copy(config)
    written.inference_mode = True
    for name, value in describe_base(base, folder).items():
        setattr(written, name, value)
    written.save_pretrained(folder)
    # As the base is stored: the one in memory may have been quantised on the way.
    AutoConfig.from_pretrained(base.name, revision=base.revision or "main").save_pretrained(folder)


@contextmanager
def naming_broken_files(source: Any, adapter: Any = None) -> Iterator[None]:
    """Name the file and the next step where weights cannot be read or do not fit.

    Args:
        source: Folder or hub name of a model.
        adapter: Likewise of an adapter on it, or None.

    Raises:
        ValueError: Instead of an error about weights.
    """
    try:
        yield
    except SafetensorError as error:
        broken = [path for folder in (adapter, source) if folder is not None for path in _broken_files(Path(folder))]
        names = ", ".join(map(str, broken)) or str(source)
        raise ValueError(
            f"expected whole safetensors files, got one that cannot be read: {names} ({error}). Copy or download it "
            "again."
        ) from error
    except RuntimeError as error:
        if adapter is None or "ignore_mismatched_sizes" not in str(error):  # transformers' word for other shapes
            raise
        raise ValueError(
            f"expected the base model that the adapter {adapter} was made for, got {source}, whose sizes are others "
            f"(listed above). {_OTHER_BASE}"
        ) from error


def _broken_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError):
            yield path


__all__ = [
    "read_config",
    "AdapterBase",
    "check_adapter_fits",
    "describe_base",
    "find_adapter_base",
    "has_tuner",
    "is_adapter_folder",
    "naming_broken_files",
    "save_adapter",
    "write_adapter_config",
]
