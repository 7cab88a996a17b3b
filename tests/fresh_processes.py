"""Fresh interpreters, several of them for the price of one: forks of a process that has loaded what all stand on."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Neither transformers nor moai: how those are first imported is what is tested.
_PARENT = """
import importlib, importlib.util, os, sys
for name in ("torch._dynamo", "torchvision", "scipy.optimize", "tokenizers", "huggingface_hub", "accelerate"):
    if importlib.util.find_spec(name.split(".")[0]):
        importlib.import_module(name)
assert "transformers" not in sys.modules and "moai" not in sys.modules
for script in sys.argv[1:]:
    if not os.fork():
        exec(script)
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0, script
"""


def run_each(scripts: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run scripts one after the other, each in an interpreter that has imported neither transformers nor moai.

    Args:
        scripts: Of Python.
        folder: Where.
        environment: Variables; None = this process's.

    Returns:
        Lines that they print.
    """
    command = [sys.executable, "-c", _PARENT, *scripts]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
