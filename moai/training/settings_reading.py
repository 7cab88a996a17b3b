"""From YAML and ``key=value`` words to checked dataclasses: every unknown or ill-typed field is named."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

__all__ = ["apply_overrides", "parse_fields", "read_yaml"]

Settings = TypeVar("Settings")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a recipe.

    Args:
        path: YAML file holding a mapping.

    Raises:
        ValueError: There is no such file, it is no YAML, or no mapping.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"expected a YAML file, got {str(path)!r}, which does not exist. Recipes lie in configs/.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected YAML in {file}, got: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a mapping of settings in {file}, got {type(content).__name__}.")
    return content


def apply_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay ``a.b=value`` words over a mapping; values are read as YAML.

    Args:
        content: Settings; not changed.
        overrides: For example ``["optimization.num_steps=10", "report_to=[tensorboard]"]``.

    Returns:
        A new mapping.

    Raises:
        ValueError: A word is not of that form, or its path leads through something that is no mapping.
    """
    result = _copy(content)
    for word in overrides:
        name, sign, text = word.partition("=")
        if not sign or not name.strip():
            raise ValueError(f"expected an override such as optimization.num_steps=100, got {word!r}.")
        try:
            value = yaml.safe_load(text) if text.strip() else None
        except yaml.YAMLError as error:
            raise ValueError(f"expected a YAML value in the override {word!r}, got: {error}.") from error
        *parents, last = name.strip().split(".")
        place = result
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ValueError(f"expected a group of settings at {parent!r} in {word!r}, got {place!r}.")
        place[last] = value
    return result


def parse_fields(settings_class: type[Settings], content: Mapping[str, Any] | None, where: str = "") -> Settings:
    """Build a dataclass of settings, nested ones included, from a mapping.

    Args:
        settings_class: A dataclass.
        content: Its fields; None = all defaults.
        where: Dotted place of these settings, for messages.

    Raises:
        ValueError: An unknown field (the known ones are listed), a missing one, or a value of another type.
    """
    content = {} if content is None else content
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a group of settings at `{where}`, got {content!r}.")
    fields = {field.name: field for field in dataclasses.fields(settings_class) if field.init}
    prefix = f"{where}." if where else ""
    for name in content:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown setting `{prefix}{name}`.{hint} Known here: {', '.join(fields)}.")
    hints = typing.get_type_hints(settings_class)
    values = {name: convert_value(hints[name], value, f"{prefix}{name}") for name, value in content.items()}
    for name, field in fields.items():
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_required and name not in values:
            raise ValueError(f"expected the setting `{prefix}{name}`, got none. Known here: {', '.join(fields)}.")
    return settings_class(**values)


def convert_value(hint: Any, value: Any, where: str) -> Any:
    """Check one value against its type hint; ``1e-3``, which YAML 1.1 takes for a word, becomes a number.

    Args:
        hint: Type hint of the field.
        value: What was given.
        where: Dotted name, for messages.

    Raises:
        ValueError: The value does not fit.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"`{where}` must be one of {', '.join(map(repr, arguments))}, got {value!r}.")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else parse_fields(hint, value, where)
    if (origin or hint) in (tuple, list, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"`{where}` must be a list, got {value!r}.")
        inner = arguments[0] if arguments else Any
        items = [convert_value(inner, item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if (origin or hint) is list else tuple(items)
    if (origin or hint) in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"`{where}` must be a mapping, got {value!r}.")
        inner = arguments[1] if len(arguments) == 2 else Any
        return {str(name): convert_value(inner, item, f"{where}.{name}") for name, item in value.items()}
    return _convert_scalar(hint, value, where)


def _convert_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    problems = []
    for argument in arguments:
        if argument is type(None):
            continue
        try:
            return convert_value(argument, value, where)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0])


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, str):
        return Path(value)
    is_right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if not is_right:
        names = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
        raise ValueError(f"`{where}` must be {names.get(hint, getattr(hint, '__name__', hint))}, got {value!r}.")
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return value
