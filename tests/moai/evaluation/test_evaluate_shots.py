"""`moai evaluate --shots`: demonstrations from a file or from training scenes, refused where nobody reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from flamingo_builders import make_image, save_flamingo
from pipeline_builders import draw_image
from training_builders import write_tiny_checkpoint
from typer.testing import CliRunner

from moai.cli import app
from moai.evaluation.demonstrations import build_demonstrations, describe_demonstrations
from moai.evaluation.question_settings import load_test_settings


@pytest.fixture(scope="module")
def flamingo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flamingo(tmp_path_factory.mktemp("flamingo"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two questions, and four demonstrations."""
    for number in range(2):
        draw_image(number).save(tmp_path / f"{number}.png")
    for number in range(4):
        make_image(number).save(tmp_path / f"shot{number}.png")
    rows = [{"image": f"{n}.png", "question": "How many?", "answer": str(n), "choices": ["0", "1"]} for n in range(2)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shots = [{"image": f"shot{n}.png", "question": "How many?", "answer": str(n)} for n in range(4)]
    (tmp_path / "shots.jsonl").write_text("\n".join(map(json.dumps, shots)))
    return tmp_path


def run(*words: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def choices_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line)["choices"] for line in (out / "samples.jsonl").read_text().splitlines()]


def test_each_way_of_choosing_shows_other_demonstrations_and_the_same_again(flamingo: Path, folder: Path) -> None:
    test = [flamingo, folder / "questions.jsonl", "ranks=true"]
    pool = f"shots_from={folder / 'shots.jsonl'}"
    ways = {"none": [], "zero": ["--shots", 0, pool], "two": ["--shots", 2, pool]}
    ways |= {"retrieved": ["--shots", 2, pool, "shots_retrieved=true"], "seed": ["--shots", 2, pool, "shots_seed=5"]}
    for name, words in ways.items():
        run(*test, *words, "--out", folder / name)
    found = {name: json.dumps(choices_of(folder / name)) for name in ways}
    assert len(set(found.values())) == len(ways)
    run(*test, *ways["two"], "--out", folder / "again", "--batch-size", 1)
    for one, other in zip(choices_of(folder / "again"), choices_of(folder / "two"), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    make_image(9).save(folder / "shot0.png")  # another demonstration than the results rest on
    assert "demonstrations" in run(*test, *ways["two"], "--out", folder / "two", code=1)
    assert "shots_from" in run(*test, "--shots", 2, "--out", folder / "lost", code=1)
    assert "from 0 to 4" in run(*test, "--shots", 5, pool, "--out", folder / "many", code=1)


def test_shots_are_refused_by_name_when_the_model_reads_none(folder: Path, tmp_path_factory: Any) -> None:
    tiny = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    words = ["--shots", 2, f"shots_from={folder / 'shots.jsonl'}", "--out", folder / "moai"]
    assert "demonstrations" in run(tiny, folder / "questions.jsonl", *words, code=1)


def test_demonstrations_of_scenes_are_training_scenes() -> None:
    words = ["per_kind=2", "image_size=32", "num_objects=[1,3]", "kinds=[existence,reading]", "shots=3"]
    settings = load_test_settings("scenes", words)
    pool = build_demonstrations(settings).pool
    assert len(pool) == 128 and all(
        isinstance(image, bytes) and question and answer for image, question, answer, _ in pool
    )
    assert pool == build_demonstrations(settings).pool and describe_demonstrations(settings) == {}
    assert build_demonstrations(load_test_settings("scenes", words[:-1])) is None


def test_demonstrations_bring_the_findings_that_the_tests_questions_have(folder: Path) -> None:
    few = ["per_kind=2", "kinds=[existence]", "shots=1", "image_size=32"]
    found = {}
    for name, words in {"all": [], "ocr": ["verbalizers=[ocr]"], "none": ["verbalizations=none"]}.items():
        found[name] = build_demonstrations(load_test_settings("scenes", [*few, *words])).pool[0][3]
    assert found["all"].segments is not None and found["all"].text_lines is not None
    assert found["ocr"].segments is None and found["ocr"].text_lines is not None
    assert found["none"] == ""
    words = ["verbalizations=live", "shots=1", f"shots_from={folder / 'shots.jsonl'}"]
    assert build_demonstrations(load_test_settings(folder / "questions.jsonl", words)).pool[0][3] is None  # looked at
