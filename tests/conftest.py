"""What every test shares: no network, few threads, fixed seeds, and where the reference outputs lie."""

import gc
import os
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Before anything imports transformers or torch: both read these once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Under pytest-xdist every worker has a core of its own; more threads per worker only make them queue.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import numpy as np
import pytest
import typer.main
import typer.testing

# An app does not change: its commands, 35 ms of work, are built once and not at every call in this process.
typer.main.get_command = typer.testing._get_command = cache(typer.main.get_command)
# Imports make a million objects that stay: with the default of 700 they would be gone over again and again.
gc.set_threshold(50_000, 10, 10)

REPO_ROOT = Path(__file__).resolve().parent.parent


def find_golden_dir() -> Path:
    """Folder of the reference outputs: ``MOAI_GOLDEN_DIR``, else ``shared/golden`` beside the repository."""
    return Path(os.environ.get("MOAI_GOLDEN_DIR") or REPO_ROOT.parent / "shared" / "golden")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository's top folder."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder holding ``moai/`` and ``psgtr/`` reference outputs; skips where it is absent."""
    golden = find_golden_dir()
    if not golden.is_dir():
        if os.environ.get("MOAI_GOLDEN_DIR"):
            pytest.fail(f"MOAI_GOLDEN_DIR is set but is no folder: {golden}")
        pytest.skip("no reference outputs here: set MOAI_GOLDEN_DIR to the folder that holds moai/ and psgtr/")
    return golden


def _keep_environment() -> Iterator[None]:
    """Undo what a command under test sets for its own process: a later test's processes would inherit it."""
    before = dict(os.environ)
    yield
    own = "PYTEST_CURRENT_TEST"
    for name in os.environ.keys() - before.keys() - {own}:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name != own})


kept_environment = pytest.fixture(autouse=True)(_keep_environment)
#: What fixtures of a module set.
kept_module_environment = pytest.fixture(autouse=True, scope="module")(_keep_environment)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seed every generator a test can reach, so that a failure repeats alone and under any order."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file on one worker: what they share takes long to build, and would be built on each."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_finish() -> None:
    """Leave alone what collecting has imported: tests' own garbage is found sooner, and forks share the memory."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests where no CUDA device is present."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def tiny_config():
    """A Llama-family configuration with two mixers; see tests/builders.py for other families and sizes."""
    from builders import build_tiny_config

    return build_tiny_config()


@pytest.fixture
def tiny_model():
    """A seeded tiny model of that configuration with a loud mixture, in evaluation mode."""
    from builders import build_tiny_model

    return build_tiny_model()
