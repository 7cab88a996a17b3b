"""Questions of a file: conversations as training reads them, or rows of image, question and answer."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from moai.data.conversation_files import ConversationRow, read_rows
from moai.data.conversations import answer_turns, count_images, parse_conversation, text_of
from moai.data.findings import FindingsReader
from moai.data.scene_files import read_scene
from moai.processing.image_loading import load_image
from verbalizers import Scene, VerbalizationCache
from verbalizers.store.sources import Source

from .question_settings import FileTest
from .questions import TestImage, TestQuestion

__all__ = ["collect_file_questions"]

_SHORT, _LONG = 64, 160


def collect_file_questions(test: FileTest, problems: list[str]) -> Iterator[TestQuestion]:
    """Questions of a file in order.

    Args:
        test: Names the file.
        problems: Receives what is wrong with rows that cannot be asked, one text per row that names it.

    Raises:
        ValueError: The file cannot be read.
    """
    reader = None if test.source != "cache" else FindingsReader(VerbalizationCache(test.cache, test.fingerprint))
    rows = read_rows(test.path, test.image_folder, test.split, test.column)
    places: dict[str, str] = {}
    for row in islice(rows, test.limit):
        try:
            if row.problem is not None:
                raise ValueError(row.problem)
            asked = list(_questions_of(row, test, reader))
            for question in asked:
                if question.id in places:
                    raise ValueError(f"the id {question.id!r} stands in {places[question.id]} already; ids must differ")
        except ValueError as error:
            problems.append(f"{row.place}: {error}")
            continue
        places |= {question.id: row.place for question in asked}
        yield from asked


def _questions_of(row: ConversationRow, test: FileTest, reader: FindingsReader | None) -> Iterator[TestQuestion]:
    value = row.value
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object, got a {type(value).__name__}")
    if len(row.images) != 1:
        raise ValueError(f"expected one image per question, got {len(row.images)}")
    (source,) = row.images
    content = source.read()
    if reader is not None and not reader.knows(content):
        raise ValueError("the cache of verbalizations does not hold its image. Run `moai verbalize` on the file")
    digest = hashlib.sha256(content).hexdigest()
    known = None if reader is None else partial(_read_cache, reader, source)
    identity, image_key = digest, digest
    if test.source == "truth":
        scene = _true_scene(value, test)
        identity = [digest, hashlib.sha256(json.dumps(scene.to_dict(), sort_keys=True).encode()).hexdigest()]
        known, image_key = (lambda: scene), "-".join(identity)
    image = TestImage(image_key, partial(_load, source), known)
    key = {name: test.keys.get(name, name) for name in ("question", "answers", "kind", "choices", "id")}
    kind, choices = value.get(key["kind"]), value.get(key["choices"])
    row_id = str(value.get(key["id"]) if value.get(key["id"]) is not None else row.place)
    more = {
        "kind": "questions" if kind is None else str(kind),
        "choices": tuple(str(choice) for choice in choices or ()),
        "max_new_tokens": test.max_new_tokens or (_LONG if test.metric == "cider" else _SHORT),
        "identity": identity,
    }
    if value.get("messages") is None and value.get("conversations") is None:
        asked, answers = _text(value, key["question"]), _answers(value, key["answers"])
        yield TestQuestion(row_id, question=asked, answers=answers, image=image, **more)
        return
    messages = parse_conversation(value, 1)
    if messages[0]["role"] == "system":
        raise ValueError("expected a conversation without a system's turn, which evaluation does not say")
    turns = answer_turns(messages)
    if count_images(messages[: turns[0]]) != 1:
        raise ValueError("expected the image in the first question")
    texts = [text_of(message) for message in messages]
    for number, turn in enumerate(turns):
        if not texts[turn - 1]:
            raise ValueError(f"turn {turn}: expected a question, got an image without words")
        earlier = tuple(zip(texts[: turn - 1 : 2], texts[1 : turn - 1 : 2], strict=True))
        name = row_id if len(turns) == 1 else f"{row_id}/{number + 1}"
        yield TestQuestion(name, question=texts[turn - 1], answers=(texts[turn],), image=image, earlier=earlier, **more)


def _true_scene(row: Mapping[str, Any], test: FileTest) -> Scene:
    """A row's `scene`: an object, or the name of a file where its image's name begins."""
    scene = row.get("scene")
    if not isinstance(scene, str | Mapping):
        raise ValueError(f"expected under `scene` what is to be seen, or its file, got {scene!r}")
    if isinstance(scene, Mapping):
        return read_scene(scene)
    return read_scene(Path(test.image_folder or Path(test.path).parent) / scene)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        got = repr(value) if key in row else f"none among {sorted(map(str, row))[:12]}"
        raise ValueError(f"expected a question under `{key}` (or `conversations`, or `messages`), got {got}")
    return value.strip()


def _answers(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """One answer or several; VQA's ``[{"answer": ...}, ...]`` too."""
    value = row.get(key) if row.get(key) is not None else row.get("answer")
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    texts = [item.get("answer") if isinstance(item, Mapping) else item for item in values]
    if not texts or any(isinstance(text, bool) or not isinstance(text, str | int | float) for text in texts):
        raise ValueError(f"expected an answer, or a list of them, under `{key}`, got {value!r}")
    return tuple(str(text).strip() for text in texts)


@lru_cache(maxsize=4)
def _load(source: Source) -> Image.Image:
    return load_image(source.read())


def _read_cache(reader: FindingsReader, source: Source) -> Scene:
    content = source.read()
    return reader.read(content, Image.open(io.BytesIO(content))).scene
