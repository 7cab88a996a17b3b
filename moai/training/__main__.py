"""``accelerate launch -m moai.training --config configs/train_stage1.yaml [key=value ...]``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main", "train"]

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage of training.

    Args:
        arguments: Words of the command line; None = those of this process.

    Returns:
        Exit code: 0 = done, 1 = failed, 130 = stopped by Ctrl-C or SIGTERM with a checkpoint written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m moai.training",
        description="Train one stage. The same command again goes on after a kill.",
    )
    parser.add_argument("--config", required=True, help="recipe, for example configs/train_stage1.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimization.num_steps=100")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    words = parser.parse_args(arguments)
    try:
        return train(words.config, words.overrides)
    except Exception as error:
        if words.debug:
            raise
        is_expected = isinstance(error, ValueError | ImportError | OSError)
        told = str(error) if is_expected else f"unexpected {type(error).__name__}: {error}. --debug shows where."
        rank = os.environ.get("RANK", "0")
        print(f"error: {told}" if rank == "0" else f"process {rank}: error: {told}", file=sys.stderr)
        return EXIT_FAILED


def train(config: str | Path, overrides: Sequence[str] = ()) -> int:
    """Run one stage of training, and say what came of it.

    Args:
        config: The recipe.
        overrides: ``key=value`` words laid over it.

    Returns:
        Exit code: 0 = done, 130 = stopped.
    """
    import torch

    from .trainer import run_training

    result = run_training(config, overrides)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if os.environ.get("RANK", "0") != "0":
        return 0 if result.is_finished else EXIT_INTERRUPTED
    if not result.is_finished:
        print(f"stopped after step {result.num_steps}; the same command goes on from there.")
        return EXIT_INTERRUPTED
    print(f"trained {result.num_steps} steps; the result is in {result.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
