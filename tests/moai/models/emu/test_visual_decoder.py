"""Drawing equals the released pipeline's, call by call; sizes are read from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emu_builders import WIDTH, build_visual_decoder
from PIL import Image
from sibling_outputs import load_sibling, with_prefix
from torch.testing import assert_close

from moai.models.emu.image_processing_emu import EmuImageProcessor
from moai.models.emu.visual_decoder import VisualDecoder
from moai.processing.pixel_values import compute_pixel_values

pytest.importorskip("diffusers", reason="the extra `generate` is not installed")


def _load(golden_dir: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], VisualDecoder]:
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    account, tensors = load_sibling(golden_dir, "emu_decoder")
    args = account["args"]
    unet, vae = UNet2DConditionModel(**args["unet"]), AutoencoderKL(**args["vae"])
    unet.load_state_dict(with_prefix(tensors, "sd.unet."))
    vae.load_state_dict(with_prefix(tensors, "sd.vae."))
    assert vae.config.scaling_factor == args["scaling_factor"]
    settings = {name: value for name, value in args["scheduler"].items() if name != "class_"}
    decoder = VisualDecoder(unet, vae, PNDMScheduler(**settings)).eval()
    assert decoder.scale == args["vae_scale_factor"]
    return account, tensors, decoder


@pytest.mark.parametrize("run", ["cfg", "nocfg"])
def test_drawing_equals_release(golden_dir: Path, run: str) -> None:
    account, tensors, decoder = _load(golden_dir)
    settings = account["runs"][run]
    expected = with_prefix(tensors, f"{run}.")
    steps: list[dict[str, torch.Tensor]] = []
    drawn = {
        "height": account["args"]["height"], "width": account["args"]["width"], "latents": tensors["latents0"],
        "num_inference_steps": settings["num_inference_steps"], "guidance_scale": settings["guidance_scale"],
    }  # fmt: skip
    embeds = tensors["cond_embeds"]
    pixels = decoder(embeds[:1], embeds[1:], **drawn, on_step=steps.append)
    assert torch.equal(tensors["scheduler.alphas_cumprod"], decoder.scheduler.alphas_cumprod)
    assert decoder.scheduler.timesteps.tolist() == settings["timesteps"] == expected["timesteps"].tolist()
    assert len(steps) == settings["n_unet_calls"] == settings["num_inference_steps"] + 1
    assert torch.equal(steps[0]["unet_in"], expected["unet_in"])
    near = {"unet_out": 1e-4, "noise_pred": 5e-4, "latents": 2e-3}  # the account's own tolerances
    for name, tolerance in near.items():
        assert_close(torch.stack([step[name] for step in steps]), expected[name], atol=tolerance, rtol=0)
    assert_close(pixels, expected["decoded"], atol=1e-4, rtol=0)
    (image,) = decoder.draw(embeds[:1], embeds[1:], **drawn)
    assert np.abs(np.asarray(image).astype(int) - expected["pil"].numpy().astype(int)).max() <= 1


def test_images_of_a_prompt_equal_release_before_the_tower(golden_dir: Path) -> None:
    account, tensors = load_sibling(golden_dir, "emu_decoder")
    side = account["args"]["eva_size"]
    images = [Image.fromarray(tensors[f"prep.image{index}_u8"].numpy()) for index in (0, 1)]
    pixels = compute_pixel_values(EmuImageProcessor(size={"height": side, "width": side}), images)
    assert_close(torch.from_numpy(pixels), tensors["prep.images"], atol=1e-5, rtol=0)


def test_several_images_are_drawn_at_once_as_one_by_one(tmp_path: Path) -> None:
    build_visual_decoder().save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and len(list(tmp_path.rglob("*.safetensors"))) == 2
    decoder = VisualDecoder.from_pretrained(tmp_path)
    embeds, noise = torch.randn(2, 4, WIDTH), torch.randn(2, 4, 8, 8)
    empty = torch.randn(1, 4, WIDTH)
    together = decoder(embeds, empty, num_inference_steps=3, latents=noise)
    for row in (0, 1):
        alone = decoder(embeds[row][None], empty, num_inference_steps=3, latents=noise[row][None])
        assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)
    assert decoder.image_size == together.shape[1] == 16


def test_errors_say_what_is_expected(tmp_path: Path) -> None:
    decoder, embeds = build_visual_decoder(), torch.randn(1, 4, WIDTH)
    with pytest.raises(ValueError, match="empty prompt"):
        decoder(embeds)
    with pytest.raises(ValueError, match="multiples of 2"):
        decoder(embeds, guidance_scale=1.0, height=15)
    with pytest.raises(ValueError, match="unet"):
        VisualDecoder.from_pretrained(tmp_path)


def test_error_names_the_line_to_type_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moai.import_utils._is_package_available", lambda package: package != "diffusers")
    with pytest.raises(ImportError, match=r'pip install "moai-vlm\[generate\]"'):
        VisualDecoder.from_pretrained(tmp_path)
