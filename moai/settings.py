"""Settings: dataclasses of pydantic, read from YAML files, mappings and ``key=value`` overrides.

A class of settings is declared with :func:`settings`; whole numbers and truth values are annotated
:class:`pydantic.StrictInt` and :class:`pydantic.StrictBool`, other numbers :data:`Number`, so that nothing is converted
silently.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml

from .bundled import FOLDER, find_bundled
from .import_utils import require

require("pydantic", purpose="Reading settings")

from pydantic import BeforeValidator, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError  # noqa: E402
from pydantic.dataclasses import dataclass  # noqa: E402
from pydantic_core import PydanticKnownError  # noqa: E402

__all__ = [
    "Count",
    "Location",
    "Number",
    "Positive",
    "Share",
    "apply_overrides",
    "load_settings",
    "read_yaml",
    "settings",
    "to_plain",
]

Settings = TypeVar("Settings")


def _refuse_truth_value(value: Any) -> Any:
    """``true`` is no number, though it is Python's 1."""
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


#: A number; ``1e-3``, which YAML 1.1 reads as text, is one too.
Number = Annotated[float, BeforeValidator(_refuse_truth_value)]
#: A number from 0 to 1; a whole number from 1 on, and from 0 on.
Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[StrictInt, Field(ge=1)]
Count = Annotated[StrictInt, Field(ge=0)]
#: A path as text.
Location = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "dataclass": "a group of settings",
    "path": "a path",
}


@typing.dataclass_transform(frozen_default=True)
def settings(settings_class: type[Settings] | None = None, *, kw_only: bool = False) -> Any:
    """Class decorator: a frozen dataclass whose fields are validated and whose unknown fields are refused.

    Args:
        settings_class: The class.
        kw_only: Fields are keyword arguments only, so that a subclass may add fields without defaults.

    Raises:
        ValueError: When an instance is made of wrong values: each field is named.
    """
    if settings_class is None:
        return lambda decorated: settings(decorated, kw_only=kw_only)
    made = dataclass(settings_class, frozen=True, kw_only=kw_only, config=ConfigDict(extra="forbid"))
    validate = made.__init__

    @wraps(validate)
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validate(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(_describe_all(made, error)) from error

    made.__init__ = initialize
    return made


def load_settings(
    settings_class: type[Settings],
    source: str | Path | Mapping[str, Any] | Settings,
    overrides: Sequence[str] = (),
    where: str = "",
) -> Settings:
    """Read settings.

    Args:
        settings_class: Declared with :func:`settings`.
        source: A YAML file, a mapping of fields, or settings.
        overrides: ``key=value`` words laid over it, for example ``["optimization.num_steps=10", "seed=1"]``.
        where: Dotted place of these settings in a larger whole, for messages.

    Raises:
        ValueError: The file is not there or no YAML; fields are unknown, missing or wrong: each is named.
    """
    if isinstance(source, settings_class):
        if not overrides:
            return source
        source = to_plain(source)
    content = source if isinstance(source, Mapping) else read_yaml(source)
    try:
        return _adapter(settings_class).validate_python(apply_overrides(content, overrides))
    except ValidationError as error:
        raise ValueError(_describe_all(settings_class, error, where)) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file, or the name of a recipe that ships with MoAI (``"train_stage1.yaml"``).

    Raises:
        ValueError: There is no such file, it is no YAML, or no mapping.
    """
    file = Path(path).expanduser()
    file = find_bundled("configs", file) or file
    if not file.is_file():
        shipped = ", ".join(sorted(recipe.name for recipe in (FOLDER / "configs").glob("*.yaml")))
        raise ValueError(
            f"expected a YAML file, got {str(path)!r}, which does not exist. Check the path, or name one of {shipped}."
        )
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

    Raises:
        ValueError: A word is not of that form, or its path leads through something that is no mapping.
    """
    result = copy.deepcopy(dict(content)) if overrides else dict(content)
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


def to_plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON-able values, which :func:`load_settings` reads back."""
    return _adapter(type(settings)).dump_python(settings, mode="json")


@cache
def _adapter(settings_class: type) -> TypeAdapter[Any]:
    return TypeAdapter(settings_class)


def _describe_all(settings_class: type, error: ValidationError, where: str = "") -> str:
    return "\n".join(_describe(settings_class, problem, where) for problem in error.errors())


def _describe(settings_class: type, problem: Mapping[str, Any], where: str) -> str:
    """One of pydantic's errors as a message: expected, got, next step."""
    location = [where, *problem["loc"]] if where else list(problem["loc"])
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
    kind, got = problem["type"], problem.get("input")
    if kind in ("value_error", "assertion_error"):
        return str(problem["ctx"]["error"])
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _fields_at(settings_class, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"unknown setting `{name}`.{hint} Known here: {', '.join(known)}."
    if kind == "missing":
        known = _fields_at(settings_class, problem["loc"][:-1])
        return f"expected the setting `{name}`, got none. Known here: {', '.join(known)}."
    if kind == "literal_error":
        choices = str(problem["ctx"]["expected"]).replace(" or ", ", ")
        return f"`{name}` must be one of {choices}, got {got!r}."
    if kind == "greater_than_equal":
        return f"`{name}` must be at least {problem['ctx']['ge']}, got {got!r}."
    expected = _EXPECTED.get(kind.split("_")[0])
    return f"`{name}` must be {expected}, got {got!r}." if expected else f"`{name}`: {problem['msg']}, got {got!r}."


def _fields_at(settings_class: Any, location: Sequence[Any]) -> list[str]:
    """Names of the fields of the settings that lie at a location inside a class of settings."""
    if dataclasses.is_dataclass(settings_class):
        if not location:
            return [field.name for field in dataclasses.fields(settings_class) if field.init]
        hint = typing.get_type_hints(settings_class).get(location[0])
        return _fields_at(hint, location[1:])
    inner = [argument for argument in typing.get_args(settings_class) if argument not in (type(None), Ellipsis)]
    if isinstance(location[0] if location else None, int):
        location = location[1:]
    return next((found for argument in inner if (found := _fields_at(argument, location))), [])
