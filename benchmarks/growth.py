"""How time grows with what is asked for: auxiliary tokens, image tokens, batch, images of a `moai verbalize` run.

    OMP_NUM_THREADS=1 python -m benchmarks.growth --out docs/growth.png

Processor time of this process; the least of a few rounds, which is what a busy machine disturbs least. The exponent is
the slope of logarithms over the upper half of each curve: 1 = linear.

Auxiliary tokens pass each of the two compressors (hidden size 192); image tokens, and batches of 144 of them, are
prefilled through two decoder layers with one mixer (hidden size 128); images of 32 pixels go through the cheapest
verbalizer, edge/gradient, into a cache.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.forward_variants import OURS, Sizes, build_runner
from benchmarks.measurement import describe_machine, markdown_table
from compressor import Compressor, CompressorConfig
from verbalizers import build_verbalizer
from verbalizers.store.building import build_cache
from verbalizers.store.sources import read_sources

AUXILIARY_TOKENS = (100, 316, 1000, 3162, 10_000)
IMAGE_SIDES = (6, 12, 24, 36, 48)
BATCHES = (1, 2, 4, 8, 16)
IMAGES = (10, 100, 1000, 10_000)
CPU = torch.device("cpu")
SIZES = Sizes(hidden_size=128, num_layers=2, num_mixers=1, image_grid=12)


@torch.no_grad()
def time_call(call: Callable[[], object], num_rounds: int) -> float:
    """Least processor time of a call, in seconds, after an untimed one."""
    seconds = []
    for _ in range(num_rounds + 1):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds[1:] or seconds)


def compress(architecture: str, num_tokens: int, num_rounds: int) -> float:
    """Seconds of a compressor over so many auxiliary words."""
    torch.manual_seed(0)
    compressor = Compressor(CompressorConfig(architecture, 192)).eval()
    return time_call(partial(compressor, torch.randn(1, num_tokens, 192)), num_rounds)


def prefill(side: int, batch: int, num_rounds: int) -> float:
    """Seconds of a prefill with ``side`` squared image tokens."""
    sizes = Sizes(SIZES.hidden_size, SIZES.num_layers, SIZES.num_mixers, side)
    return time_call(build_runner(OURS, sizes, batch, CPU).prefill, num_rounds)


def load_encoded(data: bytes) -> Image.Image:
    """Decode an image of the run."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def verbalize(num_images: int) -> float:
    """Seconds of a run over so many images, once."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        (images := Path(folder, "images")).mkdir()
        for number in range(num_images):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{number:05d}.bmp")
        start = time.process_time()
        report = build_cache(
            read_sources(images), [build_verbalizer("edge")], Path(folder, "cache"), load_encoded, num_workers=0
        )
        assert not report.num_errors, report
        return time.process_time() - start


def fit_exponent(counts: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of the logarithms over the upper half of a curve."""
    kept = slice(len(counts) // 2 - (len(counts) % 2 == 0), None)
    return float(np.polyfit(np.log(counts[kept]), np.log(seconds[kept]), 1)[0])


def draw(curves: dict[str, tuple[Sequence[int], list[float]]], out: Path) -> None:
    """One panel for each curve, both axes logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(curves), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, (counts, seconds)) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.loglog(counts, seconds, "o-", label="measured")
        axes.loglog(counts, [seconds[-1] * count / counts[-1] for count in counts], ":", color="grey", label="linear")
        axes.set_title(f"{name}\nexponent {fit_exponent(counts, seconds):.2f}", fontsize=9)
        axes.set_ylabel("processor time, s")
        axes.legend(fontsize=8)
    figure.savefig(out, dpi=100)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="PNG that is written")
    parser.add_argument("--rounds", type=int, default=2, help="timed rounds of each point")
    parser.add_argument("--most-images", type=int, default=IMAGES[-1], help="of the verbalizing run")
    parsed = parser.parse_args(arguments)
    images = [count for count in IMAGES if count <= parsed.most_images]
    measured: dict[str, tuple[Sequence[int], Callable[[int], float]]] = {
        f"auxiliary tokens, {kind}": (AUXILIARY_TOKENS, partial(compress, kind, num_rounds=parsed.rounds))
        for kind in ("encoder", "perceiver")
    }
    measured["image tokens"] = (IMAGE_SIDES, lambda side: prefill(side, 1, parsed.rounds))
    measured["batch"] = (BATCHES, lambda batch: prefill(SIZES.image_grid, batch, parsed.rounds))
    measured["images verbalized"] = (images, verbalize)
    print(describe_machine(CPU) + ", processor time\n")
    verbalize(1)  # what is imported on first use
    curves = {}
    print("\n".join(markdown_table(["what grows", "seconds", "exponent"], [])))
    for name, (points, call) in measured.items():
        counts = [point**2 for point in points] if name == "image tokens" else list(points)
        curves[name] = counts, [call(point) for point in points]
        shown = ", ".join(f"{count}: {value:.4g}" for count, value in zip(*curves[name], strict=True))
        print(f"| {name} | {shown} | {fit_exponent(*curves[name]):.2f} |", flush=True)
    draw(curves, parsed.out)


if __name__ == "__main__":
    main()
