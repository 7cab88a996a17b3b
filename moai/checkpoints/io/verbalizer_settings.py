"""Which verbalizers a checkpoint was made for: its ``verbalizers.json``, and how they are built from it.

The file stands beside ``config.json``. Every key may be left out::

    {
      "verbalizers": [{"kind": "ocr", "backend": "rapidocr", "settings": {"threshold": 0.5}}],
      "kinds": ["segmentation", "detection", "scene_graph", "ocr"],
      "words": {"detection_threshold": 0.5, "relation_threshold": 0.8, "max_relations": 10, "text_threshold": 0.85,
                "quote_text": true},
      "map": "found",
      "compat": false
    }

``verbalizers`` is what runs by default, ``kinds`` what the model was taught to read (whatever of it is absent from an
answer's scene is reported as missing), ``words`` what is worth saying. ``map`` says when the painted panoptic map is
given: "found" where there are segments, "always" (black where there are none, as the release does), or "never".
``compat`` speaks the release's words, slips included. Paths in a verbalizer's settings (``checkpoint``, ``vocabulary``)
are taken relative to the folder; ``../name`` is a folder beside it, ``./name`` one inside it (fetched with a checkpoint
on the hub), ``owlv2-nano`` a bundled one, and where that is not there the verbalizer is reported as missing, as is one
whose backend is unknown here. ``owner/name`` is fetched from the hub at the first image. No absolute path is written: a
folder that is moved with what it names answers the same. Without the file: those of an adapter's base, else the OCR
verbalizer where ``rapidocr`` is installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from verbalizers import (
    SCENE_FIELDS,
    Verbalizer,
    WordSettings,
    available_verbalizers,
    build_verbalizer,
)
from verbalizers.core.relative_paths import make_absolute, make_relative

from ...import_utils import EXTRA_OF_PACKAGE, is_onnxruntime_available, is_rapidocr_available, is_timm_available
from .hub_download import download_files
from .lookup import ADAPTER_CONFIG, list_bundled_checkpoints
from .published_settings import published_entries
from .travelling_names import name_of, resolve_name

__all__ = [
    "MAP_MODES",
    "VERBALIZERS_FILE",
    "VerbalizerSettings",
    "build_named_verbalizers",
]

VERBALIZERS_FILE = "verbalizers.json"
MAP_MODES = ("found", "always", "never")
_ENTRY_KEYS = {"kind", "backend", "settings"}
_PATH_SETTINGS = {
    "checkpoint",
    "vocabulary",
    "recognition_checkpoint",
    "text_detection_model_dir",
    "text_recognition_model_dir",
    "text_checkpoint",
    "text_embeddings",
}
#: Settings that belong to the machine that wrote them.
_MACHINE_SETTINGS = {"device", "cache_dir"}


@dataclass(frozen=True)
class VerbalizerSettings:
    """The content of ``verbalizers.json``; see the module's text for the meaning of each field.

    Attributes:
        verbalizers: Entries ``{"kind", "backend", "settings"}``; None = the default.
        kinds: What the model was taught to read.
        words: What is worth saying.
        map: One of :data:`MAP_MODES`.
        compat: Whether the release's very words are said.
    """

    verbalizers: tuple[Mapping[str, Any], ...] | None = None
    kinds: tuple[str, ...] = tuple(SCENE_FIELDS)
    words: WordSettings = field(default_factory=WordSettings)
    map: str = "found"
    compat: bool = False

    def __post_init__(self) -> None:
        if self.map not in MAP_MODES:
            raise ValueError(f"`map` must be one of {MAP_MODES}, got {self.map!r}.")
        for entry in self.verbalizers or ():
            if not isinstance(entry, Mapping) or not {"kind"} <= set(entry) <= _ENTRY_KEYS:
                raise ValueError(
                    f"a verbalizer's entry has the keys kind and, optionally, backend and settings, got {entry!r}."
                )

    @classmethod
    def load(cls, folder: str | Path) -> VerbalizerSettings:
        """Read a checkpoint folder's file; the defaults where it has none (or is a name on the hub).

        An adapter folder without one (PEFT and TRL write none) has its base's.

        Raises:
            ValueError: The file does not say what it should; the message names it.
        """
        path = Path(folder) / VERBALIZERS_FILE
        if not path.is_file():
            base = _find_base(Path(folder))
            with suppress(OSError):  # a base that is nowhere: loading the model says so
                return cls() if base is None else cls.load_pretrained(base)
            return cls()
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")), folder)
        except (ValueError, TypeError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            raise ValueError(f"{path} is no valid verbalizer settings file: {error}") from error

    @classmethod
    def load_pretrained(cls, name_or_path: str, revision: str | None = None) -> VerbalizerSettings:
        """Like :meth:`load`, for a folder or a name on the Hugging Face hub.

        What a hub checkpoint's file names inside the checkpoint (``./verbalizers/detection``) is fetched with it.
        """
        if Path(name_or_path).is_dir():
            return cls.load(name_or_path)
        from transformers.utils import cached_file

        path = cached_file(
            name_or_path, VERBALIZERS_FILE, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if path is None:
            return cls()
        folder = Path(path).parent
        settings = cls.load(folder)
        _fetch_parts(name_or_path, folder, settings)
        return settings

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | list[Any], folder: str | Path | None = None) -> VerbalizerSettings:
        """Build from parsed JSON: the mapping, or a bare list of entries.

        Args:
            data: What the file holds.
            folder: Against which relative paths in settings are resolved.
        """
        values = {"verbalizers": data} if isinstance(data, list) else dict(data)
        unknown = set(values) - {"verbalizers", "kinds", "words", "map", "compat"}
        if unknown:
            raise ValueError(f"expected the keys verbalizers, kinds, words, map, compat, got {sorted(unknown)}.")
        if values.get("verbalizers") is not None:
            values["verbalizers"] = tuple(_resolve_paths(entry, folder) for entry in values["verbalizers"])
        if "kinds" in values:
            values["kinds"] = tuple(values["kinds"])
        if "words" in values:
            values["words"] = WordSettings(**values["words"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`from_dict` reads."""
        result: dict[str, Any] = {"kinds": list(self.kinds), "words": vars(self.words), "map": self.map}
        result["compat"] = self.compat
        if self.verbalizers is not None:
            result["verbalizers"] = [dict(entry) for entry in self.verbalizers]
        return result

    def save(self, folder: str | Path) -> Path:
        """Write the file into a checkpoint folder and return its path."""
        path, content = Path(folder) / VERBALIZERS_FILE, self.to_dict()
        for entry in content.get("verbalizers", ()):
            if "settings" in entry:
                entry["settings"] = _name_paths(entry["settings"], folder)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path

    def build(self) -> tuple[list[Verbalizer], dict[str, str]]:
        """Build the verbalizers; no model is loaded yet.

        Returns:
            The verbalizers, and for each kind that cannot be built why (a package that is not installed).
        """
        if self.verbalizers is None:
            if is_rapidocr_available() and is_onnxruntime_available():
                return [build_verbalizer("ocr", "rapidocr")], {}
            return [], {"ocr": f'not installed: pip install "moai-vlm[{EXTRA_OF_PACKAGE["rapidocr"]}]"'}
        built, absent = [], {}
        for entry in self.verbalizers:
            settings = entry.get("settings", {})
            if (reason := _find_obstacle(settings) or _find_stranger(entry)) is not None:
                absent[entry["kind"]] = reason
                continue
            try:
                built.append(build_verbalizer(entry["kind"], entry.get("backend"), **settings))
            except ImportError as error:
                absent[entry["kind"]] = str(error)
        return built, absent

    def with_verbalizers(self, verbalizers: Iterable[Verbalizer]) -> VerbalizerSettings:
        """The same settings, naming these verbalizers instead."""
        entries = tuple({"kind": v.kind, "backend": v.backend, "settings": v.settings()} for v in verbalizers)
        return replace(self, verbalizers=entries)


def _resolve_paths(entry: Any, folder: str | Path | None) -> Any:
    """An entry whose settings name paths relative to ``folder``, with those made absolute.

    What is not on this disk is left as it is (a name on the hub, a published vocabulary), unless it begins with a dot.
    """
    settings = entry.get("settings") if isinstance(entry, Mapping) else None
    if folder is None or not isinstance(settings, Mapping):
        return entry
    return {**entry, "settings": make_absolute(_resolve_names(settings, folder), folder)}


def _resolve_names(settings: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Settings, and those of verbalizers in them, whose paths' names are resolved."""
    resolved: dict[str, Any] = {}
    for name, value in settings.items():
        is_name = name in _PATH_SETTINGS and isinstance(value, str)
        resolved[name] = resolve_name(value, folder) if is_name else value
        if isinstance(value, Mapping):
            resolved[name] = _resolve_names(value, folder)
    return resolved


def _name_paths(settings: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Settings whose paths are named from ``folder``, see :func:`.travelling_names.name_of`; no device, no cache."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _MACHINE_SETTINGS:
            continue
        is_path = name in _PATH_SETTINGS and isinstance(value, (str, Path))
        named[name] = name_of(value, folder)[0] if is_path else value
        if isinstance(value, Mapping):
            named[name] = _name_paths(value, folder)
    return make_relative(named, folder)


def _fetch_parts(name: str, folder: Path, settings: VerbalizerSettings) -> None:
    """Fetch what settings name inside a hub checkpoint, at the commit whose snapshot ``folder`` is.

    What cannot be had stays absent and is reported as missing when the verbalizers are built.
    """
    entries = [part for entry in settings.verbalizers or () for part in (entry, *_list_parts(entry))]
    values = [entry.get("settings", {}).get(key) for entry in entries for key in sorted(_PATH_SETTINGS)]
    inside = [Path(value).relative_to(folder).as_posix() for value in values if _is_within(value, folder)]
    if inside:
        with suppress(ValueError):
            download_files(name, [pattern for part in inside for pattern in (part, f"{part}/*")], folder.name)


def _is_within(value: Any, folder: Path) -> bool:
    return isinstance(value, str) and os.path.isabs(value) and Path(value).is_relative_to(folder)


def _find_obstacle(settings: Mapping[str, Any]) -> str | None:
    """Why a verbalizer with these settings could not look, as far as can be told without loading it."""
    for part in settings.values():  # `by_image` holds settings of two
        if isinstance(part, Mapping) and (reason := _find_obstacle(part)) is not None:
            return reason
    for name in sorted(_PATH_SETTINGS & set(settings)):
        path = settings[name]
        if isinstance(path, str) and os.path.isabs(path) and not os.path.exists(path):
            return f"{path} does not exist: copy it there, or name another in {VERBALIZERS_FILE}"
    config = Path(str(settings.get("checkpoint", ""))) / "config.json"
    if config.is_file() and not is_timm_available() and '"timm_backbone"' in config.read_text(encoding="utf-8"):
        return f'its backbone needs timm: pip install "moai-vlm[{EXTRA_OF_PACKAGE["timm"]}]"'
    return None


def _find_stranger(entry: Mapping[str, Any]) -> str | None:
    """Why an entry's kind or backend is unknown here: a plug-in or a newer version brought it to the checkpoint."""
    known = available_verbalizers().get(entry["kind"], ())
    if known and entry.get("backend", known[0]) in known:
        return None
    name = "/".join(filter(None, (entry["kind"], entry.get("backend"))))
    return f"no verbalizer {name} is installed here: install the plug-in that brings it, or a newer moai-vlm"


#: Name of the released MoAI's four verbalizers.
PUBLISHED = "published"


def build_named_verbalizers(
    chosen: Iterable[Verbalizer | str] | str, stored: VerbalizerSettings | None = None
) -> list[Verbalizer]:
    """Verbalizers from objects and names.

    A name that the checkpoint has an entry for stands for that entry, its backend, weights and thresholds included. For
    a checkpoint that names no verbalizers it stands for the released MoAI's; ``"published"`` always does, for all four,
    and the name of a bundled checkpoint for all of its own. One that reads what others find brings the checkpoint's for
    that where none of them is named.

    Args:
        chosen: Ready verbalizers and names: ``"ocr"`` (the checkpoint's, else the kind's default backend),
            ``"ocr/rapidocr"``, ``"published"`` or ``"moai-nano"``.
        stored: The checkpoint's settings; None = no checkpoint.

    Raises:
        ValueError: An unknown name, one that needs settings that the checkpoint does not have, files of the
            checkpoint's verbalizer that are not there, or something that is no verbalizer.
        ImportError: A package or plug-in cannot be imported.
    """
    built = []
    published = VerbalizerSettings(tuple(published_entries().values()))
    bundled = list_bundled_checkpoints()
    for item in [chosen] if isinstance(chosen, (str, Verbalizer)) else chosen:
        if item == PUBLISHED or (isinstance(item, str) and item in bundled):
            source = published if item == PUBLISHED else VerbalizerSettings.load(bundled[item])
            built += [_build_named(entry["kind"], None, source) for entry in source.verbalizers or ()]
        elif isinstance(item, str):
            kind, _, backend = item.partition("/")
            is_silent = stored is None or stored.verbalizers is None
            built.append(_build_named(kind, backend or None, published if is_silent else stored))
        elif isinstance(item, Verbalizer):
            built.append(item)
        else:
            raise ValueError(
                f"`verbalizers` must hold verbalizers or names ('ocr', 'ocr/rapidocr'), got {type(item).__name__}."
            )
    named = {verbalizer.kind for verbalizer in built}
    wanted = {use for verbalizer in built if named.isdisjoint(verbalizer.uses) for use in verbalizer.uses}
    own = {entry["kind"] for entry in (stored.verbalizers if stored else None) or ()}
    return built + [_build_named(kind, None, stored) for kind in sorted(wanted & own)]


def _build_named(kind: str, backend: str | None, stored: VerbalizerSettings | None) -> Verbalizer:
    known = available_verbalizers().get(kind, ("",))
    entries = [entry for entry in (None if stored is None else stored.verbalizers) or () if entry["kind"] == kind]
    for entry in [*entries, *(part for whole in entries for part in _list_parts(whole))]:
        own = entry.get("backend", known[0])
        if backend in (None, own):
            settings = entry.get("settings", {})
            if (reason := _find_obstacle(settings)) is not None:
                raise ValueError(f"the checkpoint's verbalizer {kind}/{own} cannot look: {reason}.")
            return build_verbalizer(kind, own, **settings)
    return build_verbalizer(kind, backend)


def _list_parts(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The verbalizers that an entry's settings name, and theirs, as entries of their own (`by_image` has two)."""
    found = []
    for part in entry.get("settings", {}).values():
        if isinstance(part, Mapping) and "backend" in part:
            settings = {name: value for name, value in part.items() if name != "backend"}
            inner = {"kind": entry["kind"], "backend": part["backend"], "settings": settings}
            found += [inner, *_list_parts(inner)]
    return found


def _find_base(folder: Path) -> str | None:
    """The base that an adapter folder names, None where it is none or the base is not there: loading it says why."""
    try:
        name = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        base = Path(resolve_name(name, folder))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if base.is_absolute() and (not base.is_dir() or base.resolve() == folder.resolve()):
        return None
    return str(base)
