"""The glossary of CONTRIBUTING.md is kept: what it says not to say stands in no name and no docstring."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("moai", "verbalizers", "compressor", "mixer")
#: In names.
FORBIDDEN_NAMES = re.compile(r"picture|photo(?!graph)|specialist|sureness|looker|utterance", re.IGNORECASE)
#: Settings and their fields, which users have written down, and what holds them.
KEPT_NAMES = {
    "check_pictures",
    "num_pictures",
    "picture_index",
    "pictures",
    "samples_per_picture",
}
#: In docstrings, where it is the word and not an example of a user's.
FORBIDDEN_WORDS = re.compile(
    r"(?<![\w`\"'])(?<!A )(pictures?|specialists?|sureness|lookers?|draw(s|n|ing)? anew)(?![\w`\"':])", re.I
)


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield getattr(node, "lineno", 0), value


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""


def _complaints(text: str) -> list[str]:
    tree = ast.parse(text)
    found = [
        f"{line}: the name {name!r}"
        for line, name in _names(tree)
        if name not in KEPT_NAMES and FORBIDDEN_NAMES.search(name)
    ]
    for line, doc in _docstrings(tree):
        found += [f"{line}: {match[0]!r} in a docstring" for match in FORBIDDEN_WORDS.finditer(doc)]
    return found


def test_glossary_is_kept_when_the_sources_are_read() -> None:
    complaints = []
    for package in PACKAGES:
        for path in sorted((REPO_ROOT / package).rglob("*.py")):
            complaints += [
                f"{path.relative_to(REPO_ROOT)}:{found}" for found in _complaints(path.read_text(encoding="utf-8"))
            ]
    assert not complaints, "CONTRIBUTING.md, Words:\n" + "\n".join(complaints)


def test_glossary_complains_when_it_is_broken_and_only_then() -> None:
    assert len(_complaints("def load_picture(photo): pass")) == 2
    assert _complaints('"""All specialists look at the picture."""') == [
        "1: 'specialists' in a docstring",
        "1: 'picture' in a docstring",
    ]
    assert not _complaints(
        '"""Photographs; `pictures` is a setting, "A picture of" a caption."""\nsamples_per_picture = 1'
    )
