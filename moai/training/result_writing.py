"""Writing of a stage's result: an adapter folder or a whole model; both load with ``from_pretrained``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig

from moai.checkpoints.io.adapter_files import ADAPTER_WEIGHTS, AdapterBase, describe_base, write_adapter_config
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.models.answering import load_whole
from verbalizers.core.durable_files import atomic_folder

from .checkpoints import trained_tensors, whole_tensor
from .model_building import BuiltModel, base_of, copy_verbalizer_settings, find_answering
from .train_settings import TrainSettings
from .trained_parts import base_model

__all__ = ["gather_result", "write_result"]

_ADAPTER_README = """---
base_model: {base}
library_name: peft
---

# An adapter

{kind} of a {model_type}, and whole: {parts}. Trained by `moai train`.

```python
from moai import Pipeline

pipeline = Pipeline.from_pretrained("this/folder")
```

The base model is read from `{base}` (a path counts from this folder; both can be moved together); where it lies
elsewhere, change `base_model_name_or_path` in adapter_config.json. `config.json` is the base model's.
"""


def gather_result(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gather the result's tensors on the CPU: the adapter as PEFT saves it, or all that was trained.

    All ranks must call it.

    Args:
        model: What was trained, without a distributed wrapper around it.
    """
    if not hasattr(model, "peft_config"):
        return {name: whole_tensor(value) for name, value in trained_tensors(model).items()}
    from peft import get_peft_model_state_dict

    # ZeRO marks parameters, not their data. Embeddings are frozen; without the flag PEFT asks the hub whether the
    # vocabulary has grown.
    state = model.state_dict(keep_vars=True)
    kept = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    return {name: whole_tensor(value) for name, value in kept.items()}


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
    with atomic_folder(final, force=True) as folder:
        if settings.writes_adapter:
            _write_adapter(built, state, folder, settings.saving.dtype)
        else:
            _write_merged(built, state, folder, settings)
        built.processor.save_pretrained(folder)
        if verbalizers is not None:
            verbalizers.save(folder)
        else:
            copy_verbalizer_settings(built.start, folder)
    return final


def _write_adapter(built: BuiltModel, state: Mapping[str, torch.Tensor], folder: Path, dtype: str | None) -> None:
    if dtype:
        state = {name: value.to(getattr(torch, dtype)) for name, value in state.items()}
    save_file(dict(state), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config, base = built.model.peft_config["default"], AdapterBase(built.base)
    write_adapter_config(config, folder, base)
    text = _ADAPTER_README.format(
        base=describe_base(base, folder)["base_model_name_or_path"],
        kind=config.peft_type.value,
        model_type=base_model(built.model).config.model_type,
        parts=", ".join(getattr(config, "modules_to_save", None) or ()) or "nothing",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _write_merged(built: BuiltModel, state: Mapping[str, torch.Tensor], folder: Path, settings: TrainSettings) -> None:
    """Put what was trained into the base model, read again: unquantised, not spread over ranks, in float32."""
    start, adapter = base_of(settings)
    whole = load_whole(find_answering(settings).model_class, start, torch.float32)
    stored = settings.saving.dtype or AutoConfig.from_pretrained(start).dtype or "float32"
    if settings.train.has_adapter:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _write_adapter(built, state, Path(temporary), settings.saving.dtype)
            whole = _merge(whole, temporary)
    else:
        if adapter is not None:
            whole = _merge(whole, adapter)
        unexpected = whole.load_state_dict(dict(state), strict=False).unexpected_keys
        assert not unexpected, unexpected
    whole.to(getattr(torch, stored) if isinstance(stored, str) else stored).save_pretrained(folder)


def _merge(whole: nn.Module, adapter: str) -> nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(whole, adapter).merge_and_unload()
