"""Checkpoints load with ``trust_remote_code=True`` in a process that never says ``import moai``, and keep doing so."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fresh_processes import run_each
from pipeline_builders import write_tiny_checkpoint

from moai.checkpoints.io.lookup import BUNDLED_FOLDER

_LOAD = """
import os, sys
os.environ["HF_MODULES_CACHE"] = {cache!r}
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers import AutoModel, AutoProcessor, AutoTokenizer
assert "moai" not in sys.modules
loaded = {door}.from_pretrained({folder!r}, trust_remote_code=True)
assert type(loaded).__module__.startswith("moai.") and "moai" in sys.modules, type(loaded)
for door in (AutoModelForImageTextToText, AutoProcessor):
    door.from_pretrained({folder!r}, trust_remote_code=True).save_pretrained({again!r})
print(type(loaded).__name__)
"""


def load(jobs: list[tuple[str, Path, Path]]) -> list[str]:
    """Load by an Auto class and save again, each in an interpreter of its own; names of the classes."""
    place = jobs[0][2].parent
    scripts = [
        _LOAD.format(door=door, folder=str(folder), again=str(again), cache=str(place / f"code-{number}"))
        for number, (door, folder, again) in enumerate(jobs)
    ]
    return run_each(scripts, place, os.environ | {"PYTHONPATH": str(BUNDLED_FOLDER.parent)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
def test_auto_class_loads_without_an_import_when_code_is_trusted(folder: Path, tmp_path: Path) -> None:
    names = load(
        [
            ("AutoModelForImageTextToText", folder, tmp_path / "again"),
            ("AutoModelForImageTextToText", tmp_path / "again", tmp_path / "third"),
            ("AutoProcessor", folder, tmp_path / "processor"),
            ("AutoTokenizer", folder, tmp_path / "tokenizer"),
        ]
    )
    assert names == ["MoAIForConditionalGeneration"] * 2 + ["MoAIProcessor", "InternLM2Tokenizer"]
    for written in ("again", "third", "processor", "tokenizer"):
        files = {path.name for path in (tmp_path / written).iterdir()}
        assert {path.name for path in folder.iterdir()} <= files
        assert not any(name.endswith(".py") and name != "moai_auto.py" for name in files)


def test_adapter_loads_without_an_import_when_code_is_trusted(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')
    from moai import MoAIForConditionalGeneration, MoAIProcessor
    from moai.checkpoints.io.adapter_files import AdapterBase, write_adapter_config
    from moai.models.moai.adapters import default_lora_config

    model = MoAIForConditionalGeneration.from_pretrained(folder)
    adapted = peft.get_peft_model(model, default_lora_config(model, 2))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    write_adapter_config(adapted.peft_config["default"], tmp_path / "adapter", AdapterBase(str(folder)))
    MoAIProcessor.from_pretrained(folder).save_pretrained(tmp_path / "adapter")
    names = load([("AutoModelForMultimodalLM", tmp_path / "adapter", tmp_path / "again")])
    assert names == ["MoAIForConditionalGeneration"] and (tmp_path / "again" / "adapter_model.safetensors").is_file()


def test_bundled_checkpoint_names_its_code_when_shipped(tmp_path: Path) -> None:
    folder = BUNDLED_FOLDER / "moai-nano"
    assert load([("AutoConfig", folder, tmp_path / "again")]) == ["MoAIConfig"]
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        ours, written = (json.loads((place / name).read_text())["auto_map"] for place in (folder, tmp_path / "again"))
        assert ours == written
    for name in ("moai_auto.py", "chat_template.jinja"):
        assert (folder / name).read_text() == (tmp_path / "again" / name).read_text()
