"""The comparison of pre-stages at a hundredth of its size."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')
pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai.settings import load_settings  # noqa: E402
from recipes.prestages import PROMPTED, TOWERS, PrestageSettings, run_prestages  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def tiny_settings(**changes) -> PrestageSettings:
    recipe = yaml.safe_load((ROOT / "configs" / "prestages.yaml").read_text(encoding="utf-8"))
    recipe["seeds"] = [0]
    for stage in (recipe[name] for name in ("tcl", "data2vec", "later", "prompt")):
        stage["optimization"] |= {"num_steps": 1, "batch_size": 4, "micro_batch_size": 4}
    recipe["tcl"] |= {"queue_size": 8}
    for data in (*(recipe[name]["data"] for name in ("tcl", "data2vec", "later", "prompt")), recipe["retrieval"]):
        for source in data["sources"]:
            source["scenes"]["length"] = 24
    recipe["test"] |= {"per_kind": 2, "kinds": ["existence", "localisation"]}
    recipe["probe"] |= {"num_train": 40, "num_test": 30, "fewest": 3}
    return load_settings(PrestageSettings, recipe | changes)


@pytest.mark.slow
def test_towers_reach_moai_nano_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    table = run_prestages(tiny_settings(), tmp_path)
    folder = tmp_path / "seed-0"
    made = {name: load_file(folder / f"later-{name}" / "final" / "model.safetensors") for name in TOWERS}
    key = "model.vision_tower.embeddings.patch_embedding.weight"
    before = load_file(folder / "data2vec" / "final" / "model.safetensors")["embeddings.patch_embedding.weight"]
    assert (made["data2vec"][key].float() - before).abs().max() < 0.02
    assert not torch.equal(made["scratch"][key], made["data2vec"][key])
    assert not torch.equal(made["tcl"][key], made["data2vec"][key])
    assert all(f"| {name} |" in table for name in (*TOWERS, PROMPTED)) and "image to text" in table
    file = folder / "answers-tcl-none.json"
    assert {*json.loads(file.read_text())} == {"existence", "localisation"}
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json") if path != file}
    file.unlink()
    (tmp_path / "table.md").unlink()
    assert run_prestages(tiny_settings(), tmp_path) == table
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    with pytest.raises(ValueError, match="got others in seeds"):
        run_prestages(tiny_settings(seeds=[0, 1]), tmp_path)
