"""Reference outputs of our own, small enough to be committed: numbers that must stay when code moves.

    python tests/make_small_golden.py    # after a change that is meant: writes tests/data/golden_small/*.safetensors

tests/test_small_golden.py compares. Weights and inputs are drawn by numpy's RandomState, whose stream is frozen, from a
seed that is the tensor's name: neither the order of parameters nor the release of torch changes them. The outputs are
those of one machine (x86-64, float32); other processors and attention kernels add in another order, see TOLERANCE.
What ties the numbers to the paper's released code are the golden tests, which need MOAI_GOLDEN_DIR.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import FAMILIES, FIRST_WORD_ID, IMAGE_TOKEN_ID, build_tiny_config, build_tiny_inputs
from safetensors.torch import save_file
from torch import nn

from compressor import ARCHITECTURES, Compressor, CompressorConfig
from mixer import MixerConfig, Mixers, Routing, TokenStream
from moai import MoAIForConditionalGeneration

GOLDEN_FOLDER = Path(__file__).resolve().parent / "data" / "golden_small"
# Of outputs and of gradients' norms, in units of the largest value where that is above 1. Another attention kernel,
# which adds in another order, stays near a tenth of them; tests/test_small_golden.py tries one.
TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
PLORA_RANKS = (0, 4)
NUM_NEW_TOKENS = 5
WIDTH = 32


def draw(name: str, *shape: int) -> torch.Tensor:
    """Standard normal float32 values that depend on name and shape alone."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def fill(module: nn.Module) -> nn.Module:
    """Give every parameter its drawn values: matrices keep variance, scales lie near 1, biases near 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = draw(name, *parameter.shape)
            if parameter.ndim > 1:
                # Partial LoRA is an addition: at full size it would amplify rounding a hundredfold.
                values *= 0.1 if name.endswith("lora_b") else parameter.shape[-1] ** -0.5
            else:
                values = 0.1 * values + float(name.endswith("weight"))
            parameter.copy_(values)
    return module.eval()


def compute_compressor() -> dict[str, torch.Tensor]:
    """Latents of both architectures: words alone, padded, with a map."""
    words, patches = draw("words", 2, 6, WIDTH), draw("patches", 2, 4, WIDTH)
    mask = torch.arange(6)[None] >= torch.tensor([0, 2])[:, None]
    found = {}
    for architecture in ARCHITECTURES:
        config = CompressorConfig(architecture, WIDTH, num_latents=4, num_layers=2, num_heads=2, head_dim=16)
        module = fill(Compressor(config))
        with torch.no_grad():
            found[f"{architecture}.words"] = module(words)
            found[f"{architecture}.padded"] = module(words, mask)
            found[f"{architecture}.map"] = module(words, mask, patches)
    return found


def compute_mixer() -> dict[str, torch.Tensor]:
    """Mixed states and gate weights of two layers under several routings, with and without auxiliary tokens."""
    config = MixerConfig(hidden_size=WIDTH, layers=(0, 2), num_heads=4, rank=8)
    module = fill(Mixers(config))
    roles = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0], [0, 0, 1, 1, 2, 2, 0, 0]])
    routings = {
        "gated": Routing("gated"),
        "top_1": Routing("gated", top_k=1),
        "one_expert": Routing("random_expert", choices=((1, 2), (0, 1))),
        "given": Routing("given", weights=torch.tensor([0.5, 0.3, 0.2]).expand(1, 2, 2, 3)),
    }
    states, auxiliary = draw("states", 2, 8, WIDTH), draw("auxiliary", 2, 4, WIDTH)
    found = {}
    for name, routing in routings.items():
        for layer in config.layers:
            for case, tokens in (("with", auxiliary), ("without", None)):
                if case == "without" and name != "gated":
                    continue
                with torch.no_grad():
                    mixed, report = module(
                        states,
                        layer_idx=layer,
                        auxiliary_states=tokens,
                        image=TokenStream.from_roles(roles == 1),
                        language=TokenStream.from_roles(roles == 2),
                        routing=routing,
                    )
                found[f"{name}.{layer}.{case}.mixed"] = mixed
                found[f"{name}.{layer}.{case}.image"], found[f"{name}.{layer}.{case}.language"] = (
                    report.image.float(),
                    report.language.float(),
                )
    return found


def build_model(family: str, plora_rank: int, **options: Any) -> MoAIForConditionalGeneration:
    """A tiny model with drawn weights."""
    return fill(MoAIForConditionalGeneration(build_tiny_config(family, plora_rank=plora_rank, **options)))


def draw_inputs(config: Any) -> dict[str, torch.Tensor]:
    """A left-padded batch of two samples with images, maps and auxiliary words."""
    inputs = build_tiny_inputs(config)
    for name in ("pixel_values", "auxiliary_pixel_values"):
        inputs[name] = draw(name, *inputs[name].shape)
    for name in ("input_ids", "auxiliary_input_ids"):
        ids = inputs[name]
        random = np.random.RandomState(zlib.crc32(name.encode()))
        words = torch.from_numpy(random.randint(FIRST_WORD_ID, IMAGE_TOKEN_ID, ids.shape))
        inputs[name] = torch.where((ids >= FIRST_WORD_ID) & (ids != IMAGE_TOKEN_ID), words, ids)
    return inputs


def compute_model(model: MoAIForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Latents, hidden states, gates, logits, loss, the norm of every gradient, and greedy tokens of a whole model."""
    inputs = draw_inputs(model.config)
    labels = torch.where(inputs["mm_token_type_ids"] == 2, inputs["input_ids"], -100)
    # The loss of a mixed prompt, so that every part has a gradient: labels would keep it out of the mixture.
    outputs = model(**inputs, output_routing=True, output_hidden_states=True, suppress_image_token=True)
    loss = model.loss_function(outputs.logits, labels, vocab_size=outputs.logits.shape[-1])
    loss.backward()
    gradients = sorted((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    found = {
        "auxiliary": outputs.auxiliary_hidden_states,
        # Attention kernels leave different values where padding stands.
        "hidden": outputs.hidden_states[-1] * inputs["attention_mask"][..., None],
        "logits": outputs.logits[:, -3:, :IMAGE_TOKEN_ID],
        "loss": loss[None],
        "gradient_norms": torch.stack([gradient.norm() for _, gradient in gradients]),
    }
    for layer in outputs.routing:
        found[f"gate.{layer.layer_idx}.image"], found[f"gate.{layer.layer_idx}.language"] = layer.image, layer.language
    model.zero_grad(set_to_none=True)
    settings = {"max_new_tokens": NUM_NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    tokens = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    return {name: value.detach().contiguous().clone() for name, value in {**found, "tokens": tokens}.items()}


def list_models() -> dict[str, dict[str, Any]]:
    """Arguments of `build_model` by the file's name."""
    models = {f"model_{family}_{n}": {"family": family, "plora_rank": n} for family in FAMILIES for n in PLORA_RANKS}
    perceiver = {"family": "llama", "plora_rank": 4, "compressor": {"architecture": "perceiver"}}
    return models | {"model_perceiver": perceiver}


def compute(name: str) -> dict[str, torch.Tensor]:
    """The content of ``tests/data/golden_small/NAME.safetensors``, computed now."""
    if name == "compressor":
        return compute_compressor()
    return compute_mixer() if name == "mixer" else compute_model(build_model(**list_models()[name]))


def list_files() -> list[str]:
    """Names of all files."""
    return ["compressor", "mixer", *list_models()]


def main() -> None:
    """Write all files anew."""
    GOLDEN_FOLDER.mkdir(parents=True, exist_ok=True)
    for name in list_files():
        tensors = compute(name)
        save_file(tensors, GOLDEN_FOLDER / f"{name}.safetensors")
        largest = max(t.abs().max().item() for key, t in tensors.items() if key != "tokens")
        print(f"{name}: {len(tensors)} tensors, largest value {largest:.3g}")


if __name__ == "__main__":
    main()
