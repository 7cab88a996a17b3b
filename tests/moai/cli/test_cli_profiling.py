"""`moai verbalize --profile`: time and memory per verbalizer, as a table and in JSON."""

import json

import pytest
from typer.testing import CliRunner

from moai.cli import app
from moai.cli.profiling import summarise_costs
from verbalizers.core.profiling import Cost


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_summary_keeps_medians_when_there_are_several_images():
    images = [[Cost("ocr/rapidocr", seconds, 3.0 if seconds == 1 else None, peak, None)] for seconds, peak in
                ((1, 50), (9, 80), (2, 10))]  # fmt: skip
    (row,) = summarise_costs(images)
    assert row["seconds"] == "2.000 [1.000-9.000]" and row["first look"] == "3.000" and row["peak MiB"] == "80"
    assert row["peak GPU MiB"] == row["failed"] == ""
    assert summarise_costs([]) == []


def test_profile_prints_a_table_when_a_reader_looks(repo_root):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    image = repo_root / "examples" / "street.jpg"
    result = run("verbalize", image, "--verbalizers", "ocr", "--profile")
    assert result.exit_code == 0 and "Traceback" not in result.output
    (line,) = [line for line in result.stdout.splitlines() if "ocr/rapidocr" in line]
    first, seconds, peak = (float(cell) for cell in line.split("│")[2:-1])
    assert first > 0 and seconds > 0 and peak > 1
    assert "The image includes text descriptions" in result.stdout

    row = json.loads(run("verbalize", image, "--verbalizers", "ocr", "--profile", "--json").stdout)
    (cost,) = row["profile"]
    assert cost["name"] == "ocr/rapidocr" and cost["seconds"] > 0 and cost["first_seconds"] > 0
    assert row["scene"]["text_lines"]["texts"]


def test_profile_says_so_when_nobody_looks_or_a_data_set_is_given(repo_root, tmp_path):
    image = repo_root / "examples" / "street.jpg"
    assert "nothing to profile" in run("verbalize", image, "--verbalizers", "none", "--profile").stdout
    result = run("verbalize", repo_root / "examples", "--out", tmp_path / "cache", "--profile")
    assert result.exit_code == 1 and "--overlay with images only" in result.stderr
