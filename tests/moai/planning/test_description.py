"""`moai info` tells of every model what it is, and of a wrong one what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from emu_builders import save_emu
from flamingo_builders import save_flamingo
from PIL import Image
from prismer_builders import save_prismer
from prompted_builders import FAMILIES, save_prompted
from tcl_builders import build_tcl_model
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from moai.checkpoints.io.lookup import find_checkpoint
from moai.cli import app


def save_tcl(folder: Path) -> Path:
    build_tcl_model().save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[Path], object]] = {
    "moai": lambda folder: find_checkpoint("moai-nano"),
    "emu": lambda folder: save_emu(folder, draws=True),
    "flamingo": save_flamingo,
    "prismer": lambda folder: save_prismer(folder) or folder,
    "tcl": save_tcl,
    **{family: lambda folder, family=family: save_prompted(folder, family) for family in FAMILIES},
}


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["info", *map(str, arguments)])
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    return result.stdout if code == 0 else result.stderr


@pytest.mark.parametrize("name", MODELS)
def test_info_tells_what_a_checkpoint_is_when_it_is_of_any_model(name: str, tmp_path: Path) -> None:
    folder = MODELS[name](tmp_path)
    report = json.loads(run(folder, "--json"))
    assert report["model"].startswith(f"{name} (")
    assert report["weights"]["files"] == 1 and report["weights"]["bytes"] > 0 and report["parts"]
    if name == "tcl":
        assert "moai evaluate" in report["purpose"] and "options" not in report
    else:
        model = AutoModelForImageTextToText.from_pretrained(folder)
        assert report["parameters"]["together"] == sum(parameter.numel() for parameter in model.parameters())
        assert report["options"]["moai train"] == "yes"
        assert (report["options"]["bits"] == "16, 8, 4") == (name in ("moai", *FAMILIES))
        assert ("images" in report["options"]["answers with"]) == (name == "emu")
        beside = {"emu": "visual_decoder", "prismer": "label_encoder"}
        assert report["weights"].get("beside") == beside.get(name)
    text = run(folder)
    assert f"model: {report['model']}" in text and ("domain: synthetic" in text) == (name == "moai")


@pytest.mark.parametrize("kind", ["LORA", "P_TUNING"])
def test_info_tells_base_and_size_when_it_is_an_adapter(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = save_prompted(tmp_path / "base", "llava")
    model = AutoModelForImageTextToText.from_pretrained(base)
    config = {
        "LORA": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"]),
        "P_TUNING": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    }[kind]()
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    report = json.loads(run(tmp_path / "adapter", "--json"))
    assert report["adapter"]["base"] == base and report["adapter"]["peft_type"] == kind
    assert report["adapter"]["r" if kind == "LORA" else "num_virtual_tokens"] == (3 if kind == "LORA" else 5)
    assert report["model"].startswith("llava (") and report["weights"]["bytes"] < 100_000
    assert "base" in run(tmp_path / "adapter")


def test_info_names_the_next_step_when_there_is_nothing_to_describe(tmp_path: Path) -> None:
    assert "got 'nowhere', which does not exist" in run("nowhere", code=1)
    (tmp_path / "config.json").write_text('{"model_type": "psgtr"}', encoding="utf-8")
    assert "verbalizers.json" in run(tmp_path, code=1)
    save_prompted(tmp_path / "llava", "llava")
    file = tmp_path / "llava" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert "Fetch it again" in run(tmp_path / "llava", code=1)
    file.unlink()
    assert json.loads(run(tmp_path / "llava", "--json"))["weights"] == "not here"


def test_commands_say_what_a_model_is_for_when_it_answers_nothing(tmp_path: Path) -> None:
    build_tcl_model().save_pretrained(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = CliRunner().invoke(app, ["ask", str(tmp_path / "a.png"), "What?", "--model", str(tmp_path)])
    assert result.exit_code == 1 and "moai evaluate" in result.stderr and "moai convert" not in result.stderr
