"""What a run shows: lines, the live table, trackers, plots."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from moai.models.moai.task_moai import mean_routing
from moai.training.metrics_logging import MetricsLogger, StepNumbers, read_log
from moai.training.plotting import draw_plots
from moai.training.train_settings import OptimizationSettings, WatchingSettings
from moai.training.trainer import learning_rate_factor


def numbers(loss: float = 6.0) -> StepNumbers:
    image, language = [1.0, 2.0, 1.0, 4.0, 4.0], [0.0, 0.0, 3.0, 0.0, 3.0]
    sums = torch.tensor([[image, language], [image, language]], dtype=torch.float64)
    return StepNumbers(loss, 3.0, 100.0, 4.0, 1, {"routing": sums})


def report(counters: dict) -> dict:
    return {"routing": mean_routing(counters["routing"]), "share": 0.25}


def test_line_is_the_mean_over_its_interval_when_written(tmp_path: Path) -> None:
    sent = []
    settings = WatchingSettings(every_steps=2, is_live=False)
    track = lambda values, step: sent.append((step, values))  # noqa: E731
    with MetricsLogger(settings, tmp_path, 5, track=track, report=report) as logger:
        for step, loss in enumerate((3.0, 9.0, 1.0, 2.0, 30.0), start=1):
            logger.record(step, numbers(loss), 1e-3, 0.5)
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert [line["loss"] for line in lines] == [pytest.approx(2.0), pytest.approx(0.5), pytest.approx(10.0)]
    assert logger.last_loss == pytest.approx(10.0)
    image = lines[0]["routing"]["image"]
    assert image["auxiliary"] == 0.25 and image["language"] == 0.5 and image["entropy"] == 1.0
    assert lines[0]["routing"]["language"]["language"] == 1.0 and len(image["layers"]) == 2
    assert sent[0][0] == 2 and sent[0][1]["routing/image/auxiliary"] == 0.25 and "step" not in sent[0][1]


@pytest.mark.parametrize(("is_live", "is_terminal"), [(True, False), (None, True), (None, False), (False, True)])
def test_table_is_shown_where_it_is_asked_for_or_stdout_is_a_terminal(
    is_live: bool | None,
    is_terminal: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", "100")
    with MetricsLogger(WatchingSettings(every_steps=1, is_live=is_live), tmp_path, 2, report=report) as logger:
        for step in (1, 2):
            logger.record(step, numbers(step), 1e-3, 0.5)
    shown = capsys.readouterr().out
    has_table = is_live or (is_live is None and is_terminal)
    assert ("step 2 of 2" in shown and "auxiliary" in shown) == has_table
    assert ("step 1/2 loss" in shown) != has_table
    assert len(read_log(tmp_path / "log.jsonl")) == 2


def test_interval_goes_on_when_resumed_in_its_middle(tmp_path: Path) -> None:
    settings = WatchingSettings(every_steps=3, is_live=False)
    with MetricsLogger(settings, tmp_path / "whole", 3, report=report) as whole:
        for step in (1, 2, 3):
            whole.record(step, numbers(step), 1e-3, 0.5)
    first = MetricsLogger(settings, tmp_path / "broken", 3, report=report)
    first.record(1, numbers(1), 1e-3, 0.5)
    window = json.loads(json.dumps(first.window.to_dict()))  # as a checkpoint keeps it
    (tmp_path / "broken" / "log.jsonl").write_text('{"step": 3, "loss": 9.0}\n{"step": 6, "lo', encoding="utf-8")
    second = MetricsLogger(settings, tmp_path / "broken", 3, start=1, window=window, report=report)
    for step in (2, 3):
        second.record(step, numbers(step), 1e-3, 0.5)
    lines = [read_log(tmp_path / run / "log.jsonl") for run in ("whole", "broken")]
    assert len(lines[1]) == 1  # what came after the checkpoint is gone, and so is the line that a kill cut
    assert lines[0][0]["loss"] == lines[1][0]["loss"] and lines[0][0]["routing"] == lines[1][0]["routing"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_log_is_named_and_kept_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "log.jsonl"
    settings = WatchingSettings(every_steps=1, is_live=False)
    logger = MetricsLogger(settings, tmp_path, 3, report=report)
    logger.record(1, numbers(1), 1e-3, 0.5)
    before = file.read_bytes()

    def write_to_full(path: Path, text: str, **options: object) -> None:
        with open("/dev/full", "w") as full:
            full.write(text)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_to_full)
        with pytest.raises(OSError, match="log.jsonl"):
            MetricsLogger(settings, tmp_path, 3, start=1, report=report)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    file.unlink()
    file.symlink_to("/dev/full")
    with pytest.raises(OSError, match="log.jsonl"):
        logger.record(2, numbers(2), 1e-3, 0.5)


def test_live_table_tells_everything_when_shown(tmp_path: Path) -> None:
    logger = MetricsLogger(WatchingSettings(is_live=True), tmp_path, 100, start=10, report=report)
    logger.window.add(numbers())
    console = Console(file=io.StringIO(), width=120)
    console.print(logger._render(logger._line(20, 1e-3, 0.5)))
    shown = console.file.getvalue()
    for word in (
        "step 20 of 100",
        "loss",
        "2.0000",
        "1.00e-03",
        "tokens/s",
        "samples/s",
        "ETA",
        "entropy",
        "0.250",
        "share",
    ):
        assert word in shown and "share" in shown, word


def test_plots_are_drawn_when_matplotlib_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert draw_plots(tmp_path) == []
    with MetricsLogger(WatchingSettings(every_steps=1, is_live=False), tmp_path, 2, report=report) as logger:
        for step in (1, 2):
            logger.record(step, numbers(), 1e-3, 0.5)
    from moai import import_utils

    with monkeypatch.context() as patch:
        patch.setattr(import_utils, "_is_package_available", lambda package: package != "matplotlib")
        assert draw_plots(tmp_path) == []
        assert "matplotlib" in capsys.readouterr().out
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    assert [path.name for path in draw_plots(tmp_path)] == ["loss.png", "routing.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))


def test_rate_rises_and_falls_when_steps_pass() -> None:
    settings = OptimizationSettings(num_steps=100, warmup_share=0.1, final_share=0.2)
    rates = [learning_rate_factor(step, 100, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(later <= earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.6) and rates[100] == pytest.approx(0.2)
    assert learning_rate_factor(0, 5, OptimizationSettings(num_steps=5, warmup_share=0.0)) == 1.0
