"""Pooled runs of `moai reroute`."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_builders import write_tiny_checkpoint

from benchmarks.rerouting import METHODS, describe_method, main


def test_seeds_are_pooled_and_finished_runs_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "tiny")
    words = ["--model", str(tiny), "--out", str(tmp_path / "out"), "--conditions", "ocr"]
    words += [
        "--kinds",
        "existence",
        "reading",
        "--seeds",
        "0",
        "1",
        "--per-kind",
        "3",
        "--references",
        "3",
        "--oracle",
        "2",
    ]
    words += ["--settings", "image_size=32", "num_objects=[1,3]", "max_new_tokens=3"]
    main(words)
    told = capsys.readouterr().out
    table = told[told.index("|  | ocr |") :]
    assert all(f"| `{method}` |" in table for method in METHODS) and "4 other questions" in table
    assert "ocr: 12 questions, 6 references" in table
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("samples*.jsonl")}
    main(words)
    assert capsys.readouterr().out.strip() == table.strip()
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    with pytest.raises(ValueError, match="expected references of these settings"):
        main([*words, "--references", "4"])


def test_sums_are_told_against_the_gates() -> None:
    table = {"all": {"asked": 10, "right": 6}, "reading": {"asked": 5, "right": 1}}
    against = {"picked": {"all": {"only_first": 0, "only_second": 5}}}
    run = {"results": {"model": table, "picked": table}, "against_model": against}
    assert describe_method([run, run], "model").startswith("60.0 (")
    assert describe_method([run, run], "picked").endswith("[0/10, 0.002]")
