"""Writing of a stage's result: an adapter folder or a whole model; both load with ``from_pretrained``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from moai.checkpoints.io.adapter_files import AdapterBase, describe_base, write_adapter_config
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from verbalizers.core.durable_files import atomic_folder

from .checkpoints import whole_tensor
from .model_building import BuiltModel, base_of, copy_verbalizer_settings, load_whole
from .train_settings import TrainSettings

__all__ = ["gather_result", "write_result"]

_ADAPTER_README = """---
base_model: {base}
library_name: peft
---

# A MoAI adapter

LoRA of the decoder, and whole: {parts}. Trained in stage {stage} by `python -m moai.training`.

```python
import moai
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this/folder")
processor = AutoProcessor.from_pretrained("this/folder")
```

The base model is read from `{base}` (a path counts from this folder; both can be moved together); where it lies
elsewhere, change `base_model_name_or_path` in adapter_config.json. `config.json` is the base model's.
"""


def gather_result(model: nn.Module, settings: TrainSettings) -> dict[str, torch.Tensor]:
    """Gather the result's tensors on the CPU. All ranks must call it.

    Args:
        model: What was trained, without a distributed wrapper around it.
        settings: The recipe.
    """
    if settings.train.decoder == "lora":
        return {
            name: whole_tensor(value)
            for name, value in model.state_dict(keep_vars=True).items()  # ZeRO marks parameters, not their data
            if "lora_" in name or ".modules_to_save." in name
        }
    return {name: whole_tensor(value) for name, value in model.named_parameters() if value.requires_grad}


def write_result(
    built: BuiltModel,
    state: Mapping[str, torch.Tensor],
    settings: TrainSettings,
    verbalizers: VerbalizerSettings | None = None,
) -> Path:
    """Write ``<output_folder>/final``, whole or not at all. One rank calls it.

    Args:
        built: What was trained, its processor, and where it began.
        state: From :func:`gather_result`.
        settings: The recipe.
        verbalizers: Whose findings it read, saved beside it; None = as where it began.

    Returns:
        The folder.
    """
    final = settings.output_folder / "final"
    is_adapter = settings.saving.output == "adapter" or (
        settings.saving.output is None and settings.train.decoder == "lora"
    )
    with atomic_folder(final, force=True) as folder:
        if is_adapter:
            _write_adapter(built, state, folder, settings)
        else:
            _write_merged(built, state, folder, settings)
        built.processor.save_pretrained(folder)
        if verbalizers is not None:
            verbalizers.save(folder)
        else:
            copy_verbalizer_settings(built.start, folder)
    return final


def _write_adapter(built: BuiltModel, state: Mapping[str, torch.Tensor], folder: Path, settings: TrainSettings) -> None:
    if settings.saving.dtype:
        state = {name: value.to(getattr(torch, settings.saving.dtype)) for name, value in state.items()}
    # Embeddings are frozen; without the flag PEFT asks the hub whether the vocabulary has grown.
    built.model.save_pretrained(folder, state_dict=dict(state), save_embedding_layers=False)
    config, base = built.model.peft_config["default"], AdapterBase(built.base)
    write_adapter_config(config, folder, base)
    parts = ", ".join(config.modules_to_save or ()) or "nothing"
    named = describe_base(base, folder)["base_model_name_or_path"]
    text = _ADAPTER_README.format(base=named, parts=parts, stage=settings.stage)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _write_merged(built: BuiltModel, state: Mapping[str, torch.Tensor], folder: Path, settings: TrainSettings) -> None:
    """Put what was trained into the base model, read again: unquantised, not spread over ranks, in float32."""
    start, adapter = base_of(settings)
    whole = load_whole(start, torch.float32)
    stored = getattr(torch, settings.saving.dtype) if settings.saving.dtype else _stored_dtype(start)
    if settings.train.decoder == "lora":
        from peft import PeftModel

        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _write_adapter(built, state, Path(temporary), settings)
            whole = PeftModel.from_pretrained(whole, temporary).merge_and_unload()
    else:
        if adapter is not None:
            from peft import PeftModel

            whole = PeftModel.from_pretrained(whole, adapter).merge_and_unload()
        unexpected = whole.load_state_dict(dict(state), strict=False).unexpected_keys
        assert not unexpected, unexpected
    whole.to(stored).save_pretrained(folder)


def _stored_dtype(start: str) -> torch.dtype:
    from moai.models.moai.configuration_moai import MoAIConfig

    dtype = MoAIConfig.from_pretrained(start).dtype
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype or "float32"))
