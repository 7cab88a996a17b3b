"""Recipe of a cached verbalization: the verbalizers, their settings, and what is worth saying.

The recipe's fingerprint names the sub-folder of the cache. Whatever changes the findings or the text changes it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from verbalizers.core.registry import build_verbalizer
from verbalizers.core.relative_paths import make_absolute, make_relative
from verbalizers.core.verbalizer import Verbalizer
from verbalizers.core.words import WordSettings

__all__ = ["MANIFEST_FILE", "Recipe", "VerbalizerEntry", "is_made_by", "read_manifest"]

MANIFEST_FILE = "verbalization.json"
#: Raised when rows of an older layout can no longer be read as they are.
FORMAT_VERSION = 1


def is_made_by(entry: Mapping[str, Any], verbalizer: Verbalizer) -> bool:
    """Whether an entry of a manifest's `verbalizers` stands for this verbalizer."""
    is_kind = (entry["kind"], entry["backend"]) == (verbalizer.kind, verbalizer.backend)
    return is_kind and entry["fingerprint"] == verbalizer.fingerprint()


@dataclass(frozen=True)
class VerbalizerEntry:
    """One verbalizer, in a form from which another process builds it.

    Attributes:
        module: module that registers the class when it is imported.
        kind, backend: its names in the registry.
        settings: arguments of `build_verbalizer`.
        fingerprint: of the verbalizer, its checkpoint's content included.
        version: of the class; see `Verbalizer.version`.
    """

    module: str
    kind: str
    backend: str
    settings: Mapping[str, Any]
    fingerprint: str
    version: int = Verbalizer.version

    @classmethod
    def of(cls, verbalizer: Verbalizer) -> VerbalizerEntry:
        """The entry of a ready verbalizer; reads its checkpoint."""
        name = (type(verbalizer).__module__, verbalizer.kind, verbalizer.backend)
        return cls(*name, verbalizer.settings(), verbalizer.fingerprint(), verbalizer.version)

    def build(self) -> Verbalizer:
        """Build it in this process; no model is loaded yet."""
        importlib.import_module(self.module)
        return build_verbalizer(self.kind, self.backend, **self.settings)


@dataclass(frozen=True)
class Recipe:
    """Verbalizers and words, in a form that travels to other processes.

    Attributes:
        entries: the verbalizers.
        words: what is worth saying.
        compat: whether the text is the release's, letter by letter.
        kept_kinds: kinds that are kept and in the text, where others run only because these use their findings;
            None = all.
    """

    entries: tuple[VerbalizerEntry, ...]
    words: WordSettings = field(default_factory=WordSettings)
    compat: bool = False
    kept_kinds: tuple[str, ...] | None = None

    @classmethod
    def from_verbalizers(
        cls,
        verbalizers: Sequence[Verbalizer],
        words: WordSettings | None = None,
        compat: bool = False,
        kept_kinds: Iterable[str] | None = None,
    ) -> Recipe:
        """The recipe of ready verbalizers; see the class for the rest.

        Raises:
            ValueError: there is none, two share a kind, or one lives in a script where no other process finds it.
        """
        kinds = [verbalizer.kind for verbalizer in verbalizers]
        if not kinds or len(set(kinds)) != len(kinds):
            raise ValueError(f"expected at least one verbalizer and at most one per kind, got the kinds {kinds}.")
        for verbalizer in verbalizers:
            if type(verbalizer).__module__ == "__main__":
                raise ValueError(
                    f"{type(verbalizer).__name__} is defined in the running script, which worker processes cannot "
                    "import. Move the class to a module of its own and import it."
                )
        entries = tuple(map(VerbalizerEntry.of, verbalizers))
        kept = tuple(sorted(kinds if kept_kinds is None else set(kinds) & set(kept_kinds)))
        return cls(entries, words or WordSettings(), compat, None if kept == tuple(sorted(kinds)) else kept)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the verbalizers."""
        return tuple(entry.kind for entry in self.entries)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; another verbalizer, checkpoint, threshold or choice of words gives others.

        The order of the verbalizers does not count: they look side by side.
        """
        verbalizers = sorted((entry.kind, entry.backend, entry.fingerprint) for entry in self.entries)
        identity = [FORMAT_VERSION, verbalizers, asdict(self.words), self.compat]
        if self.kept_kinds is not None:
            identity.append(self.kept_kinds)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def build(self) -> list[Verbalizer]:
        """Build the verbalizers in this process."""
        return [entry.build() for entry in self.entries]

    def to_manifest(self, folder: str | Path) -> dict[str, Any]:
        """What stands beside the shards, for people and for the reader.

        Args:
            folder: Where it will stand: paths in settings count from there.
        """
        return {
            "format": "moai-verbalizations",
            "version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "verbalizers": [
                {
                    "kind": entry.kind,
                    "backend": entry.backend,
                    "version": entry.version,
                    "settings": json.loads(json.dumps(make_relative(entry.settings, folder), default=repr)),
                    "fingerprint": entry.fingerprint,
                }
                for entry in self.entries
            ],
            "words": asdict(self.words),
            "compat": self.compat,
        } | ({} if self.kept_kinds is None else {"kept_kinds": list(self.kept_kinds)})


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of one fingerprint's folder; relative paths in settings are made absolute.

    Raises:
        ValueError: there is none, or it is of another format or version.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        name, version = manifest["format"], manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a folder of verbalizations, got {str(folder)!r} without a readable {MANIFEST_FILE} ({error}). "
            "Write one with `moai verbalize DATASET --out DIR`."
        ) from error
    if (name, version) != ("moai-verbalizations", FORMAT_VERSION):
        raise ValueError(
            f"expected moai-verbalizations of version {FORMAT_VERSION} in {str(path)!r}, got {name} {version}. "
            "Verbalize anew into another folder."
        )
    for entry in manifest["verbalizers"]:
        entry["settings"] = make_absolute(entry["settings"], folder)
    return manifest
