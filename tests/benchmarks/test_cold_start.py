"""The benchmark of cold starts measures what it says; it asserts no time."""

import subprocess

import pytest
from fresh_processes import run_each

from benchmarks import cold_start
from benchmarks.cold_start import COMMANDS, IMPORTS, ROOT, Pair, measure, time_process


def test_processor_time_is_the_process_own_when_it_sleeps() -> None:
    cpu, wall = time_process("import time; time.sleep(0.5)")
    assert 0 < cpu < wall and wall >= 0.5


def test_failure_is_reported_when_a_script_fails() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        time_process("raise SystemExit(3)")


def test_scripts_alternate_when_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def record(script: str) -> tuple[float, float]:
        ran.append(script)
        return (3.0, 30.0) if script == "ours" else (2.0, 10.0)

    monkeypatch.setattr(cold_start, "time_process", record)
    (row,) = measure([Pair("ours", "theirs")], 2, is_wall=False)
    assert ran == ["ours", "theirs"] * 3  # one round to warm up
    assert row == "| `ours` | `theirs` | 3.00 [3.00-3.00] | 2.00 [2.00-2.00] | 1.50 [1.50-1.50] |"
    (row,) = measure([Pair("ours", "theirs", "name")], 2, is_wall=True)
    assert row.startswith("| `name` |") and "| 3.00 [3.00-3.00] |" in row


@pytest.mark.slow
def test_both_sides_run_when_measured() -> None:
    scripts = dict.fromkeys(script for pair in IMPORTS + COMMANDS for script in (pair.ours, pair.reference))
    run_each(list(scripts), ROOT)
