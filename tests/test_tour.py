"""docs/tour.ipynb runs from top to bottom, offline, with the bundled model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom_when_executed(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    pytest.importorskip("timm")
    cells = json.loads((REPO_ROOT / "docs" / "tour.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (tmp_path / "tour.py").write_text("\n\n".join(code), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "tour.py"]
    told = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert told.returncode == 0, told.stderr[-2000:]
    assert "PLEASE" in told.stdout and "| recognition |" in told.stdout
