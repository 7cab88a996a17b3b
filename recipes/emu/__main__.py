"""``python -m recipes.emu --config configs/emu_tiny.yaml --out runs/emu``; the same command goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moai.checkpoints.io.lookup import find_checkpoint
from moai.training.trainer import run_training

from .config import load_tiny_config
from .models import train_autoencoder, write_decoder
from .world import CAPTIONS_FILE, DOCUMENTS_FILE, write_world


def main() -> None:
    """Command line: data, the sequence model, the autoencoder, what draws, the sheet with its figures."""
    parser = argparse.ArgumentParser(prog="python -m recipes.emu", description="A tiny Emu that draws Scenes.")
    parser.add_argument("--config", type=Path, default=Path("configs/emu_tiny.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/emu"), help="folder of all steps")
    arguments = parser.parse_args()
    config, out = load_tiny_config(arguments.config), arguments.out
    data = out / "data"
    write_world(config.world, data, config.seed)
    write_decoder(config, out / "decoder")
    if not (out / "sequence" / "final").is_dir():
        chosen = config.sequence
        model = {**chosen["model"], "text": str(out / "decoder")}
        model["vision"] = find_checkpoint(model["vision"])
        sources = {**chosen.get("data", {}), "sources": [str(data / DOCUMENTS_FILE)]}
        _train({**chosen, "model": model, "data": sources, "output_folder": str(out / "sequence")})
    train_autoencoder(config.autoencoder, data, out / "autoencoder", config.seed)
    if not (out / "drawing" / "final").is_dir():
        chosen = config.drawing
        model = {**chosen["model"], "path": str(out / "sequence"), "vae": str(out / "autoencoder")}
        sources = {"sources": [{"path": str(data / CAPTIONS_FILE)}]}
        _train({**chosen, "model": model, "data": sources, "output_folder": str(out / "drawing")})
    from .sheet import make_sheet

    make_sheet(config, out / "drawing" / "final", out)


def _train(recipe: dict[str, Any]) -> None:
    if not run_training(recipe).is_finished:
        raise SystemExit("stopped: a checkpoint is written, the same command goes on.")


if __name__ == "__main__":
    main()
