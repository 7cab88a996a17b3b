"""The Ray engine: images are hashed and verbalized by Ray Data, on as many machines as the cluster has.

All machines must see the images under the same paths. Only this process writes the cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from verbalizers.store.rows import hash_content
from verbalizers.store.sources import BadSource, Source
from verbalizers.store.work import Outcome, Work, WorkSettings, verbalize_works

__all__ = ["hash_sources", "run_ray"]


def _import_ray() -> Any:
    """`ray.data`, on the cluster this process is connected to (a local one where there is none)."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        message = f'--engine ray needs Ray Data: pip install "moai-vlm[cluster]" ({error})'
        raise ImportError(message) from error
    if not ray.is_initialized():
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray.data


def _hash_source(row: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a Ray task."""
    try:
        content_hash, error = hash_content(Source(**json.loads(row["source"])).read()), ""
    except ValueError as reason:
        content_hash, error = "", str(reason)
    return {"index": row["index"], "content_hash": content_hash, "error": error}


def hash_sources(
    sources: Sequence[Source | BadSource],
) -> Iterator[tuple[Source | BadSource, str | None, str]]:
    """Hash every image of a data set on the cluster.

    Yields:
        Per source: it, its content hash or None, and why there is none.
    """
    data = _import_ray()
    rows = []
    for index, source in enumerate(sources):
        if isinstance(source, BadSource):
            yield source, None, source.reason
        else:
            rows.append({"index": index, "source": json.dumps(source.to_dict())})
    if rows:
        hashed = data.from_items(rows).map(_hash_source)
        # In the data set's order, so that an image is named by its first occurrence whatever finishes first.
        for row in sorted(hashed.iter_rows(), key=lambda row: row["index"]):
            yield sources[row["index"]], row["content_hash"] or None, row["error"]


class _RayWorker:
    """Runs in a Ray actor: builds its verbalizers once, then verbalizes batch after batch."""

    def __init__(self, settings: WorkSettings) -> None:
        self._settings = settings
        self._verbalizers = settings.recipe.build()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        works = [
            Work(str(content_hash), Source(**json.loads(str(source))), None)
            for content_hash, source in zip(batch["content_hash"], batch["source"], strict=True)
        ]
        outcomes = verbalize_works(works, self._verbalizers, self._settings)
        return {
            "content_hash": [outcome.content_hash for outcome in outcomes],
            "found": [outcome.found or "" for outcome in outcomes],
            "error": [outcome.error for outcome in outcomes],
            "failures": [json.dumps(dict(outcome.failures)) for outcome in outcomes],
            "seen_kinds": [json.dumps(outcome.seen_kinds) for outcome in outcomes],
        }


def run_ray(
    works: Sequence[Work], settings: WorkSettings, num_workers: int, batch_size: int, num_gpus: float = 0
) -> Iterator[list[Outcome]]:
    """Verbalize images with a pool of Ray actors.

    Args:
        works: the images; the actors read them.
        settings: sent to each actor once.
        num_workers: actors.
        batch_size: images that an actor takes at once.
        num_gpus: GPUs, or share of one, that Ray sets aside for each actor.

    Yields:
        The outcomes of one batch, in the order in which batches are finished.
    """
    if not works:
        return
    data = _import_ray()
    rows = [{"content_hash": work.content_hash, "source": json.dumps(work.source.to_dict())} for work in works]
    # Blocks of one batch each: results come back, and are safe on disk, as soon as a batch is finished.
    outcomes = data.from_items(rows, override_num_blocks=-(-len(rows) // batch_size)).map_batches(
        _RayWorker,
        fn_constructor_args=(settings,),
        batch_size=batch_size,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(size=num_workers),
        num_gpus=num_gpus or None,
    )
    for batch in outcomes.iter_batches(batch_size=None, batch_format="numpy"):
        yield [
            Outcome(str(key), str(found) or None, str(error), json.loads(str(failures)), tuple(json.loads(str(seen))))
            for key, found, error, failures, seen in zip(
                *(batch[name] for name in ("content_hash", "found", "error", "failures", "seen_kinds")), strict=True
            )
        ]
