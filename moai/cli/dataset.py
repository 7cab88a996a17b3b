"""``moai verbalize DATASET --out DIR``: verbalizations of a data set, kept for training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verbalizers.store.building import BuildReport, build_cache
from verbalizers.store.local_engine import count_cores
from verbalizers.store.recipe import Recipe
from verbalizers.store.sources import is_dataset, read_sources
from verbalizers.store.writing import ERRORS_FILE

from ..import_utils import require
from ..processing.image_loading import load_image
from .rendering import note, print_json, print_plain, progress_bar
from .verbalizing import choose_verbalizers

__all__ = ["DatasetSettings", "selects_dataset", "verbalize_datasets"]


@dataclass(frozen=True)
class DatasetSettings:
    """How a data set is verbalized; the options of ``moai verbalize DATASET``.

    Attributes:
        out: The cache folder; None = the user has named none.
        engine: ``"local"`` or ``"ray"``.
        num_workers: Processes; 0 = this one; None = one per GPU, or else one per two cores, at most 8.
        batch_size: Images that a worker takes at once.
        image_folder: Where the paths in a ``.json`` or ``.jsonl`` begin; None = beside the file.
        column: Column of the images in a ``datasets`` folder.
        timeout_s: Seconds per image for each verbalizer; None = no limit.
        is_retrying_failures: Look again at images on which a verbalizer failed.
        is_json: Print the report as one JSON object.
    """

    out: Path | None
    engine: str = "local"
    num_workers: int | None = None
    batch_size: int = 8
    image_folder: Path | None = None
    column: str | None = None
    timeout_s: float | None = None
    is_retrying_failures: bool = False
    is_json: bool = False


def selects_dataset(arguments: Sequence[str], out: Path | None) -> bool:
    """Whether the arguments of ``moai verbalize`` name data sets rather than images to look at now."""
    return out is not None or any(is_dataset(argument) for argument in arguments)


def verbalize_datasets(
    datasets: Sequence[str],
    model: str | None,
    verbalizers: str | None,
    kinds: Sequence[str] | None,
    settings: DatasetSettings,
) -> tuple[int, int]:
    """Verbalize the images of data sets into Parquet shards; what is there already is not looked at again.

    Args:
        datasets: Folders, ``.json`` or ``.jsonl`` files, ``datasets`` folders, or images.
        model: Checkpoint whose ``verbalizers.json`` to use; None = the bundled one's.
        verbalizers: Names separated by commas: only these of them, or others.
        kinds: Only these kinds look; None = all.
        settings: The rest.

    Returns:
        How many entries could not be read, and how many there were.

    Raises:
        ValueError: No ``--out``, no verbalizer, no image, or what :func:`build_cache` refuses.
        ImportError: An optional package is not installed.
    """
    if settings.out is None:
        raise ValueError(f"expected --out DIR for the verbalizations of {', '.join(datasets)}. Name a folder.")
    require("pyarrow", purpose="Verbalizing a data set")
    if settings.engine == "ray":
        require("ray", purpose="--engine ray")
    stored, looking, absent = choose_verbalizers(model, verbalizers, kinds)
    for kind, reason in absent.items():
        note(f"nobody looks for {kind}: {reason}")
    if not looking:
        raise ValueError("expected at least one verbalizer, got none. Name some with --verbalizers, ocr for example.")
    sources = [source for each in datasets for source in read_sources(each, settings.image_folder, settings.column)]
    if not sources:
        raise ValueError(f"expected images in {', '.join(datasets)}, got none. Check the path.")
    recipe = Recipe.from_verbalizers(looking, stored.words, stored.compat, kinds)
    cuda_devices = _list_cuda_devices()
    num_workers = settings.num_workers
    if num_workers is None:
        num_workers = len(cuda_devices) or min(8, max(1, count_cores() // 2))
    with progress_bar("verbalizing", len(sources)) as show:
        report = build_cache(
            sources,
            recipe,
            settings.out,
            load_image,
            engine=settings.engine,
            num_workers=num_workers,
            batch_size=settings.batch_size,
            timeout_s=settings.timeout_s,
            cuda_devices=cuda_devices,
            num_gpus=1 if cuda_devices else 0,
            is_retrying_failures=settings.is_retrying_failures,
            on_progress=lambda report: show(report.num_done, _describe_counts(report)),
        )
    _print_report(report, settings.is_json)
    return report.num_errors, report.num_sources


def _list_cuda_devices() -> list[str]:
    """Values of ``CUDA_VISIBLE_DEVICES`` that name one GPU each."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return chosen.split(",") if chosen else [str(index) for index in range(torch.cuda.device_count())]


def _describe_counts(report: BuildReport) -> str:
    counts = {
        "verbalized": report.num_verbalized,
        "known": report.num_known,
        "repeated": report.num_repeated,
        "unreadable": report.num_errors,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _print_report(report: BuildReport, is_json: bool) -> None:
    if is_json:
        counts = {name: count for name, count in vars(report).items() if name.startswith("num_")}
        values = {"folder": str(report.folder), "fingerprint": report.folder.name, **counts}
        print_json(values | {"failures": dict(report.failures)})
        return
    note(f"{report.num_sources} images: {_describe_counts(report)}")
    for kind, count in report.failures.items():
        note(f"{kind} failed on {count} of them: the reasons stand in their scenes, --retry-failures looks again")
    if report.num_errors:
        note(f"unreadable ones are listed in {report.folder / ERRORS_FILE}")
    print_plain(str(report.folder))
