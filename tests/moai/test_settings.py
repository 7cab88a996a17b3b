"""Settings: YAML, mappings and overrides become frozen objects; every wrong field is named with what was expected."""

from dataclasses import FrozenInstanceError, field
from pathlib import Path
from typing import Annotated

import pytest

pytest.importorskip("pydantic")

from pydantic import Field, StrictBool, StrictInt  # noqa: E402

from moai.settings import Number, apply_overrides, load_settings, settings, to_plain  # noqa: E402


@settings
class Inner:
    """Settings inside settings."""

    rate: Number = 1.0
    sizes: tuple[tuple[StrictInt, StrictInt], ...] = ()


@settings
class Outer:
    """Settings of these tests."""

    name: str
    folder: Path = Path("here")
    parts: tuple[Inner, ...] = ()
    count: Annotated[StrictInt, Field(ge=1)] = 1
    is_on: StrictBool = False
    free: dict[str, Number] = field(default_factory=dict)


def test_settings_are_equal_when_read_from_a_file_a_mapping_or_settings(tmp_path: Path) -> None:
    file = tmp_path / "outer.yaml"
    file.write_text("name: a\nfolder: b\nparts: [{rate: 1e-3, sizes: [[1, 2]]}]\nfree: {x: 2E5}\n", encoding="utf-8")
    found = load_settings(Outer, file, ["count=3", "free.y=1"])
    inner = Inner(rate=1e-3, sizes=((1, 2),))
    assert found == Outer(name="a", folder=Path("b"), parts=(inner,), count=3, free={"x": 2e5, "y": 1.0})
    assert load_settings(Outer, to_plain(found)) == found == load_settings(Outer, found)
    assert load_settings(Outer, found, ["parts=[]"]).parts == () and found.parts == (inner,)
    with pytest.raises(FrozenInstanceError):
        found.count = 4


def test_every_wrong_field_is_named_when_several_are() -> None:
    wrong = {"nam": "a", "parts": [{}, {"rat": 1}], "count": 0, "is_on": 1, "free": {"x": "fast"}, "folder": 3}
    with pytest.raises(ValueError) as caught:
        load_settings(Outer, wrong)
    assert set(str(caught.value).splitlines()) == {
        "expected the setting `name`, got none. Known here: name, folder, parts, count, is_on, free.",
        "unknown setting `nam`. Did you mean 'name'? Known here: name, folder, parts, count, is_on, free.",
        "unknown setting `parts[1].rat`. Did you mean 'rate'? Known here: rate, sizes.",
        "`count` must be at least 1, got 0.",
        "`is_on` must be true or false, got 1.",
        "`free.x` must be a number, got 'fast'.",
        "`folder` must be a path, got 3.",
    }


@pytest.mark.parametrize("word", ["parts=[{rate: true}]", "free.x=yes", "count=true", "count=1.0", "count='1'"])
def test_value_is_refused_when_it_would_have_to_be_converted(word: str) -> None:
    with pytest.raises(ValueError, match="must be a (whole )?number, got"):
        load_settings(Outer, {"name": "a"}, [word])


def test_overrides_leave_the_content_alone_when_applied() -> None:
    content = {"a": {"b": 1}}
    words = ["a.b=2", "a.c=[x, 1]", "d.e=null"]
    assert apply_overrides(content, words) == {"a": {"b": 2, "c": ["x", 1]}, "d": {"e": None}}
    assert content == {"a": {"b": 1}}
