"""docs/tour.ipynb runs from top to bottom, offline, with the bundled model."""

import json
import runpy
from pathlib import Path

import pytest
from forked_processes import ForkedProcess

REPO_ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom_when_executed(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    pytest.importorskip("timm")
    cells = json.loads((REPO_ROOT / "docs" / "tour.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (tmp_path / "tour.py").write_text("\n\n".join(code), encoding="utf-8")
    process = ForkedProcess(lambda: runpy.run_path("tour.py", run_name="__main__"), tmp_path)
    told, _ = process.communicate()
    assert process.returncode == 0, told[-2000:]
    assert "PLEASE" in told and "| recognition |" in told
