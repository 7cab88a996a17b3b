"""The OpenAPI schema, tried out by schemathesis on a real server; and what the documentation says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked_processes import ForkedProcess, run_module, wait_for_line
from pipeline_builders import write_tiny_checkpoint
from serving_builders import serving

from moai.cli import app as command_line

REPO_ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_schema_holds_when_schemathesis_tries_it_out(tmp_path):
    pytest.importorskip("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with serving(write_tiny_checkpoint(tmp_path), max_new_tokens=4) as app:
        address = f"http://127.0.0.1:{app.state.port}/openapi.json"
        script = Path(sys.executable).parent / "schemathesis"
        command = [script, "run", address, "--checks", checks, "--max-examples", "20", "--seed", "1"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_options_are_documented_when_they_bound_something():
    import typer

    text = (REPO_ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    options = {name for each in typer.main.get_command(command_line).commands["serve"].params for name in each.opts}
    elsewhere = {"model", "--host", "--port", "--name", "--debug"}
    assert [name for name in sorted(options - elsewhere) if name.startswith("--") and f"`{name}`" not in text] == []
    assert set(re.findall(r"^\| `(--[a-z-]+)`", text, flags=re.MULTILINE)) <= options


def test_readme_command_serves_and_says_where_when_typed(tmp_path):
    readme = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^moai (serve .*?)\s*(?:#.*)?$", readme, flags=re.MULTILINE)
    server = ForkedProcess(lambda: run_module("moai", *line.split(), "--port", "0"))
    try:
        told = wait_for_line(server, " answers at ")
        assert re.sub(r":\d{2,5}", ":8000", told) in readme
    finally:
        server.kill()
