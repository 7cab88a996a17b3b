"""Visual decoder: an image from its embeddings, by a diffusion model in an autoencoder's latents (diffusers)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import nn

from ...import_utils import require

__all__ = ["VisualDecoder"]

#: Folders of its parts, as in the released checkpoint, and the class of each in diffusers.
PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "PNDMScheduler"}


class VisualDecoder(nn.Module):
    """Stable Diffusion's parts, conditioned by an image's embeddings in place of a text encoder's.

    Args:
        unet: Predicts noise; its ``cross_attention_dim`` is the width of the embeddings.
        vae: Latents to pixels and back.
        scheduler: Steps from noise to latents.
    """

    def __init__(self, unet: nn.Module, vae: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.unet, self.vae, self.scheduler = unet, vae, scheduler

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype | None = None) -> Self:
        """Load the parts from ``unet/``, ``vae/`` and ``scheduler/``, safetensors only.

        Args:
            folder: Holds the three folders.
            dtype: Of the weights; None = float32.

        Raises:
            ImportError: diffusers is not installed.
            ValueError: A part is missing or not whole.
        """
        require("diffusers", purpose="Drawing")
        import diffusers

        parts: dict[str, Any] = {}
        for name, class_name in PARTS.items():
            settings = {} if name == "scheduler" else {"use_safetensors": True, "torch_dtype": dtype or torch.float32}
            try:
                parts[name] = getattr(diffusers, class_name).from_pretrained(Path(folder) / name, **settings)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"expected the visual decoder's {name} in {Path(folder) / name}, got none that can be read: "
                    f"{str(error).splitlines()[0]} Convert or download the checkpoint again."
                ) from error
        return cls(**parts).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the three folders for :meth:`from_pretrained`."""
        for name in PARTS:
            getattr(self, name).save_pretrained(Path(folder) / name)

    @property
    def scale(self) -> int:
        """Pixels of the image per latent, in each direction."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Height and width that the model was trained for, in pixels."""
        return int(self.unet.config.sample_size) * self.scale

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    @torch.inference_mode()
    def forward(
        self,
        embeds: torch.Tensor,
        unconditional: torch.Tensor | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        on_step: Callable[[dict[str, torch.Tensor]], None] | None = None,
    ) -> torch.Tensor:
        """Draw images.

        Args:
            embeds: ``(B, N, D)`` of the images to draw, from ``generate_image``.
            unconditional: ``(B, N, D)`` or ``(1, N, D)`` of the empty prompt, which guidance leads away from.
            height: In pixels; None = :attr:`image_size`.
            width: Likewise.
            num_inference_steps: Steps; PNDM calls the U-Net once more.
            guidance_scale: Without effect up to 1.
            generator: Of the first noise, on the CPU; None = torch's own.
            latents: ``(B, C, height / scale, width / scale)`` first noise instead.
            on_step: Called after each step with ``unet_in``, ``unet_out``, ``noise_pred`` and ``latents``.

        Returns:
            ``(B, height, width, 3)`` float32 in 0..1.

        Raises:
            ValueError: Guidance without the empty prompt, or a size that is no multiple of the latents' scale.
        """
        is_guided = guidance_scale > 1
        if is_guided and unconditional is None:
            raise ValueError(
                f"expected the embeddings of the empty prompt with a guidance scale of {guidance_scale}, got none. "
                "Pass `unconditional`, or a scale of 1."
            )
        height, width = height or self.image_size, width or self.image_size
        if height % self.scale or width % self.scale:
            raise ValueError(
                f"expected height and width as multiples of {self.scale} pixels, got {height} and {width}."
            )
        if num_inference_steps < 1:
            raise ValueError(f"expected at least one step, got {num_inference_steps}.")
        dtype = self.unet.dtype
        if latents is None:
            shape = (len(embeds), self.unet.config.in_channels, height // self.scale, width // self.scale)
            latents = torch.randn(shape, generator=generator)
        latents = latents.to(self.device, dtype)
        condition = embeds.to(self.device, dtype)
        if is_guided:  # the condition stands first, the empty prompt second
            condition = torch.cat([condition, unconditional.to(self.device, dtype).expand(len(embeds), -1, -1)])
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        for timestep in self.scheduler.timesteps:
            given = torch.cat([latents] * 2) if is_guided else latents
            given = self.scheduler.scale_model_input(given, timestep)
            found = self.unet(given, timestep, encoder_hidden_states=condition).sample
            noise = found
            if is_guided:
                conditional, empty = found.chunk(2)
                noise = empty + guidance_scale * (conditional - empty)
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
            if on_step is not None:
                on_step({"unet_in": given, "unet_out": found, "noise_pred": noise, "latents": latents})
        pixels = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()

    def draw(
        self, embeds: torch.Tensor, unconditional: torch.Tensor | None = None, **settings: Any
    ) -> list[Image.Image]:
        """Like :meth:`forward`, as images."""
        pixels = self(embeds, unconditional, **settings).cpu().numpy()
        return [Image.fromarray(values) for values in (255 * pixels).round().astype(np.uint8)]
