"""The glossary of CONTRIBUTING.md is kept in names, settings, options, docstrings and comments."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import yaml

REPO_ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("moai", "verbalizers", "compressor", "mixer", "recipes", "benchmarks", "examples", "tests")
#: In names, options, settings and file names.
FORBIDDEN_NAMES = re.compile(
    r"picture|photo(?!graph)|specialist|sureness|looker|utterance|image_seq_length", re.IGNORECASE
)
#: Where we build transformers' own models, a field has its name: it says this for `num_image_tokens`.
THEIR_NAMES = {"benchmarks/forward_peer.py": "the name 'image_seq_length'"}
#: In docstrings and comments, outside quotation marks.
FORBIDDEN_WORDS = re.compile(
    r"\b(pictures?|photos?|specialists?|sureness|lookers?|utterances?|draw(?:s|n|ing)? anew)\b", re.IGNORECASE
)
_QUOTED = re.compile(r"\"[^\"\n]*\"|``?[^`\n]*``?")
_OPTION = re.compile(r"--[a-z][\w-]*")


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Identifiers; in strings, the names of options (`--name`) and of settings (`a_name`)."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        yield from (
            (line, value)
            for field in ("id", "attr", "arg", "name")
            if isinstance(value := getattr(node, field, None), str)
        )
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((line, option) for option in _OPTION.findall(node.value))
            if "_" in node.value and node.value.isidentifier():  # a setting in a dictionary
                yield line, node.value


def _texts(text: str, tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Docstrings and comments."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield getattr(node, "lineno", 1), "docstring", ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], "comment", token.string


def _keys(value: object) -> Iterator[str]:
    """The settings' names in a parsed YAML file."""
    if isinstance(value, dict):
        yield from map(str, value)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(item)


def _complaints(text: str) -> list[str]:
    tree = ast.parse(text)
    found = [f"{line}: the name {name!r}" for line, name in _names(tree) if FORBIDDEN_NAMES.search(name)]
    for line, kind, words in _texts(text, tree):
        found += [f"{line}: {match[0]!r} in a {kind}" for match in FORBIDDEN_WORDS.finditer(_QUOTED.sub("", words))]
    return found


def test_glossary_is_kept_when_the_sources_are_read() -> None:
    complaints = []
    for folder in FOLDERS:
        for path in sorted((REPO_ROOT / folder).rglob("*.py")):
            place = path.relative_to(REPO_ROOT)
            if path.name != Path(__file__).name:
                theirs = THEIR_NAMES.get(str(place))
                found = [
                    each
                    for each in _complaints(path.read_text(encoding="utf-8"))
                    if theirs is None or theirs not in each
                ]
                complaints += [f"{place}:{each}" for each in found]
            if FORBIDDEN_NAMES.search(str(place)):
                complaints.append(f"{place}: the file's name")
    for path in sorted((REPO_ROOT / "configs").rglob("*.yaml")):
        keys = _keys(yaml.safe_load(path.read_text(encoding="utf-8")))
        complaints += [f"{path.name}: the setting {key!r}" for key in keys if FORBIDDEN_NAMES.search(key)]
    for path in [*REPO_ROOT.glob("*.md"), *(REPO_ROOT / "docs").glob("*.md")]:
        options = _OPTION.findall(path.read_text(encoding="utf-8"))
        complaints += [f"{path.name}: the option {name}" for name in options if FORBIDDEN_NAMES.search(name)]
    assert not complaints, "CONTRIBUTING.md, Words:\n" + "\n".join(complaints)


def test_glossary_complains_when_it_is_broken_and_only_then() -> None:
    assert len(_complaints("def load_picture(photo): pass")) == 2
    assert _complaints('option("--photos", "a photo")\nsamples_per_picture = 1  # of one picture') == [
        "2: the name 'samples_per_picture'",
        "1: the name '--photos'",
        "2: 'picture' in a comment",
    ]
    assert _complaints('"""All specialists look at the picture."""') == [
        "1: 'specialists' in a docstring",
        "1: 'picture' in a docstring",
    ]
    assert not _complaints('"""Photographs; `pictures` is a user\'s column, "A picture of" a caption."""')
    assert _complaints('sizes = {"samples_per_picture": 1}') == ["1: the name 'samples_per_picture'"]
    assert list(_keys({"optimization": [{"samples_per_picture": 1}]})) == ["optimization", "samples_per_picture"]
