"""`moai convert` on a PSGTR checkpoint in the published layout: the door to the scene-graph verbalizer."""

import json

import pytest
import torch
from psgtr_checkpoints import build_official_psgtr
from safetensors.torch import load_file, save_file

from moai.checkpoints.convert import available_conversions, convert
from verbalizers import build_verbalizer
from verbalizers.psgtr import PSGTRForSceneGraph


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The published file, and what it holds."""
    _, state = build_official_psgtr()
    path = tmp_path_factory.mktemp("psgtr") / "epoch_60.pth"
    torch.save({"meta": {"epoch": 60, "CLASSES": ("person",)}, "state_dict": state, "optimizer": {"state": {}}}, path)
    return path, state


def test_command_line_converts_a_psgtr_checkpoint_when_given_its_file(checkpoint, tmp_path):
    from typer.testing import CliRunner

    from moai.cli import app

    path, state = checkpoint
    result = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.strip().splitlines()[-1])
    assert report["kind"] == "psgtr" and report["num_source_tensors"] == len(state)
    assert set(report["families"]) == {"backbone", "head"} and report["dtype"] == "float32"
    model = PSGTRForSceneGraph.from_pretrained(tmp_path / "out")
    num_written = sum(values.numel() for values in model.state_dict().values())
    assert sum(report["families"].values()) == report["num_parameters"] == num_written
    assert torch.equal(model.state_dict()["head.relation_classifier.weight"], state["bbox_head.rel_cls_embed.weight"])
    verbalizer = build_verbalizer("scene_graph", checkpoint=tmp_path / "out", device="cpu")
    assert len(verbalizer.load().names) == 133

    again = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "out")])
    assert again.exit_code == 1 and "--force" in again.stderr


def test_convert_finds_the_kind_when_file_is_safetensors(checkpoint, tmp_path):
    _, state = checkpoint
    save_file(state, tmp_path / "psgtr.safetensors")
    report = convert(tmp_path / "psgtr.safetensors", tmp_path / "out", dtype="float16")
    assert report.kind == "psgtr" and report.dtype == "float16" and "psgtr" in available_conversions()
    stored = load_file(tmp_path / "out" / report.files[0])
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    assert "scene_graph" in str(report)


def test_convert_runs_no_code_when_checkpoint_holds_some(checkpoint, tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    _, state = checkpoint
    torch.save({"state_dict": state, "hook": Touch()}, tmp_path / "unsafe.pth")
    with pytest.raises(ValueError, match="safetensors"):
        convert(tmp_path / "unsafe.pth", tmp_path / "out")
    assert not (tmp_path / "touched").exists() and not (tmp_path / "out").exists()


def test_convert_says_what_is_wrong_when_file_is_no_psgtr(checkpoint, tmp_path):
    _, state = checkpoint
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(ValueError, match="no whole safetensors"):
        convert(tmp_path / "torn.safetensors", tmp_path / "out")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="tensors by name"):
        convert(tmp_path / "tensor.pth", tmp_path / "out")
    save_file({"bbox_head.rel_cls_embed.weight": torch.ones(2, 2)}, tmp_path / "motifs.safetensors")
    with pytest.raises(ValueError, match="none of the kinds"):
        convert(tmp_path / "motifs.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="other layouts"):
        convert(tmp_path / "motifs.safetensors", tmp_path / "out", kind="psgtr")
    save_file({k: v for k, v in state.items() if not k.startswith("backbone.")}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="no backbone"):
        convert(tmp_path / "head.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
