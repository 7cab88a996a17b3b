"""What ships with MoAI is found by name from any folder, and only where nothing else has the name."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from moai.bundled import FOLDER, find_bundled
from moai.checkpoints.io.lookup import find_checkpoint
from moai.cli import app
from moai.settings import read_yaml


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["train_stage1.yaml", "configs/train_stage1.yaml"])
def test_recipe_is_found_by_its_name_when_no_such_file_is_there(name: str, elsewhere: Path) -> None:
    assert find_bundled("configs", name) == FOLDER / "configs" / "train_stage1.yaml"
    assert read_yaml(name)["stage"] == 1
    own = elsewhere / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("stage: 2")
    assert find_bundled("configs", name) is None and read_yaml(name)["stage"] == 2


@pytest.mark.parametrize("name", ["moai-nano", "checkpoints/moai-nano"])
def test_checkpoint_is_found_by_its_name_when_asked_from_elsewhere(name: str) -> None:
    assert find_checkpoint(name) == str(FOLDER / "checkpoints" / "moai-nano")


@pytest.mark.parametrize(
    "name", ["street.png", "configs/nano.yaml", "../configs/nano.yaml", "", ".", "a\0b", "x" * 5000]
)
def test_nothing_is_found_when_nothing_of_the_kind_ships(name: str) -> None:
    assert find_bundled("examples", name) is None
    assert find_bundled("examples", FOLDER / "examples" / "street.jpg") is None


def test_unknown_recipe_is_refused_with_the_names_of_those_that_ship() -> None:
    with pytest.raises(ValueError, match=r"got 'stage9\.yaml', which does not exist.*train_stage1\.yaml"):
        read_yaml("stage9.yaml")


@pytest.mark.parametrize("name", ["street.jpg", "examples/street.jpg"])
def test_commands_see_the_example_image_when_it_is_named(name: str) -> None:
    pytest.importorskip("rapidocr")
    result = CliRunner().invoke(app, ["verbalize", name, "--verbalizers", "ocr"])
    assert result.exit_code == 0 and "PLEASE" in result.stdout
