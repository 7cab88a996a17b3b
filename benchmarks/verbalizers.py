"""What the verbalizers cost: images per second, the text cache, side by side or one by one, cached or fresh.

    python -m benchmarks.verbalizers                              # all tables, CPU
    python -m benchmarks.verbalizers --rounds 3 --markdown outputs/verbalizers.md
    python -m benchmarks.verbalizers --only text-cache --published-owlv2   # OWLv2 of the published base model's sizes

throughput   each verbalizer alone, batches of 1 and 8 equal-sized images
text-cache   OWLv2 looking for 1,847 names in one image: its text embeddings in memory, read from disk, or computed
             anew for the image as the released MoAI does
scene        parse_scene with all verbalizers side by side in threads, against one after the other
variants     each verbalizer against the way its library, or this project before, finds the same: ratios, new / old
cache        reading an image's verbalization from Parquet, against looking at it anew (batches of 8)

Models: --models, a folder with mask2former/, owlv2/, psgtr/ (default: the bundled ones), else random weights of the
sizes in configs/verbalizers.yaml; rapidocr where it is installed. Calls alternate, A B A B ...; medians [quartiles].
`variants` counts this process's CPU seconds, which a busy machine changes least; --clock cpu makes the others do so.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measurement import Spread, describe_machine, markdown_table, paired_ratio, time_alternating
from benchmarks.verbalizer_models import (
    NUM_NAMES,
    build_verbalizers,
    choose_names,
    save_published_owlv2,
    save_random_models,
)
from benchmarks.verbalizer_variants import measure_variants
from verbalizers import VerbalizationCache, Verbalizer, parse_scene, verbalize_scene
from verbalizers.core.verbalizer import order_by_use

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "checkpoints" / "verbalizers"
SECTIONS = ("throughput", "variants", "text-cache", "scene", "cache")
NUM_IMAGES = 8
IMAGE_SIZE = (240, 320)

Table = dict[str, object]
"""A title, a header and rows of text, beside the measurements they were made from."""


def load_images() -> list[np.ndarray]:
    """Eight different images of equal size, cut from the bundled ones: uint8 (240, 320, 3)."""
    height, width = IMAGE_SIZE
    images, generator = [], np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        source = Image.open(ROOT / "examples" / ("street.jpg", "astronaut.jpg")[index % 2]).convert("RGB")
        scale = max(width / source.width, height / source.height) * (1 + 0.1 * index)
        enlarged = source.resize((round(source.width * scale) + 1, round(source.height * scale) + 1))
        left = int(generator.integers(0, enlarged.width - width + 1))
        top = int(generator.integers(0, enlarged.height - height + 1))
        images.append(np.array(enlarged.crop((left, top, left + width, top + height))))
    return images


def measure_throughput(
    verbalizers: list[Verbalizer],
    batches: list[int],
    num_rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Table:
    """Images per second of each verbalizer alone."""
    images, rows, records = load_images(), [], []
    for verbalizer in verbalizers:
        calls: dict[str, Callable[[], None]] = {}
        for batch in batches:
            chosen = (images * (batch // NUM_IMAGES + 1))[:batch]
            scenes = parse_scene(chosen, [source for source in verbalizers if source.kind in verbalizer.uses])
            calls[str(batch)] = lambda chosen=chosen, scenes=scenes, v=verbalizer: v.predict_with(chosen, scenes)
        times = time_alternating(calls, num_rounds, device, clock=clock)
        name = f"{verbalizer.kind}/{verbalizer.backend}"
        records.append({"verbalizer": name, "times_ms": times})
        row = [name]
        for batch in batches:
            row.append(Spread.of([1000 * batch / value for value in times[str(batch)]]).shown(2))
        first, last = str(batches[0]), str(batches[-1])
        gain = [one * batches[-1] / batches[0] for one in times[first]]
        rows.append([*row, paired_ratio(gain, times[last]).shown(2)])
    header = ["verbalizer", *(f"images/s, batch {batch}" for batch in batches)]
    header.append(f"batch {batches[-1]} against {batches[0]}")
    return {"title": "Throughput", "header": header, "rows": rows, "records": records}


def measure_text_cache(
    folder: Path, num_rounds: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> Table:
    """One image for OWLv2 with its words' embeddings in memory, on disk, or to be computed."""
    names, origin = choose_names(NUM_NAMES)
    image = load_images()[:1]
    with tempfile.TemporaryDirectory() as stored:
        detector = next(v for v in build_verbalizers(folder, names, str(device)) if v.kind == "detection")
        detector.cache_dir = stored

        def from_disk() -> None:
            detector.forget_embeddings()
            detector.predict(image)

        def anew() -> None:
            detector.forget_embeddings()
            detector.cache_dir = None
            detector.predict(image)
            detector.cache_dir = stored

        detector.predict(image)  # writes the file
        calls = {"in memory": lambda: detector.predict(image), "from disk": from_disk, "computed anew": anew}
        times = time_alternating(calls, num_rounds, device, clock=clock)
    rows = [
        [name, Spread.of(values).shown(), paired_ratio(times["computed anew"], values).shown(2)]
        for name, values in times.items()
    ]
    width = detector.load().model.config.text_config.hidden_size
    title = f"OWLv2 with {len(names):,} names ({origin}), text width {width}, one image"
    header = ["text embeddings", "milliseconds per image", "times faster than computing anew"]
    return {"title": title, "header": header, "rows": rows, "records": [{"times_ms": times}]}


def measure_scene(
    verbalizers: list[Verbalizer], num_rounds: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> Table:
    """All verbalizers in threads against one after the other, batches of 1 and of all images."""
    images, rows, records = load_images(), [], []
    for batch in (1, NUM_IMAGES):
        chosen = images[:batch]

        def one_by_one(chosen: list[np.ndarray] = chosen) -> None:
            scenes = None
            for group in order_by_use(verbalizers):
                for verbalizer in group:
                    scenes = parse_scene(chosen, [verbalizer], known=scenes)

        calls = {
            "side by side": lambda chosen=chosen: parse_scene(chosen, verbalizers),
            "one by one": one_by_one,
        }
        times = time_alternating(calls, num_rounds, device, clock=clock)
        records.append({"batch": batch, "times_ms": times})
        ratio = paired_ratio(times["one by one"], times["side by side"])
        rows.append([str(batch), *(Spread.of(values).shown() for values in times.values()), ratio.shown(2)])
    header = ["batch", "side by side, ms", "one by one, ms", "times faster"]
    kinds = ", ".join(verbalizer.kind for verbalizer in verbalizers)
    return {"title": f"parse_scene: {kinds}", "header": header, "rows": rows, "records": records}


def load_encoded(data: bytes) -> Image.Image:
    """Encoded image -> RGB; what the cache calls in its workers."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def measure_cache(
    verbalizers: list[Verbalizer], num_rounds: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> Table:
    """An image's scene and words out of Parquet against looking and telling anew."""
    from verbalizers.store.building import build_cache
    from verbalizers.store.sources import read_sources

    with tempfile.TemporaryDirectory() as folder:
        shown, out = Path(folder, "images"), Path(folder, "cache")
        shown.mkdir()
        for index, image in enumerate(load_images()):
            Image.fromarray(image).save(shown / f"{index}.png")
        encoded = [path.read_bytes() for path in sorted(shown.iterdir())]
        build_cache(list(read_sources(shown)), verbalizers, out, load_encoded, num_workers=0)

        def fresh() -> None:
            for scene in parse_scene([load_encoded(data) for data in encoded], verbalizers):
                verbalize_scene(scene)

        def cached() -> None:
            cache = VerbalizationCache(out)  # opened anew, so that no shard is in memory yet
            for data in encoded:
                assert cache[data].scene is not None

        times = time_alternating({"cached": cached, "fresh": fresh}, num_rounds, device, clock=clock)
    per_image = {name: [value / len(encoded) for value in values] for name, values in times.items()}
    ratio = paired_ratio(times["fresh"], times["cached"])
    rows = [[*(Spread.of(values).shown(2) for values in per_image.values()), ratio.shown(0)]]
    header = ["cached (Parquet), ms per image", "fresh, ms per image", "times faster"]
    return {"title": "Verbalize once", "header": header, "rows": rows, "records": [{"times_ms": times}]}


def to_markdown(machine: str, models: str, tables: list[Table]) -> str:
    """The report: what was measured where, then the tables."""
    lines = [
        "# What the verbalizers cost",
        "",
        f"{machine}. {models} Images of {IMAGE_SIZE[1]} x {IMAGE_SIZE[0]}.",
    ]
    for table in tables:
        lines += ["", f"## {table['title']}", "", *markdown_table(table["header"], table["rows"])]
    return "\n".join(lines) + "\n"


def measure(arguments: argparse.Namespace, folder: Path, device: torch.device) -> list[Table]:
    """The chosen tables."""
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    sections = {
        "throughput": lambda v: measure_throughput(v, arguments.batches, arguments.rounds, device, clock),
        "variants": lambda v: measure_variants(v, load_images(), arguments.batches, arguments.rounds, device),
        "text-cache": lambda v: measure_text_cache(folder, arguments.rounds, device, clock),
        "scene": lambda v: measure_scene(v, arguments.rounds, device, clock),
        "cache": lambda v: measure_cache(v, arguments.rounds, device, clock),
    }
    from moai.scenes.vocabulary import OBJECT_CLASSES

    verbalizers = build_verbalizers(folder, tuple(OBJECT_CLASSES), str(device))
    return [sections[name](verbalizers) for name in arguments.only]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verbalizers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, help="folder with mask2former/, owlv2/, psgtr/")
    parser.add_argument("--random", action="store_true", help="random weights even where there are bundled ones")
    parser.add_argument("--published-owlv2", action="store_true", help="OWLv2 as large as the published base model")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: seconds of this process alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", type=Path, help="write the report here")
    parser.add_argument("--json", type=Path, help="write every single measurement here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print Markdown, write the files."""
    parsed = parse_arguments(arguments)
    torch.set_num_threads(parsed.threads)
    device, machine = torch.device(parsed.device), describe_machine(torch.device(parsed.device))
    with tempfile.TemporaryDirectory() as scratch:
        folder = parsed.models or BUNDLED
        models = f"Checkpoints of {folder.name}/."
        if parsed.published_owlv2:
            folder, models = save_published_owlv2(Path(scratch)), "OWLv2 base sizes, random weights."
        elif parsed.random or not any(folder.glob("*/config.json")):
            folder, models = save_random_models(Path(scratch)), "Sizes of configs/verbalizers.yaml, random weights."
        tables = measure(parsed, folder, device)
    report = to_markdown(machine, models, tables)
    print(report)
    for path, text in ((parsed.markdown, report), (parsed.json, None)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text or json.dumps({"machine": machine, "models": models, "tables": tables}, indent=1))


if __name__ == "__main__":
    main()
