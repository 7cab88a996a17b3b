"""Every command and every line of Python in README.md and CONTRIBUTING.md is run, on tiny weights."""

import json
import re
import shlex
import shutil
import textwrap
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
from builders import TINY_TEXT, TINY_VISION, build_tiny_inputs
from official_checkpoints import write_release
from pipeline_builders import draw_image, write_tiny_checkpoint
from training_builders import SHORT_TRAINING
from typer.testing import CliRunner

from moai.cli import app
from moai.training.metrics_logging import read_log
from verbalizers import VerbalizationCache

REPO_ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"]
DOCUMENTS += sorted(f"docs/{file.name}" for file in (REPO_ROOT / "docs").glob("*.md"))
# README.md asks this of a model and verbalizers from the hub.
ANOTHER_MODEL = [
    'moai ask image.jpg "How many cups are there?" --model Qwen/Qwen3-VL-4B-Instruct --verbalizers published'
]


def _code_blocks(document: str, language: str) -> list[str]:
    text = (REPO_ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in blocks]


def _commands(document: str) -> list[str]:
    lines = [line.split("#")[0].strip() for block in _code_blocks(document, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


def _write_backbones(folder: Path) -> tuple[Path, Path]:
    """Two pretrained folders, as from_backbones takes them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    vision, text = folder / "clip", folder / "llama"
    CLIPVisionModel(CLIPVisionConfig(**TINY_VISION)).save_pretrained(vision)
    LlamaForCausalLM(LlamaConfig(**TINY_TEXT | {"vocab_size": 384})).save_pretrained(text)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(["dogs"], trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(text)
    return vision, text


@pytest.mark.slow
def test_readme_python_runs_when_read_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    vision, text = _write_backbones(tmp_path)
    image = tmp_path / "image.jpg"
    draw_image().save(image)
    names = {
        "checkpoints/moai-nano": checkpoint,
        "moai-nano": checkpoint,
        "image.jpg": image,
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
        if "from_backbones" in block:  # what it saved is a checkpoint that answers
            namespace["moai"].Pipeline.from_pretrained("my-moai", [])(image, "dogs?", max_new_tokens=2)


def test_contributing_verbalizer_works_when_copied() -> None:
    import verbalizers
    from verbalizers.core import registry

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
        registry._REGISTRY.pop(("light", "mean"), None)
        registry._WORDS.pop("light", None)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist_when_documented(document: str) -> None:
    makefile = (REPO_ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = [command.split()[1] for command in _commands(document) if command.startswith("make ")]
    assert named
    assert set(named) <= targets


def test_ci_runs_the_commands_that_the_readme_names() -> None:
    script = (REPO_ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [command for command in _commands("README.md") if command.startswith("make ")]
    assert commands
    assert [command for command in commands if command not in script] == []


def _moai_blocks() -> dict[str, list[str]]:
    """README.md's blocks of ``moai`` commands by the first command's name.

    Without the one about a hub's model, which tests/moai/pipeline/test_pipeline_prompted.py does in small.
    """
    blocks = [
        [line.split("#")[0].strip() for line in block.splitlines() if line.startswith("moai ")]
        for block in _code_blocks("README.md", "bash")
    ]
    blocks = [block for block in blocks if block and block != ANOTHER_MODEL]
    return {block[0].split()[1]: block for block in blocks}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the README's commands find: its examples and recipes, images of one's own, a small release as MoAI-7B."""
    for name in ("examples", "configs"):
        shutil.copytree(REPO_ROOT / name, tmp_path / name)
    (tmp_path / "your" / "images").mkdir(parents=True)
    for name in ("street.jpg", "page.png"):
        shutil.copy(REPO_ROOT / "examples" / name, tmp_path / "your" / "images")
    (shown,) = _code_blocks("README.md", "json")  # a row, and another like it
    rows = [json.loads(shown), {**json.loads(shown), "image": "images/page.png"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "your" / "questions.jsonl").write_text(text, encoding="utf-8")
    draw_image().save(tmp_path / "image.jpg")
    (tmp_path / "BK-Lee").mkdir()
    write_release(tmp_path / "BK-Lee" / "MoAI-7B")  # a folder goes before the hub's repository of that name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO_ROOT))
    monkeypatch.delenv("MOAI_MODEL", raising=False)
    return tmp_path


def _type(commands: list[str], is_told: bool = False) -> list[str]:
    """Run commands in order, training cut to two steps; what they print, on standard error too if ``is_told``."""
    printed = []
    for command in commands:
        arguments = shlex.split(command)[1:]
        options = SHORT_TRAINING if arguments[0] == "train" else ()
        result = CliRunner().invoke(app, [*arguments, *options])
        assert result.exit_code == 0, f"{command}\n{result.output}"
        printed.append(result.output if is_told else result.stdout)
    return printed


def test_readme_blocks_are_all_run_when_counted() -> None:
    """Each has a test below."""
    assert set(_moai_blocks()) == {"ask", "convert", "evaluate", "serve", "verbalize"}
    commands = [line for line in _commands("README.md") if line.startswith("moai ")]
    run = [line for block in _moai_blocks().values() for line in block]
    assert sorted(commands) == sorted([*run, *ANOTHER_MODEL])


@pytest.mark.slow
def test_readme_answers_are_printed_when_typed(workplace: Path) -> None:
    commands = _moai_blocks()["ask"]
    readme = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
    for printed in _type(commands, is_told=True):  # by the bundled model and four real verbalizers
        lines = printed.strip().splitlines()
        assert lines and all(line in readme for line in lines), printed
    assert (workplace / "overlay.png").stat().st_size > 0


@pytest.mark.slow
def test_examples_photograph_is_answered_as_printed_when_typed(workplace: Path) -> None:
    section = (REPO_ROOT / "examples" / "README.md").read_text(encoding="utf-8").split("## A photograph\n")[1]
    commands, shown = re.findall(r"^```\w*\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)[:2]
    assert "".join(_type(commands.splitlines(), is_told=True)) == shown


def test_readme_converts_and_asks_a_release_when_typed(workplace: Path) -> None:
    """The same from a hub, with the published verbalizers: tests/moai/checkpoints/test_hub.py."""
    pytest.importorskip("bitsandbytes")
    converted, answer = _type(_moai_blocks()["convert"])
    assert "tensors read, all consumed" in converted and answer.strip()
    assert {file.name for file in (workplace / "moai-7b").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "verbalizers.json",
        "README.md",
    }


@pytest.mark.slow
def test_readme_evaluates_when_typed(workplace: Path) -> None:
    (printed,) = _type([f"{command} image_size=96 per_kind=4" for command in _moai_blocks()["evaluate"]])
    assert "| existence |  | 4 |" in printed and "McNemar" in printed


@pytest.mark.slow
def test_readme_verbalizes_and_trains_both_stages_when_typed(workplace: Path) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("rapidocr")
    printed = _type(_moai_blocks()["verbalize"])
    assert [text.count("2 samples from 2 rows with 2 images") for text in printed] == [0, 1, 1]  # no scene among them
    cache = VerbalizationCache("verbalizations")
    assert {entry.path for entry in cache} == {"street.jpg", "page.png"} and "PLEASE" in cache["street.jpg"].text
    for stage in ("stage1", "stage2"):
        log = read_log(workplace / "outputs" / stage / "log.jsonl")
        assert [line["step"] for line in log] == [1, 2]
        adapter = workplace / "outputs" / stage / "final" / "adapter_model.safetensors"
        assert 1e6 < adapter.stat().st_size < 30e6


def test_links_lead_somewhere_when_relative() -> None:
    broken = []
    for document in DOCUMENTS:
        file = REPO_ROOT / document
        targets = re.findall(r"\]\(([^)#]+)[)#]", file.read_text(encoding="utf-8"))
        broken += [(document, at) for at in targets if "://" not in at and not (file.parent / at).exists()]
    assert broken == []


def test_modules_are_there_when_documented() -> None:
    run, named = set(), set()
    for document in DOCUMENTS:
        text = (REPO_ROOT / document).read_text(encoding="utf-8")
        run |= set(re.findall(r"python -m ((?:moai|verbalizers|recipes|benchmarks)(?:\.\w+)*)", text))
        named |= set(re.findall(r"`((?:moai|verbalizers|recipes|benchmarks|compressor|mixer)(?:\.\w+)+)[`(]", text))
    for name in sorted(run):
        assert find_spec(name) is not None, name
    for name in sorted(named):
        if not name.endswith(".json"):
            assert resolve_name(name) is not None
