"""What the tiny Emu is made from: a decoder that knows the captions' words, and an autoencoder of small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from verbalizers.core.durable_files import atomic_folder

from .config import AutoencoderSettings, TinyEmuConfig
from .world import list_captions, write_caption

__all__ = ["train_autoencoder", "write_decoder"]

_REPORT_EVERY = 50


def write_decoder(config: TinyEmuConfig, folder: Path) -> None:
    """Write a new Llama and its tokenizer, one token per word, once."""
    if folder.is_dir():
        return
    every = [write_caption(*said) for part in list_captions(config.world) for said in part]
    words = ["<unk>", "<s>", "</s>", "[PAD]", *sorted({word for caption in every for word in caption.split()})]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="[PAD]"
    )
    torch.manual_seed(config.seed)
    fields = {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    model = LlamaForCausalLM(LlamaConfig(**fields, **config.decoder))
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def train_autoencoder(chosen: AutoencoderSettings, images: Path, folder: Path, seed: int) -> None:
    """Train an autoencoder on crops of images and write it, once; a broken run begins anew.

    Args:
        chosen: How.
        images: Folder of images of one size.
        folder: Receives the model, whose ``scaling_factor`` makes latents of variance 1.
        seed: Of weights and crops.
    """
    from diffusers import AutoencoderKL

    if folder.is_dir():
        return
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in sorted(images.glob("*.png"))])
    every = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    torch.manual_seed(seed)
    model, side = AutoencoderKL(**chosen.fields, sample_size=every.shape[-1]), every.shape[-1] - chosen.crop + 1
    optimizer = torch.optim.AdamW(model.parameters(), chosen.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(chosen.num_steps):
        optimizer.param_groups[0]["lr"] = chosen.learning_rate * (1 - step / chosen.num_steps)
        places = torch.randint(len(every), (chosen.batch_size,), generator=generator).tolist()
        corners = torch.randint(side, (chosen.batch_size, 2), generator=generator).tolist()
        crops = [
            every[n, :, y : y + chosen.crop, x : x + chosen.crop] for n, (y, x) in zip(places, corners, strict=True)
        ]
        batch = torch.stack(crops).float() / 127.5 - 1
        found = model.encode(batch).latent_dist
        loss = F.l1_loss(model.decode(found.sample(generator)).sample, batch)
        optimizer.zero_grad()
        (loss + chosen.kl_weight * found.kl().mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % _REPORT_EVERY == 0 or step == chosen.num_steps - 1:
            print(f"autoencoder {step + 1}/{chosen.num_steps}: mean error {loss.item():.4f}", flush=True)
    with torch.no_grad():
        sample = model.eval().encode(every[:256].float() / 127.5 - 1).latent_dist.mode()
    model.register_to_config(scaling_factor=float(1 / sample.std()))
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
