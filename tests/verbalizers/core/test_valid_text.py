"""Text from outside: lone surrogates never get behind a door."""

from __future__ import annotations

import pytest

from verbalizers import Scene, TextLines, register_words, verbalize_scene
from verbalizers.core.adapters import boxes_to_quads
from verbalizers.core.valid_text import make_valid
from verbalizers.core.vocabularies import load_vocabulary


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("A \ud83d", "A \ufffd"),
        ("\ud83d!", "\ufffd!"),
        ("\ud83d\ude00!", "\U0001f600!"),
        ("\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        ("caf\udce9", "caf\ufffd"),
        ("\ufeffé\0", "\ufeffé\0"),
    ],
)
def test_make_valid_replaces_halves_of_pairs_only_when_text_holds_them(text: str, valid: str) -> None:
    assert make_valid(text) == valid
    assert valid.encode().decode() == valid


def test_make_valid_goes_through_what_json_holds_when_it_is_nested() -> None:
    assert make_valid({"\ud800": ["\ud800", {"a": "\ud800"}, 1, None]}) == {
        "\ufffd": ["\ufffd", {"a": "\ufffd"}, 1, None]
    }


def test_make_valid_returns_the_same_object_when_text_is_valid() -> None:
    class Marked(str):
        pass

    text = Marked("é \U0001f600")
    assert make_valid(text) is text


def test_scene_is_valid_text_when_its_readers_are_not() -> None:
    lines = TextLines(boxes_to_quads([[0, 0, 3, 3]]), ("EXIT \udc80",), [1.0])
    scene = Scene((4, 4), text_lines=lines, findings={"note": "half \ud83d"}, failures={"depth": "bad \udcff"})
    verbalize_scene(scene).encode()
    assert lines.texts == ("EXIT \ufffd",) and scene.failures == {"depth": "bad \ufffd"}
    again = Scene.from_dict({"image_size_hw": [4, 4], "findings": {"note": {"text": ["\ud800"]}}})
    assert again.findings == {"note": {"text": ["\ufffd"]}}


def test_words_are_valid_text_when_a_plugin_says_half_a_pair() -> None:
    register_words("half_a_pair")(lambda finding, scene, settings: "found \ud83d")
    assert verbalize_scene(Scene((4, 4), findings={"half_a_pair": 1})) == "found \ufffd"


def test_vocabulary_is_valid_text_when_a_name_is_not() -> None:
    assert load_vocabulary(("cat \ud800", "dog")) == ("cat \ufffd", "dog")
