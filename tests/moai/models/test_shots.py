"""Which demonstrations a question gets: fixed by seed, nearest by the tower's features, never its own image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flamingo_builders import make_image, save_flamingo
from PIL import Image
from pipeline_builders import ScriptedVerbalizer, build_text_lines
from typer.testing import CliRunner

from moai import Pipeline
from moai.cli import app
from moai.models.shots import Demonstrations
from verbalizers import Scene

ASKED = {"max_new_tokens": 5, "min_new_tokens": 5}
POOL = [(make_image(seed), f"Who is {seed}?", str(seed)) for seed in range(10, 18)]


def embed(images: Any) -> torch.Tensor:
    """Mean colour of each image."""
    means = [torch.tensor(image.resize((1, 1)).getpixel((0, 0)), dtype=torch.float32) for image in images]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)


def answers_of(shots: list[list[Any]]) -> list[list[str]]:
    return [[answer for _, _, answer in part] for part in shots]


def test_drawn_shots_depend_on_seed_image_and_question_alone() -> None:
    images, questions = [make_image(0), make_image(1), make_image(0)], ["What?", "What?", "Why?"]
    first = answers_of(Demonstrations(POOL, 3, seed=4).choose(images, questions, embed))
    again = Demonstrations(POOL, 3, seed=4)
    assert answers_of(again.choose(images[::-1], questions[::-1], embed))[::-1] == first
    assert answers_of(again.choose(images[1:2], questions[1:2], embed)) == first[1:2]
    assert len({tuple(part) for part in first}) == 3 and all(len(set(part)) == 3 for part in first)
    assert answers_of(Demonstrations(POOL, 3, seed=5).choose(images, questions, embed)) != first


def test_a_questions_own_image_is_no_demonstration_when_it_is_in_the_pool() -> None:
    for is_retrieved in (False, True):
        shots = Demonstrations(POOL, 7, is_retrieved).choose([make_image(12)], ["Who?"], embed)
        assert sorted(answers_of(shots)[0]) == ["10", "11", "13", "14", "15", "16", "17"]
        with pytest.raises(ValueError, match="expected 8 demonstrations about other images.*got 7"):
            Demonstrations(POOL, 8, is_retrieved).choose([make_image(12)], ["Who?"], embed)


def test_retrieved_shots_are_the_nearest_and_the_nearest_is_last() -> None:
    colors = [(250, 10, 10), (10, 250, 10), (200, 90, 10), (10, 10, 250), (240, 40, 10)]
    pool = [(Image.new("RGB", (9, 9), color), "Which?", str(place)) for place, color in enumerate(colors)]
    shots = Demonstrations(pool, 3, is_retrieved=True).choose([Image.new("RGB", (5, 5), (255, 0, 0))] * 2, "ab", embed)
    assert answers_of(shots) == [["2", "4", "0"]] * 2


def test_shots_are_the_nearest_to_any_image_and_about_none_when_a_question_has_several() -> None:
    colors = [(250, 10, 10), (10, 250, 10), (200, 90, 10), (10, 10, 250), (10, 40, 240)]
    pool = [(Image.new("RGB", (9, 9), color), "Which?", str(place)) for place, color in enumerate(colors)]
    asked = [pool[0][0], Image.new("RGB", (5, 5), (10, 10, 251))]
    assert answers_of(Demonstrations(pool, 2, is_retrieved=True).choose([asked], ["Which?"], embed)) == [["4", "3"]]
    drawn = answers_of(Demonstrations(pool, 4).choose([asked], ["Which?"], embed))[0]
    assert sorted(drawn) == ["1", "2", "3", "4"]
    with pytest.raises(ValueError, match="expected an image of the question"):
        Demonstrations(pool, 2, is_retrieved=True).choose([[]], ["Which?"], embed)


def test_two_shots_lose_their_images_when_none_are_wanted() -> None:
    for is_retrieved in (False, True):
        (shots,) = Demonstrations(POOL, 0, is_retrieved).choose([make_image(0)], ["Who?"], embed)
        assert len(shots) == 2 and all(image is None for image, _, _ in shots)


@pytest.mark.parametrize(
    ("pool", "number", "message"),
    [
        (POOL, 9, "from 0 to 8"),
        (POOL, -1, "from 0 to 8"),
        (POOL[:1], 0, "from 0 to 1"),
        ([*POOL, (None, "a", "b")], 2, "got none of shot 8"),
        ([("a.png", "b")], 1, "shot 0"),
    ],
)
def test_a_pool_is_refused_when_it_has_too_few_demonstrations(pool: list[Any], number: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demonstrations(pool, number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flamingo(tmp_path_factory.mktemp("shots"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("is_retrieved", [False, True])
def test_a_batch_answers_as_its_questions_do_alone_when_each_has_its_shots(
    pipeline: Pipeline, is_retrieved: bool
) -> None:
    images, questions = [make_image(0), make_image(1)], ["What?", "How many are there?"]
    shots = Demonstrations(POOL, 2, is_retrieved)
    together = [answer.answer for answer in pipeline(images, questions, shots=shots, **ASKED)]
    alone = [pipeline(*pair, shots=shots, **ASKED).answer for pair in zip(images, questions, strict=True)]
    assert together == alone
    chosen = shots.choose(images, questions, pipeline.answering.embed_images)
    given = [pipeline(*pair, shots=s, **ASKED).answer for *pair, s in zip(images, questions, chosen, strict=True)]
    assert given == together
    ranked = pipeline(images, questions, shots=shots, options={"choices": "yes,no"}, is_reporting=True)
    plain = pipeline(images, questions, options={"choices": "yes,no"}, is_reporting=True)
    assert all(a.report["choices"] != b.report["choices"] for a, b in zip(ranked, plain, strict=True))


def test_features_are_those_of_the_tower_when_images_are_embedded(pipeline: Pipeline) -> None:
    images = [make_image(0), make_image(1), make_image(0)]
    found = pipeline.answering.embed_images(images)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found[0], found[2])
    assert not torch.allclose(found[0], found[1])
    for image, row in zip(images, found, strict=True):
        torch.testing.assert_close(pipeline.answering.embed_images([image])[0], row)


def read_prompt(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *asked: Any, **settings: Any) -> str:
    """The prompt of one question."""
    seen, encode = [], pipeline.answering.encode
    monkeypatch.setattr(pipeline.answering, "encode", lambda *words: seen.append(encode(*words)) or seen[-1])
    answer = pipeline(*asked, **ASKED, **settings)
    monkeypatch.undo()
    assert answer.error is None
    (batch,) = seen
    return pipeline.answering.tokenizer.decode(batch["input_ids"][0])


@pytest.mark.parametrize("form", ["scene", "mapping", "text", "file", "pool", "looked at"])
def test_shots_say_what_was_found_in_their_images_when_they_bring_it_or_somebody_looks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    pipeline = Pipeline.from_pretrained(folder, [])
    image, scene = Image.new("RGB", (80, 60)), Scene((60, 80), text_lines=build_text_lines("EXIT"))
    words = pipeline.describe(scene)
    shots: Any = [(image, "Who?", "me", {"scene": scene, "mapping": scene.to_dict()}.get(form, words))]
    if form == "file":
        image.save(tmp_path / "a.png")
        row = {"image": "a.png", "question": "Who?", "answer": "me", "scene": scene.to_dict()}
        shots = tmp_path / "shots.jsonl"
        shots.write_text(json.dumps(row))
    elif form == "pool":
        shots = Demonstrations([(image, "Who?", "me", scene)], 1)
    elif form == "looked at":
        shots = [(image, "Who?", "me")]
        reader = ScriptedVerbalizer("ocr", lambda pixels: build_text_lines("EXIT"))
        pipeline = Pipeline.from_pretrained(folder, [reader])
    own = Scene((60, 80), text_lines=build_text_lines("OPEN"))
    prompt = read_prompt(pipeline, monkeypatch, make_image(0).resize((80, 60)), "Is it?", own, shots=shots)
    asked = f"<image>{pipeline.describe(own)}\nQuestion:Is it? Short answer:"
    assert prompt.endswith(f"<image>{words}\nQuestion:Who? Short answer:me<|endofchunk|>\n{asked}")
    silent = read_prompt(pipeline, monkeypatch, image, "Is it?", own, shots=[(image, "Who?", "me", "")])
    assert silent.endswith(f"<image>Question:Who? Short answer:me<|endofchunk|>\n{asked}")


def test_a_shot_is_named_when_its_scene_is_none(folder: Path) -> None:
    pipeline = Pipeline.from_pretrained(folder, [])
    for shots in ([(make_image(1), "Who?", "me", {"a": 1})], Demonstrations([(make_image(1), "Who?", "me", 5)], 1)):
        with pytest.raises(ValueError, match="shot 0: Scene.from_dict expects"):
            pipeline(make_image(0), "Who?", shots=shots)


def test_command_reads_shots_and_goes_on_with_the_same_ones_only(folder: Path, tmp_path: Path) -> None:
    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    make_image(0).save(tmp_path / "a.png")
    shots = tmp_path / "shots.jsonl"
    shots.write_text(json.dumps({"image": "a.png", "question": "Who?", "answer": "me"}))
    asked = ["ask", tmp_path / "a.png", "Is it?", "--model", folder, "--json", "--max-new-tokens", 5]
    plain, shown = run(*asked), run(*asked, "--shots", shots)
    assert plain.exit_code == shown.exit_code == 0, shown.output
    assert json.loads(plain.stdout)["answer"] != json.loads(shown.stdout)["answer"]
    assert run(*asked, "--shots", tmp_path / "none.jsonl").exit_code == 1
    assert "none.jsonl" in run(*asked, "--shots", tmp_path / "none.jsonl").output

    (tmp_path / "questions.jsonl").write_text(json.dumps({"image": "a.png", "question": "Is it?", "id": 1}))
    file = ["ask", "--questions", tmp_path / "questions.jsonl", "--out", tmp_path / "out.jsonl", "--model", folder]
    file += ["--max-new-tokens", 5, "--shots", shots]
    assert run(*file).exit_code == 0
    assert run(*file).exit_code == 0  # all is answered
    shots.write_text(json.dumps({"image": "a.png", "question": "Who?", "answer": "you"}))
    changed = run(*file)
    assert changed.exit_code == 1 and "shots" in changed.output
