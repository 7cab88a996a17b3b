"""The registry of verbalizers, of their words and their drawings.

A verbalizer's class (verbalizer.py) is registered under a kind (what it finds) and a backend (with which library);
the first backend registered for a kind is that kind's default. A kind beyond the four brings its own words
(`register_words`) and, if it likes, its own drawing (`register_drawing`); both see the whole scene. Packages outside
this repository plug in through the entry-point group `moai.verbalizers`, entries named `<kind>.<backend>`; they are
listed without being imported and imported only when their kind is built, verbalized, drawn or read from disk.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from verbalizers.core.plugins import ENTRY_POINT_GROUP, import_plugin, import_plugins, list_plugins
from verbalizers.core.verbalizer import Verbalizer

__all__ = [
    "ENTRY_POINT_GROUP",
    "available_verbalizers",
    "build_verbalizer",
    "find_drawing",
    "find_words",
    "load_plugins",
    "register_drawing",
    "register_verbalizer",
    "register_words",
]

_REGISTRY: dict[tuple[str, str], type[Verbalizer]] = {}
_WORDS: dict[str, Callable[..., str]] = {}
_DRAWINGS: dict[str, Callable[..., Any]] = {}
_VerbalizerClass = TypeVar("_VerbalizerClass", bound=type)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def register_verbalizer(kind: str, backend: str) -> Callable[[_VerbalizerClass], _VerbalizerClass]:
    """Class decorator that makes `build_verbalizer(kind, backend)` find the class.

    Raises:
        ValueError: the name is taken by another class, a name is not an identifier, or the class is no
            Verbalizer.
    """
    _check_identifiers(kind=kind, backend=backend)

    def register(cls: _VerbalizerClass) -> _VerbalizerClass:
        if not (isinstance(cls, type) and issubclass(cls, Verbalizer)):
            raise ValueError(f"expected a subclass of verbalizers.Verbalizer, got {cls!r}. Inherit from Verbalizer.")
        _refuse_clash(_REGISTRY.get((kind, backend)), cls, f"kind {kind!r} with backend {backend!r}")
        cls.kind, cls.backend = kind, backend
        _REGISTRY[kind, backend] = cls
        return cls

    return register


def register_words(kind: str) -> Callable[[_Function], _Function]:
    """Decorator of the function that turns a kind's finding into text: `words(finding, scene, settings) -> str`.

    It is called by `verbalize_scene` with the kind's finding (never None), the whole `Scene`, so that it may
    use what the other kinds found, and the `WordSettings`. It is pure; "" adds no text. A kind needs
    it unless its findings are sentences or of the four structures.

    Raises:
        ValueError: the kind has other words already, or is no identifier.
    """
    return _register_function(_WORDS, kind, "words")


def register_drawing(kind: str) -> Callable[[_Function], _Function]:
    """Decorator of the function that draws what a kind found: `drawing(finding, scene, image) -> image`.

    It is called by `draw_scene` after the four kinds are drawn, with the finding (never None), the `Scene` and
    the RGB PIL image so far, and returns an RGB PIL image of the same size. A kind without it is not drawn.

    Raises:
        ValueError: the kind has another drawing already, or is no identifier.
    """
    return _register_function(_DRAWINGS, kind, "drawing")


def find_words(kind: str) -> Callable[..., str] | None:
    """What `register_words` registered for the kind; None = nothing. Loads the kind's plug-ins if need be."""
    if kind not in _WORDS:
        load_plugins(kind)
    return _WORDS.get(kind)


def find_drawing(kind: str) -> Callable[..., Any] | None:
    """What `register_drawing` registered for the kind; None = nothing. Loads the kind's plug-ins if need be."""
    if kind not in _DRAWINGS:
        load_plugins(kind)
    return _DRAWINGS.get(kind)


def _register_function(table: dict[str, Any], kind: str, what: str) -> Callable[[_Function], _Function]:
    _check_identifiers(kind=kind)

    def register(function: _Function) -> _Function:
        _refuse_clash(table.get(kind), function, f"the {what} of kind {kind!r}")
        table[kind] = function
        return function

    return register


def _check_identifiers(**names: str) -> None:
    for name, value in names.items():
        if not value.isidentifier():
            raise ValueError(f"`{name}` must be a Python identifier such as 'depth', got {value!r}. Use underscores.")


def _refuse_clash(known: Any, new: Any, what: str) -> None:
    # A module that is reloaded registers the same object anew; only a different one is a clash.
    if known is not None and (known.__module__, known.__qualname__) != (new.__module__, new.__qualname__):
        raise ValueError(f"{what} is already {known.__module__}.{known.__qualname__}. Choose another name.")


def load_plugins(kind: str) -> None:
    """Import and register the installed plug-ins of a kind, once; with them come their findings, words and drawings.

    Raises:
        ImportError: one of them cannot be imported, or registers nothing.
    """
    for backend, (entry, loaded) in import_plugins(kind).items():
        _register_plugin(kind, backend, entry, loaded)


def available_verbalizers() -> dict[str, tuple[str, ...]]:
    """Kinds and their backends, the default backend first. Plug-ins are listed without importing them."""
    result: dict[str, list[str]] = {}
    for kind, backend in [*_REGISTRY, *list_plugins()]:
        backends = result.setdefault(kind, [])
        if backend not in backends:
            backends.append(backend)
    return {kind: tuple(backends) for kind, backends in result.items()}


def build_verbalizer(kind: str, backend: str | None = None, **settings: Any) -> Verbalizer:
    """Build a verbalizer by name. No model is loaded yet.

    Args:
        kind: what to find; see `available_verbalizers()`.
        backend: with which library; None = the kind's default.
        **settings: the class's fields.

    Raises:
        ValueError: unknown kind or backend, settings the class does not have, or none for one that it needs.
        ImportError: a plug-in cannot be imported.
    """
    available = available_verbalizers()
    if kind not in available:
        raise ValueError(f"unknown verbalizer kind {kind!r}, expected one of {sorted(available)}. Register it first.")
    backend = backend or available[kind][0]
    if backend not in available[kind]:
        raise ValueError(f"unknown backend {backend!r} for kind {kind!r}, expected one of {list(available[kind])}.")
    if (kind, backend) not in _REGISTRY:
        entry = list_plugins()[kind, backend]
        _register_plugin(kind, backend, entry, import_plugin(entry))
    cls = _REGISTRY[kind, backend]
    if dataclasses.is_dataclass(cls):
        known = {f.name for f in dataclasses.fields(cls) if f.init}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ValueError(f"{kind}/{backend} has no setting {unknown}, expected some of {sorted(known)}.")
    parameters = inspect.signature(cls).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    if lacking := [name for name in needed if name not in settings]:
        raise ValueError(
            f"{kind}/{backend} needs the settings {needed}, got none for {lacking}. Give them in the checkpoint's "
            "verbalizers.json, or build it in Python."
        )
    return cls(**settings)


def _register_plugin(kind: str, backend: str, entry: EntryPoint, loaded: Any) -> None:
    """Register what an entry point names: a class, unless its module has registered it."""
    if (kind, backend) not in _REGISTRY:
        if not isinstance(loaded, type):
            raise ImportError(
                f"verbalizer plug-in {entry.name!r} ({entry.value}) registered no kind {kind!r} with backend "
                f"{backend!r}. The entry's name must be the <kind>.<backend> of its @register_verbalizer."
            )
        register_verbalizer(kind, backend)(loaded)
