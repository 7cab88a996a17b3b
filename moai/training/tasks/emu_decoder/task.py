"""Training of Emu's visual decoder: what noise lies over an image's latents, told from its embeddings."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from moai.data.image_samples import CaptionedImage, ImageDataset
from moai.models.emu.modeling_emu import EmuForConditionalGeneration
from moai.models.emu.processing_emu import EmuProcessor
from moai.models.emu.visual_decoder import VisualDecoder

from ...task import Batch
from ..image_task import ImageTask
from .settings import EmuDecoderSettings

__all__ = ["EmuDecoderTask"]

#: Bytes of embeddings and latents that are kept: captions and images come back every epoch.
_MOST_KEPT = 256 * 2**20


class _Collator:
    """Images as the autoencoder reads them, what each is learned from, and its random numbers.

    Args:
        settings: The recipe.
        decoder: Of its sizes.
        image_processor: The Emu's.
    """

    def __init__(self, settings: EmuDecoderSettings, decoder: VisualDecoder, image_processor: Any) -> None:
        self.settings, self.image_processor = settings, image_processor
        self.side, self.num_timesteps = decoder.image_size, decoder.scheduler.config.num_train_timesteps
        sizes = decoder.unet.config
        self.latents = (sizes.in_channels, sizes.sample_size, sizes.sample_size)

    def __call__(self, drawn: list[tuple[CaptionedImage, Random]]) -> dict[str, Any]:
        """Inputs of a micro-batch."""
        pixels, noises, timesteps, sources = [], [], [], []
        for sample, rng in drawn:
            image = sample.image.resize((self.side, self.side), Image.Resampling.BICUBIC)
            pixels.append(torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1))
            timesteps.append(rng.randrange(self.num_timesteps))
            is_dropped = rng.random() < self.settings.drop_share
            generator = torch.Generator().manual_seed(rng.getrandbits(62))
            noises.append(torch.randn(2, *self.latents, generator=generator))
            caption = rng.choice(sample.captions) if sample.captions else ""
            sources.append("" if is_dropped else caption if self.settings.condition == "caption" else sample.image)
        noise, posterior_noise = torch.stack(noises).unbind(1)
        return {
            "pixel_values": torch.stack(pixels),
            "noise": noise,
            "posterior_noise": posterior_noise,
            "timesteps": torch.tensor(timesteps),
            "sources": [s if isinstance(s, str) else self._look(s) for s in sources],
        }

    def _look(self, image: Image.Image) -> torch.Tensor:
        return self.image_processor(images=[image], return_tensors="pt")["pixel_values"]


class EmuDecoderTask(ImageTask):
    """A run of the visual decoder: its U-Net learns, Emu and autoencoder rest.

    Args:
        settings: The recipe.
        decoder: What draws.
        emu: What it draws for.
        processor: Its processor.
        dataset: Captioned images.
        validation: Those that are not learned from.
        start: Hashes of the files that all was loaded from.
    """

    def __init__(
        self,
        settings: EmuDecoderSettings,
        decoder: VisualDecoder,
        emu: EmuForConditionalGeneration,
        processor: EmuProcessor,
        dataset: ImageDataset,
        validation: ImageDataset | None,
        start: Mapping[str, str],
    ) -> None:
        collator = _Collator(settings, decoder, processor.image_processor)
        super().__init__(settings, dataset, collator, validation, start)
        self.model, self.vae, self.emu = decoder.unet, decoder.vae, emu
        self.vae.requires_grad_(False)
        self.emu.requires_grad_(False)
        self.processor, self.scheduler = processor, decoder.scheduler
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._num_kept = 0

    def set_training_mode(self) -> None:
        """The U-Net alone."""
        self.train()
        self.vae.eval()
        self.emu.eval()

    def make_batch(self, inputs: dict[str, Any], step: int) -> Batch:
        """See :meth:`.image_task.ImageTask.make_batch`."""
        return Batch(inputs, float(len(inputs["timesteps"])))

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`moai.training.task.Task.forward`; the loss counts images."""
        with torch.no_grad():
            condition = self.predict(inputs["sources"])
            mean, std = torch.cat([self._compress(image[None]) for image in inputs["pixel_values"]]).chunk(2, dim=1)
            latents = (mean + std * inputs["posterior_noise"]) * self.vae.config.scaling_factor
            noise, timesteps = inputs["noise"], inputs["timesteps"]
            given = self.scheduler.add_noise(latents, noise, timesteps)
            wanted = noise
            if self.scheduler.config.prediction_type == "v_prediction":
                wanted = self._velocity(latents, noise, timesteps)
        said = self.model(given, timesteps, encoder_hidden_states=condition).sample
        return F.mse_loss(said.float(), wanted, reduction="none").flatten(1).mean(dim=1).sum(), {}

    def _velocity(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        kept = self.scheduler.alphas_cumprod.to(noise)[timesteps].view(-1, 1, 1, 1)
        return kept.sqrt() * noise - (1 - kept).sqrt() * latents

    def predict(self, sources: Sequence[str | torch.Tensor]) -> torch.Tensor:
        """Embeddings to learn from.

        Args:
            sources: A caption; "" = the empty prompt; or the Emu's ``(1, 3, H, W)`` pixels of an image.

        Returns:
            ``(B, num_image_tokens, D)`` float32.
        """
        return torch.cat([self._draw_for(s) if isinstance(s, str) else self._encode(s) for s in sources])

    # What rests says the same of a text or an image every time: it is kept. Each is computed alone, for beside others
    # it would differ in its last bits, and a run that goes on, with nothing kept yet, from an unbroken one.

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._keep(_digest(pixels), lambda: self.emu.model.encode_images(pixels))

    def _compress(self, pixels: torch.Tensor) -> torch.Tensor:
        """Mean and standard deviation of an image's latents, ``(1, 2 C, h, w)``."""

        def compute() -> torch.Tensor:
            found = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
            return torch.cat([found.mean, found.std], dim=1)

        return self._keep(_digest(pixels), compute)

    def _draw_for(self, caption: str) -> torch.Tensor:
        def compute() -> torch.Tensor:
            text = self.processor.guard.escape(caption)
            ids = [*self.processor.encode_prompt(text), self.processor.image_token_ids[0]]
            return self.emu.generate_image(torch.tensor([ids], device=next(self.emu.parameters()).device))

        return self._keep(f"caption {caption}", compute)

    def _keep(self, key: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return found
        self._kept[key] = found = compute().float().clone()
        self._num_kept += found.nbytes
        while self._num_kept > _MOST_KEPT and len(self._kept) > 1:
            self._num_kept -= self._kept.popitem(last=False)[1].nbytes
        return found


def _digest(pixels: torch.Tensor) -> str:
    return f"{tuple(pixels.shape)} {hashlib.sha256(pixels.cpu().numpy().tobytes()).hexdigest()}"
