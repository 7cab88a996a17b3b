"""FSDP2: checkpoints and results are whole whatever the number of processes (two of them, on the CPU)."""

import os
import subprocess
import sys

import pytest
from training_builders import REPO_ROOT

pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')


@pytest.mark.slow
def test_sharded_state_goes_on_as_whole_when_collected_and_restored() -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = os.pathsep.join([str(REPO_ROOT), str(REPO_ROOT / "tests")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, *launcher, str(REPO_ROOT / "tests" / "sharded_training.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0 and "sharded training is whole training" in run.stdout, run.stdout + run.stderr
