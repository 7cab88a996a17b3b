"""Averaged checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_builders import write_tiny_checkpoint
from transformers import AutoModelForImageTextToText, AutoProcessor

from moai.training.averaging import average_checkpoints, main


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three tiny models; the third has other latents."""
    folder = tmp_path_factory.mktemp("models")
    first = write_tiny_checkpoint(folder / "first", domain="drawings")
    model = AutoModelForImageTextToText.from_pretrained(first, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.config.domain = None
    model.half().save_pretrained(folder / "second")
    compressor = dict(model.config.compressor) | {"num_latents": 6}
    write_tiny_checkpoint(folder / "third", compressor=compressor)
    return [first, folder / "second", folder / "third"]


def test_average_is_the_mean_and_loads_when_written(checkpoints: list[Path], tmp_path: Path, capsys) -> None:
    first, second, _ = checkpoints
    main([str(first), str(second), "--out", str(tmp_path / "mean")])
    assert "the mean of 2" in capsys.readouterr().out
    weights = [load_file(folder / "model.safetensors") for folder in (first, second, tmp_path / "mean")]
    for name, value in weights[2].items():
        assert value.dtype == weights[0][name].dtype
        torch.testing.assert_close(value.float(), (weights[0][name].float() + weights[1][name].float()) / 2)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "mean").config.domain == "drawings"
    AutoProcessor.from_pretrained(tmp_path / "mean")


def test_average_is_refused_when_models_do_not_fit(checkpoints: list[Path], tmp_path: Path, capsys) -> None:
    first, second, third = checkpoints
    with pytest.raises(ValueError, match="differ in.*compressor"):
        average_checkpoints([first, third], tmp_path / "mean")
    with pytest.raises(ValueError, match="two or more"):
        average_checkpoints([first], tmp_path / "mean")
    (second / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit):
        main([str(first), str(second), "--out", str(tmp_path / "mean")])
    assert "Merge it first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
