"""What a checkpoint is: told from its configuration and its files' heads, nothing is loaded."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from moai.checkpoints.io.adapter_files import find_adapter_base, read_config
from moai.checkpoints.io.lookup import ADAPTER_CONFIG, find_checkpoint
from moai.checkpoints.io.tensor_folder import TensorFolder
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.models.answering import Answering
from moai.models.registry import MODEL_SPECS, ModelSpec, find_spec, load_named

from .weight_sizes import build_empty, count_model

__all__ = ["describe_checkpoint"]

#: Fields of a tower's or a decoder's configuration that tell its size, and how they are said.
_SIZES = {
    "num_hidden_layers": "{} layers",
    "hidden_size": "of {}",
    "num_attention_heads": "{} heads",
    "vocab_size": "vocabulary {}",
    "image_size": "{} pixels",
    "patch_size": "patches of {}",
    "max_position_embeddings": "{} positions",
}
_IMAGES_TOO = ", and images (--image-out) where it has beside it what draws them"
#: Fields of an adapter's configuration that tell what it changes.
_ADAPTER_FIELDS = ("peft_type", "r", "lora_alpha", "num_virtual_tokens", "target_modules", "modules_to_save")


def describe_checkpoint(name_or_path: str | Path) -> dict[str, Any]:
    """Describe a checkpoint of any model that is known here, or an adapter.

    Args:
        name_or_path: Folder, bundled name or hub name.

    Returns:
        JSON-able values by name; what does not apply is left out.

    Raises:
        ValueError: There is no such checkpoint, it is of no known kind, or a file of its weights is damaged.
    """
    name = find_checkpoint(name_or_path)
    base = find_adapter_base(name)
    source, revision = (name, None) if base is None else (base.name, base.revision)
    model_type = read_config(source, revision).get("model_type")
    spec = MODEL_SPECS.get(model_type) or find_spec(name, model_type)
    config = AutoConfig.from_pretrained(source, revision=revision or "main")
    model = build_empty(config)
    size = count_model(model)
    report: dict[str, Any] = {
        "checkpoint": name,
        "model": f"{config.model_type} ({type(model).__name__})",
        "parameters": dict(size.parts) | {"together": size.num_parameters},
        "parts": {part: _describe_part(getattr(config, part)) for part in config.sub_configs},
        "settings": _own_settings(config),
        "weights": _describe_weights(name),
    }
    adapter = _find_file(name, ADAPTER_CONFIG)
    if adapter is not None:
        content = json.loads(adapter.read_text(encoding="utf-8"))
        report["adapter"] = {"base": source} | {
            field: content[field] for field in _ADAPTER_FIELDS if content.get(field) not in (None, [], {})
        }
    if (quantized := getattr(config, "quantization_config", None)) is not None:
        report["quantization"] = dict(quantized) if isinstance(quantized, dict) else quantized.to_dict()
    report |= {"purpose": spec.purpose} if spec.answering is None else _describe_answering(name, config, spec)
    return {field: value for field, value in report.items() if value not in (None, {}, "")}


def _describe_part(config: PreTrainedConfig | None) -> str:
    """A tower or a decoder in a line."""
    if config is None:
        return "none"
    known = [text.format(value) for field, text in _SIZES.items() if (value := getattr(config, field, None))]
    return f"{config.model_type}: " + ", ".join(known).replace("layers, of", "layers of")


def _own_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """What the configuration has beside what every one has, and beside its towers and decoders."""
    others = {field.name for field in fields(PreTrainedConfig)} | set(config.sub_configs)
    own = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in others}
    return {name: value for name, value in own.items() if isinstance(value, bool | int | float | str | list | dict)}


def _find_file(name: str, file: str) -> Path | None:
    """A file of a checkpoint, as far as it is here."""
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    found = cached_file(name, file, _raise_exceptions_for_connection_errors=False, **options)
    return None if found is None else Path(found)


def _describe_weights(name: str) -> dict[str, Any] | str:
    """Size and dtypes of the stored tensors, which are not read."""
    known = _find_file(name, "config.json") or _find_file(name, ADAPTER_CONFIG)
    folder = Path(name) if known is None else known.parent
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return "not here" + ("" if Path(name).is_dir() else ": fetched when they are loaded")
    stored = TensorFolder(folder)
    dtypes = sorted({str(info.dtype).removeprefix("torch.") for info in stored.tensors.values()})
    files = [file.resolve() for file in stored.files]
    beside = sorted({file.relative_to(folder).parts[0] for file in folder.glob("*/**/config.json")})
    told = {"files": len(files), "bytes": sum(file.stat().st_size for file in files), "dtype": ", ".join(dtypes)}
    return told | ({"beside": ", ".join(beside)} if beside else {})


def _describe_answering(name: str, config: PreTrainedConfig, spec: ModelSpec) -> dict[str, Any]:
    """What one can do with a model that answers."""
    answering: type[Answering] = load_named(spec.answering)
    built, absent = VerbalizerSettings.load_pretrained(name).build()
    verbalizers = {verbalizer.kind: verbalizer.backend for verbalizer in built}
    return {
        "domain": getattr(config, "domain", None) or "images of any kind",
        "verbalizers": verbalizers | {kind: f"not here: {reason}" for kind, reason in absent.items()},
        "options": {
            "--option": ", ".join(answering.option_names),
            "bits": ", ".join(map(str, answering.list_bits())),
            "answers with": "text" if answering.draw is Answering.draw else f"text{_IMAGES_TOO}",
            "moai train": "yes" if spec.task is not None else "no",
        },
    }
