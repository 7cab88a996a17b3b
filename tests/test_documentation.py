"""Every command and every line of Python in README.md and CONTRIBUTING.md is run, on tiny weights."""

import json
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from builders import TINY_TEXT, TINY_VISION, build_tiny_inputs
from pipeline_builders import draw_picture, write_tiny_checkpoint

REPO_ROOT = Path(__file__).resolve().parent.parent


def _code_blocks(document: str, language: str) -> list[str]:
    text = (REPO_ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in blocks]


def _commands(document: str) -> list[str]:
    lines = [line.split("#")[0].strip() for block in _code_blocks(document, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


def _write_backbones(folder: Path) -> tuple[Path, Path]:
    """Two pretrained folders, as from_backbones takes them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    vision, text = folder / "clip", folder / "llama"
    CLIPVisionModel(CLIPVisionConfig(**TINY_VISION)).save_pretrained(vision)
    LlamaForCausalLM(LlamaConfig(**TINY_TEXT)).save_pretrained(text)
    return vision, text


@pytest.mark.slow
def test_readme_python_runs_when_read_from_top_to_bottom(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    vision, text = _write_backbones(tmp_path)
    picture = tmp_path / "picture.jpg"
    draw_picture().save(picture)
    names = {
        "checkpoints/moai-nano": checkpoint,
        "picture.jpg": picture,
        "path/to/clip": vision,
        "path/to/smollm2": text,
    }
    blocks = _code_blocks("README.md", "python")
    assert len(blocks) >= 5
    namespace: dict[str, object] = {"path": str(checkpoint)}
    for number, block in enumerate(blocks):
        for name, place in names.items():
            block = block.replace(name, str(place))
        if "model" in namespace:  # `**inputs` in the text stands for inputs of the model at hand
            namespace["inputs"] = build_tiny_inputs(namespace["model"].config)
        exec(compile(block, f"README.md, Python block {number + 1}", "exec"), namespace)


def test_contributing_verbalizer_works_when_copied() -> None:
    import verbalizers
    from verbalizers import base

    look, say = _code_blocks("CONTRIBUTING.md", "python")
    try:
        exec(compile(look + say, "CONTRIBUTING.md", "exec"), {"__name__": "contributing_example"})
        lit = np.zeros((4, 6, 3), dtype=np.uint8)
        lit[:2] = 200
        (scene,) = verbalizers.parse_scene([lit], [verbalizers.build_verbalizer("light")])
        assert not scene.failures
        assert verbalizers.verbalize_scene(scene) == "The light comes from above."
        again = verbalizers.Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
        assert again == scene
    finally:
        base._REGISTRY.pop(("light", "mean"), None)
        base._WORDS.pop("light", None)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist_when_documented(document: str) -> None:
    makefile = (REPO_ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    named = [command.split()[1] for command in _commands(document) if command.startswith("make ")]
    assert named
    assert set(named) <= targets


def test_ci_runs_the_commands_that_the_readme_names() -> None:
    script = (REPO_ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in _commands("README.md"):
        if command.startswith("make "):
            assert command in script, f".ci/run does not run `{command}`"


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in _commands("README.md") if line.startswith("moai ")])
def test_readme_command_runs_when_typed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    from typer.testing import CliRunner

    from moai.cli import app

    shutil.copytree(REPO_ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)[1:]
    if arguments[0] == "convert":
        pytest.skip("conversion from a hub is run in tests/moai/test_hub.py")
    if "moai-7b" in arguments:
        pytest.skip("the published model is fetched, converted and asked in tests/moai/test_hub.py")
    if arguments[0] == "train" or "--out" in arguments:
        pytest.skip("training and its data are run in tests/moai/training and tests/test_finetune_documentation.py")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    printed = result.stdout.strip().splitlines()[0]  # by the bundled model and four real verbalizers
    assert printed in (REPO_ROOT / "README.md").read_text(encoding="utf-8")
    for option, value in zip(arguments, arguments[1:], strict=False):
        if option == "--overlay":
            assert Path(value).stat().st_size > 0


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere_when_relative(document: str) -> None:
    text = (REPO_ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (REPO_ROOT / target).exists(), f"{document} links to {target}"
