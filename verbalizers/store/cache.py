"""Verbalizations on disk: made once, read in training and evaluation with no computer-vision model installed.

Layout of a cache folder, written by `moai verbalize DATASET --out DIR`::

    DIR/<fingerprint>/verbalization.json      verbalizers, settings and choice of words: what the fingerprint stands for
                      scenes-000000.parquet   one row per distinct image: content_hash, id, path, fingerprint, height,
                                              width, scene (JSON), text, failed_kinds, panoptic_png
                      sources-000000.parquet  one row per occurrence: dataset, id, path, content_hash
                      errors.jsonl            images that could not be read: path, reason, id, dataset

A row is found by its image's content, wherever the file lies and whatever it is called.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verbalizers.core.durable_files import read_lines
from verbalizers.store.recipe import MANIFEST_FILE, read_manifest
from verbalizers.store.rows import Verbalization, hash_content, unpack_scene
from verbalizers.store.shards import import_pyarrow, read_table, shard_paths
from verbalizers.store.writing import ERRORS_FILE

__all__ = ["Verbalization", "VerbalizationCache"]

_OPEN_SHARDS = 16
_HELD_GROUPS = 8
_HEX_DIGITS = frozenset("0123456789abcdef")


class VerbalizationCache:
    """Read verbalizations by content hash, name, file or bytes. Only finished shards are read.

    May be handed to the worker processes of a data loader; it holds 64 bytes per image, and files are opened when
    they are needed.

    Args:
        folder: the cache, or one fingerprint's folder inside it.
        fingerprint: which one; None = the only one there.

    Attributes:
        folder: the fingerprint's folder.
        fingerprint: what all rows were made with.
        manifest: the content of `verbalization.json`.

    Raises:
        ValueError: no verbalizations there, not these, or several and none was chosen.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, folder: str | Path, fingerprint: str | None = None) -> None:
        import_pyarrow()
        self.folder = _choose_folder(Path(folder), fingerprint)
        self.manifest = read_manifest(self.folder)
        self.fingerprint: str = self.manifest["fingerprint"]
        self._paths = shard_paths(self.folder, "scenes")
        columns = [_read_hashes(path) for path in self._paths]
        hashes = np.concatenate([np.zeros(0, "S64"), *columns])
        order = np.argsort(hashes, kind="stable")
        # Sorted arrays instead of a dict: an eighth of the memory, and nothing to copy when a process forks.
        self._hashes = hashes[order]
        self._shards = np.repeat(np.arange(len(columns)), [len(c) for c in columns]).astype(np.int32)[order]
        self._rows = np.concatenate([np.zeros(0, np.int32), *(np.arange(len(c), dtype=np.int32) for c in columns)])[
            order
        ]
        self._names: dict[str, str | None] | None = None
        self._files: OrderedDict[int, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], list[dict[str, Any]]] = OrderedDict()

    @staticmethod
    def list_fingerprints(folder: str | Path) -> dict[str, dict[str, Any]]:
        """The fingerprints of a cache and their manifests."""
        manifests = sorted(Path(folder).glob(f"*/{MANIFEST_FILE}"))
        return {path.parent.name: read_manifest(path.parent) for path in manifests}

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | bytes | os.PathLike) and self._find(self.resolve(key)) is not None

    def __iter__(self) -> Iterator[Verbalization]:
        """All verbalizations in the order in which they were written."""
        for shard in range(len(self._paths)):
            for group in range(self._open(shard).metadata.num_row_groups):
                yield from map(self._unpack, self._read_group(shard, group))

    def __getitem__(self, key: str | bytes | os.PathLike[str]) -> Verbalization:
        found = self.get(key)
        if found is None:
            shown = f"{len(key)} bytes" if isinstance(key, bytes) else repr(os.fspath(key))
            raise KeyError(f"{shown} is not among the {len(self)} images of {self.folder}. Run `moai verbalize`.")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_groups": OrderedDict()}

    def get(self, key: str | bytes | os.PathLike[str]) -> Verbalization | None:
        """The verbalization of one image; None where it is not in the cache.

        Args:
            key: its content hash, its encoded bytes, the path of its file, or (as text) the path or id that the data
                set gives it.

        Raises:
            ValueError: a name that stands for several images.
        """
        place = self._find(self.resolve(key))
        if place is None:
            return None
        shard, row = place
        metadata = self._open(shard).metadata
        group = 0
        while row >= metadata.row_group(group).num_rows:
            row -= metadata.row_group(group).num_rows
            group += 1
        return self._unpack(self._read_group(shard, group)[row])

    def resolve(self, key: str | bytes | os.PathLike[str]) -> str | None:
        """The content hash behind a key of `get`; it need not be in the cache. None for an unknown name.

        A name that the data set gives goes before a file of that name: both mostly mean the same image, and the
        former reads no file. A `pathlib.Path` always means the file.

        Raises:
            ValueError: a name that stands for several images.
        """
        if isinstance(key, bytes):
            return hash_content(key)
        if isinstance(key, str):
            if len(key) == 64 and set(key) <= _HEX_DIGITS:
                return key
            names = self._load_names()
            if key in names:
                if names[key] is None:
                    raise ValueError(f"{key!r} names several images of this cache. Ask with pathlib.Path or bytes.")
                return names[key]
        path = Path(key)
        return hash_content(path.read_bytes()) if path.is_file() else None

    def digests(self, content_hashes: Sequence[str]) -> Iterator[bytes]:
        """SHA-256 of what the cache holds of images: scene, map and text; b"" where it lacks one.

        Each shard is read once.

        Args:
            content_hashes: of the images, as `hash_content` gives them.
        """
        wanted = np.array(content_hashes, dtype="S64")
        places = np.searchsorted(self._hashes, wanted)
        is_there = np.zeros(len(wanted), bool)
        if len(self):
            places = np.minimum(places, len(self) - 1)
            is_there = self._hashes[places] == wanted
        found = np.zeros((len(self), hashlib.sha256().digest_size), np.uint8)
        place_of_row = np.lexsort((self._rows, self._shards))  # the order of the shards
        columns = ["scene", "text", "panoptic_png"]
        for shard in np.unique(self._shards[places[is_there]]).tolist():
            start = int(np.searchsorted(self._shards[place_of_row], shard))
            for group in range(self._open(shard).metadata.num_row_groups):
                for row in self._open(shard).read_row_group(group, columns=columns).to_pylist():
                    found[place_of_row[start]] = np.frombuffer(_hash_row(row), np.uint8)
                    start += 1
        for place, is_known in zip(places.tolist(), is_there.tolist(), strict=True):
            yield found[place].tobytes() if is_known else b""

    def sources(self) -> Iterator[dict[str, str]]:
        """Where images occur: dicts of `dataset`, `id`, `path`, `content_hash`; the newest last."""
        for path in shard_paths(self.folder, "sources"):
            yield from read_table(path).to_pylist()

    def list_long_texts(self, num_bytes: int) -> set[str]:
        """Content hashes of the images whose text has more bytes of UTF-8; only the texts are read."""
        import pyarrow.compute as pc

        found: set[str] = set()
        for path in self._paths:
            table = read_table(path, ["content_hash", "text"])
            is_long = pc.greater(pc.binary_length(table["text"]), num_bytes)
            found.update(table.filter(is_long)["content_hash"].to_pylist())
        return found

    def errors(self) -> list[dict[str, str]]:
        """Images that could not be read: dicts of `path`, `reason`, `id`, `dataset`."""
        return [row for _, row in read_lines(self.folder / ERRORS_FILE)]

    def _load_names(self) -> dict[str, str | None]:
        """Path or id -> content hash; None where images share the name."""
        if self._names is None:
            # Within a data set the newest entry counts: the image has been replaced there.
            newest = {(row["dataset"], row["id"], row["path"]): row["content_hash"] for row in self.sources()}
            paths: dict[str, str | None] = {}
            ids: dict[str, str | None] = {}
            for (_, row_id, path), content_hash in newest.items():
                for names, name in ((paths, path), (ids, row_id)):
                    if name:
                        names[name] = content_hash if names.get(name, content_hash) == content_hash else None
            self._names = {**ids, **paths}
        return self._names

    def _find(self, content_hash: str | None) -> tuple[int, int] | None:
        """Shard and row of an image."""
        if content_hash is None:
            return None
        wanted = np.bytes_(content_hash.encode())
        index = int(np.searchsorted(self._hashes, wanted))
        if index == len(self) or self._hashes[index] != wanted:
            return None
        return int(self._shards[index]), int(self._rows[index])

    def _open(self, shard: int) -> Any:
        _, pq = import_pyarrow()
        if shard not in self._files:
            self._files[shard] = pq.ParquetFile(self._paths[shard])
            if len(self._files) > _OPEN_SHARDS:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]

    def _read_group(self, shard: int, group: int) -> list[dict[str, Any]]:
        if (shard, group) not in self._groups:
            self._groups[shard, group] = self._open(shard).read_row_group(group).to_pylist()
            if len(self._groups) > _HELD_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((shard, group))
        return self._groups[shard, group]

    def _unpack(self, row: dict[str, Any]) -> Verbalization:
        scene = unpack_scene(row["scene"], row["panoptic_png"])
        size_hw = (row["height"], row["width"])
        return Verbalization(
            row["content_hash"], row["fingerprint"], row["id"], row["path"], size_hw, scene, row["text"]
        )


def _choose_folder(folder: Path, fingerprint: str | None) -> Path:
    if fingerprint is None and (folder / MANIFEST_FILE).is_file():
        return folder
    known = VerbalizationCache.list_fingerprints(folder)
    if fingerprint is None and len(known) == 1:
        return folder / next(iter(known))
    if fingerprint in known:
        return folder / fingerprint
    shown = "; ".join(f"{key} ({_describe(manifest)})" for key, manifest in known.items()) or "none"
    if fingerprint is None and known:
        raise ValueError(f"expected `fingerprint`, {str(folder)!r} holds several: {shown}. Choose one.")
    wanted = "verbalizations" if fingerprint is None else f"the fingerprint {fingerprint!r}"
    raise ValueError(f"expected {wanted} in {str(folder)!r}, got {shown}. Run `moai verbalize DATASET --out DIR`.")


def _hash_row(row: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256()
    for part in (row["scene"].encode(), row["text"].encode(), row["panoptic_png"] or b""):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _describe(manifest: dict[str, Any]) -> str:
    return ", ".join(f"{entry['kind']}/{entry['backend']}" for entry in manifest["verbalizers"])


def _read_hashes(path: Path) -> np.ndarray:
    """The content hashes of one shard, `S64` `(N,)`."""
    return np.array(read_table(path, ["content_hash"]).column(0).to_pylist(), dtype="S64")
