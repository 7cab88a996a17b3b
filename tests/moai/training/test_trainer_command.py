"""The doors to training: `python -m moai.training` and `moai train`."""

from pathlib import Path

import pytest
import yaml
from training_builders import build_recipe, write_tiny_checkpoint
from typer.testing import CliRunner

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')
pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai.cli import app  # noqa: E402
from moai.training.__main__ import main  # noqa: E402


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    content = build_recipe(write_tiny_checkpoint(tmp_path / "base"), tmp_path / "run")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def test_command_trains_and_names_the_result_when_run(recipe: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--config", str(recipe), "optimization.num_steps=1"])
    assert result.exit_code == 0, result.output
    assert "adapter" in result.output and f"the result is in {tmp_path / 'run' / 'final'}" in result.output
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()


def test_command_fails_with_one_message_when_a_field_is_unknown(recipe: Path, capsys) -> None:
    result = CliRunner().invoke(app, ["train", "--config", str(recipe), "optimisation.num_steps=1"])
    assert result.exit_code == 1 and "Did you mean 'optimization'" in result.output.replace("\n", " ")
    assert main(["--config", str(recipe), "top_k=9"]) == 1
    assert capsys.readouterr().err.strip() == "error: `top_k` must be 1 to 3, got 9."
