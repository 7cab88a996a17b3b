"""`moai ablate`: settings of a sweep, comparisons, report, and a whole sweep of a tiny model."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from training_builders import write_tiny_checkpoint
from typer.testing import CliRunner

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')

from moai.cli import app  # noqa: E402
from moai.evaluation.intervals import wilson_interval  # noqa: E402
from moai.evaluation.report import (  # noqa: E402
    BEGIN,
    END,
    collect_scores,
    compare,
    draw_sweep,
    interval_of,
    sweep_report,
    write_markdown,
)
from moai.evaluation.sweep import SweepResult, fingerprint, load_results, run_sweep, select_jobs  # noqa: E402
from moai.evaluation.sweep_settings import SweepSettings, load_sweep_settings  # noqa: E402
from moai.settings import load_settings, to_plain  # noqa: E402
from verbalizers.core.durable_files import hold_folder  # noqa: E402

SETTINGS = Path(__file__).resolve().parents[3] / "configs" / "ablation.yaml"
TINY = {
    "recipe": {
        "stage": 2,
        "model": {"fresh_parts": ["gates"]},
        "train": {"decoder": "full"},
        "optimization": {"batch_size": 4, "micro_batch_size": 4},
        "saving": {"every_steps": 1, "dtype": "float32"},
        "watching": {"has_plots": False, "every_steps": 1},
        "data": {"sources": [{"scenes": {"length": 4, "num_questions": 2, "image_size": 32}}]},
    },
    "stages": {
        "first": ["stage=1", "optimization.num_steps=1"],
        "second": ["stage=2", "optimization.num_steps=2"],
    },
    "evaluate": {"per_kind": 2, "kinds": ["existence", "reading"], "image_size": 32, "num_objects": [1, 2]},
    "variants": [
        {"name": "full", "label": "all", "table": "Reference"},
        {
            "name": "no-ocr",
            "label": "no OCR",
            "table": "A",
            "train": ["data.kinds=[segmentation]"],
            "evaluate": ["verbalizers=[segmentation]"],
            "worse_at": ["reading"],
        },
        {
            "name": "random",
            "label": "random weights",
            "table": "B",
            "stages": {"second": ["routing=random_weights"]},
            "evaluate": ["options.routing=random_weights"],
        },
        {
            "name": "latents",
            "label": "2 latents",
            "table": "C",
            "train": ["model.compressor.num_latents=2", "model.keeps_fitting=true"],
        },
        {"name": "start", "label": "start", "table": "D", "stages": {}, "compared_with": "start"},
        {
            "name": "start-silent",
            "label": "silent",
            "table": "D",
            "stages": {},
            "compared_with": "start",
            "evaluate": ["verbalizers=[]", "options.top_k=1"],
        },
    ],
}


@pytest.fixture(scope="module")
def sweep() -> SweepSettings:
    return load_sweep_settings(SETTINGS)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("start"))


def tiny(**changes) -> SweepSettings:
    return load_settings(SweepSettings, {**TINY, **changes})


def made_up(sweep: SweepSettings, shares: dict[str, float], seeds=(0, 1)) -> dict:
    """Results in which each named variant answers the first questions of every kind right, up to a share."""
    count = sweep.evaluate.per_kind
    results = {}
    for name, share in shares.items():
        kinds = tuple(kind for kind in sweep.evaluate.kinds for _ in range(count))
        right = tuple(bool(k < share * count) for _ in sweep.evaluate.kinds for k in range(count))
        for seed in seeds:
            results[name, seed] = SweepResult(name, seed, "made up", kinds, ("",) * len(kinds), right, 60.0, 3.0)
    return results


def test_settings_of_the_repository_cover_the_papers_tables_when_read(sweep):
    recipes = {
        variant.name: [sweep.recipe_of(variant, stage, 0, "start", Path("out")) for stage in sweep.stages_of(variant)]
        for variant in sweep.variants
    }
    trained = {name: stages for name, stages in recipes.items() if stages}
    assert {tuple(one["stage"] for one in stages) for stages in trained.values()} == {(1, 2), (1,), (2,)}
    steps = {name: sum(one["optimization"]["num_steps"] for one in stages) for name, stages in trained.items()}
    assert len(set(steps.values())) == 1, steps
    assert {stages[-1].get("top_k") for stages in trained.values()} == {None, 1, 2}
    assert {stages[-1].get("routing") for stages in trained.values()} == {None, "uniform", "random_weights"}
    latents = {stages[0]["model"].get("compressor", {}).get("num_latents") for stages in trained.values()}
    assert len(latents) == 3
    for name, stages in trained.items():
        told = tuple(stages[-1]["data"]["kinds"]) if "kinds" in stages[-1]["data"] else None
        assert told == sweep.test_of(sweep.find(name)).verbalizers  # tested with what it was trained with
    silent = [set(sweep.test_of(variant).verbalizers or ()) for variant in sweep.variants]
    assert {"segmentation", "detection", "scene_graph"} in silent and {"scene_graph", "ocr"} in silent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [0]}, "sedes.*Did you mean 'seeds'"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "gate": "uniform"}]}, "gate"),
        ({"variants": [{"name": "a", "label": "a"}]}, "expected the setting `variants\\[0\\].table`"),
        ({"variants": [{"name": "a b", "label": "a", "table": "t"}]}, r"variants\[0\].name"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "train": ["topk=2"]}]}, "'a'.*topk.*top_k"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "evaluate": ["options.routing=learned"]}]}, "learned"),
        (
            {"variants": [{"name": "a", "label": "a", "table": "t", "stages": {}, "evaluate": ["options.routing=b"]}]},
            "'b'",
        ),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "evaluate": ["options.top_k=true"]}]}, "top_k.*True"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "evaluate": ["options.style=b"]}]}, "style"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "evaluate": ["per_kind=7"]}]}, "same questions"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "stages": {"third": []}}]}, "third"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "compared_with": "b"}]}, "'b'"),
        ({"variants": [{"name": "a", "label": "a", "table": "t"}] * 2}, "names of their own"),
        ({"variants": []}, "at least one"),
        ({"seeds": []}, "seeds"),
        ({"evaluate": {"kinds": ["description"]}}, "description"),
    ],
)
def test_settings_name_the_mistake_when_a_field_is_wrong(tmp_path, change, message):
    path = tmp_path / "ablation.yaml"
    path.write_text(yaml.safe_dump({**TINY, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_sweep_settings(path)


def test_recipes_differ_in_what_variants_name_only_when_turned_into_training(sweep):
    folder = Path("out")
    full, other = (sweep.recipe_of(sweep.find(name), "second", 0, "start", folder) for name in ("full", "without-ocr"))
    assert other["data"].pop("kinds") == ["segmentation", "detection", "scene_graph"]
    assert other == full
    first, second = (sweep.recipe_of(sweep.find("full"), "first", seed, "start", folder) for seed in (0, 1))
    assert (first["seed"], second["seed"]) == (0, 1)
    seeds = [recipe["data"]["sources"][0]["scenes"]["seed"] for recipe in (first, second)]
    assert seeds[0] != seeds[1]


def test_later_stages_go_on_from_the_first_when_it_made_a_start(sweep):
    variant = sweep.find("half-latents")
    first, second = (sweep.recipe_of(variant, stage, 0, "before", Path("out")) for stage in ("first", "second"))
    assert first["model"]["compressor"] == {"num_latents": 48} and first["model"]["fresh_parts"] == ["gates"]
    assert second["model"] == {"dtype": "float32", "path": "before"}


def test_fingerprint_changes_when_anything_that_decides_changes():
    def of(sweep: SweepSettings, name: str = "full", seed: int = 0, weights: str = "w") -> str:
        return fingerprint(sweep, sweep.find(name), seed, weights)

    variants = [dict(TINY["variants"][0], label="other words", worse_at=["reading"]), *TINY["variants"][1:]]
    assert of(tiny()) == of(tiny(variants=variants))
    evaluate = {**TINY["evaluate"], "noise": 0.5}
    others = {of(tiny(), seed=1), of(tiny(), weights="v"), of(tiny(), "random"), of(tiny(evaluate=evaluate))}
    assert len(others | {of(tiny())}) == 5


def test_jobs_come_seed_by_seed_when_selected():
    chosen = tiny(seeds=[0, 1])
    order = [(variant.name, seed) for variant, seed in select_jobs(chosen)]
    assert order[:2] == [("start", 0), ("start-silent", 0)]  # the start depends on no seed
    assert order[2:] == [(name, seed) for seed in (0, 1) for name in ("full", "no-ocr", "random", "latents")]
    assert {variant.name for variant, _ in select_jobs(chosen, ("random",))} == {"full", "random"}
    assert {variant.name for variant, _ in select_jobs(chosen, ("start-silent",))} == {"start", "start-silent"}
    with pytest.raises(ValueError, match="top-9"):
        select_jobs(chosen, ("top-9",))


def test_interval_is_wilsons_when_there_is_one_seed_or_no_seed_is_ever_right(sweep):
    count = sweep.evaluate.per_kind
    scores = collect_scores(sweep, made_up(sweep, {"full": 0.5}, seeds=(0,)), sweep.find("full"))
    found = interval_of(scores, ("reading",))
    assert (found.value, found.low, found.high) == (0.5, *wilson_interval(count // 2, count))
    found = interval_of({seed: {"reading": np.zeros(50)} for seed in range(2)}, ("reading",))
    assert (found.value, found.low, found.high) == (0.0, *wilson_interval(0, 50))


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.3, "as in the paper"), (0.9, "against the paper"), (0.6, "no difference")]
)
def test_verdict_follows_the_interval_when_compared(sweep, share, verdict):
    results = made_up(sweep, {"full": 0.6, "without-ocr": share})
    found = compare(sweep, results, sweep.find("without-ocr"))
    assert found.kinds == ("reading",) and found.verdict == verdict
    assert found.difference.low <= found.difference.value <= found.difference.high
    assert found.difference.value == pytest.approx(share - 0.6)
    assert compare(sweep, results, sweep.find("full")) is None


def test_difference_is_surer_than_its_parts_when_questions_are_paired(sweep):
    rng = np.random.default_rng(0)
    kinds = tuple(kind for kind in sweep.evaluate.kinds for _ in range(60))
    base = rng.random(len(kinds)) < 0.5
    worse = base & (rng.random(len(kinds)) > 0.1)  # loses some of what the reference has, gains nothing
    results = {
        (name, 0): SweepResult(name, 0, "", kinds, (), tuple(right.tolist()), 0.0, 0.0)
        for name, right in (("full", base), ("top-1", worse), ("top-2", ~base))
    }
    found = compare(sweep, results, sweep.find("top-1"))
    alone = interval_of(collect_scores(sweep, results, sweep.find("full")), sweep.evaluate.kinds)
    assert found.verdict == "as in the paper"
    assert found.difference.high - found.difference.low < alone.high - alone.low
    assert compare(sweep, results, sweep.find("top-2")).verdict == "undecided"  # gains and losses are about as many


def test_start_is_compared_with_itself_when_changed_in_the_test(sweep):
    results = made_up(sweep, {"full": 0.1, "nano": 0.9, "nano-uniform": 0.5}, seeds=(0,))
    assert compare(sweep, results, sweep.find("nano-uniform")).difference.value == pytest.approx(-0.4)


def test_report_holds_every_finished_variant_when_written(sweep, tmp_path):
    results = made_up(sweep, {"full": 0.6, "without-ocr": 0.3, "nano": 0.8})
    report = sweep_report(sweep, results, "ablation.png")
    assert "60 (48-71)" not in report  # two seeds: not the interval of one
    labels = (
        "reference: all verbalizers",
        "without OCR",
        "as it is",
        "as in the paper",
        "19 variants are not finished",
    )
    assert all(label in report for label in labels)
    assert "| without OCR | 2 | 30 (" in report
    tables = [line for line in report.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (6, 11) for line in tables)
    pytest.importorskip("matplotlib")
    draw_sweep(sweep, results, tmp_path / "plots" / "ablation.png")
    assert (tmp_path / "plots" / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_keeps_what_surrounds_the_marks_when_replaced(tmp_path):
    path = tmp_path / "docs" / "ablation.md"
    write_markdown(path, "first\n")
    path.write_text(f"# Title\n\n{path.read_text(encoding='utf-8')}\nafter\n", encoding="utf-8")
    write_markdown(path, "second\n")
    begin, end = (mark.format(command="ablate") for mark in (BEGIN, END))
    assert path.read_text(encoding="utf-8") == f"# Title\n\n{begin}\nsecond\n{end}\n\nafter\n"
    path.write_text("my own notes\n", encoding="utf-8")
    with pytest.raises(ValueError, match="which exists"):
        write_markdown(path, "third\n")
    assert path.read_text(encoding="utf-8") == "my own notes\n"


def write_settings(folder: Path, **changes) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}), encoding="utf-8")
    return path


@pytest.mark.slow
def test_command_trains_tests_and_reports_every_variant_when_run(start, tmp_path):
    words = ["ablate", "--start", str(start), "--out", str(tmp_path / "out"), "--config", str(write_settings(tmp_path))]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    results = load_results(tiny(), start, tmp_path / "out")
    assert {name for name, _ in results} == {variant["name"] for variant in TINY["variants"]}
    assert all(len(result.right) == 4 for result in results.values())
    assert not list((tmp_path / "out" / "work").iterdir())  # weights are not kept
    assert "| no OCR | 1 |" in (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8")
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0 and "training" not in again.output  # nothing is run twice
    report = CliRunner().invoke(app, [*words, "--report"])
    assert report.exit_code == 0 and "### Reference" in report.output


def test_results_are_refused_when_made_with_others_settings_or_damaged(start, tmp_path):
    run_sweep(tiny(), start, tmp_path, ("start",))
    (path,) = (tmp_path / "results").iterdir()
    with pytest.raises(ValueError, match=r"made with others: `test.noise`: was 1.0 and is 0.5\."):
        load_results(tiny(evaluate={**TINY["evaluate"], "noise": 0.5}), start, tmp_path)
    other = write_tiny_checkpoint(tmp_path / "other")
    (other / "chat_template.jinja").write_text("{# other #}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"made with others: `start.chat_template.jinja`: has another content"):
        load_results(tiny(), other, tmp_path)
    path.write_text(json.dumps({"variant": "start"}), encoding="utf-8")
    with pytest.raises(ValueError, match="Remove the file"):
        load_results(tiny(), start, tmp_path)


def test_sweep_names_the_data_when_a_file_has_changed_and_waits_for_no_other(start, tmp_path):
    (tmp_path / "files").mkdir()
    file, row = tmp_path / "files" / "rows.jsonl", {"messages": [{"role": "user", "content": "who?"}]}
    answers = ["one dog", "two dogs", "red cat", "old cat"]

    def write():
        rows = [{"messages": [*row["messages"], {"role": "assistant", "content": answer}]} for answer in answers]
        file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")

    write()
    data = {"sources": [str(file)], "verbalizations": "none"}
    sweep = tiny(recipe={**TINY["recipe"], "data": data}, variants=[{**TINY["variants"][2], "compared_with": "random"}])
    out = tmp_path / "out"
    run_sweep(sweep, start, out)
    answers[1] = "no dogs"
    write()
    with pytest.raises(ValueError, match=r"made with others: .*rows.jsonl.texts`: row 2 is the first"):
        run_sweep(sweep, start, out)
    with ThreadPoolExecutor(1) as other, hold_folder(out), pytest.raises(ValueError, match="another process is writ"):
        other.submit(run_sweep, sweep, start, out).result()


def test_sweep_goes_on_from_the_last_checkpoint_when_interrupted(start, tmp_path, monkeypatch):
    from moai.training.trainer import Trainer

    config = write_settings(tmp_path)
    sweep = load_sweep_settings(config)
    whole = run_sweep(sweep, start, tmp_path / "whole", ("full",))
    step, made = Trainer._step, []

    def interrupting(self, number, *arguments):
        made.append((self.settings.stage, number))
        if made[-1] == (2, 0) and len(made) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number, *arguments)

    monkeypatch.setattr(Trainer, "_step", interrupting)
    words = ["ablate", "--start", str(start), "--out", str(tmp_path / "out"), "--only", "full"]
    stopped = CliRunner().invoke(app, [*words, "--config", str(config)])
    assert stopped.exit_code == 130, stopped.output
    assert made == [(1, 0), (2, 0)]
    result = run_sweep(sweep, start, tmp_path / "out", ("full",))["full", 0]
    assert made == [(1, 0), (2, 0), (2, 1)]
    times = {"train_seconds": 0.0, "test_seconds": 0.0, "seconds_per_question": 0.0}
    assert replace(result, **times) == replace(whole["full", 0], **times)


def test_command_says_what_to_do_when_the_start_or_the_settings_are_missing(start, tmp_path):
    words = ["ablate", "--start", str(start), "--out", str(tmp_path / "out")]
    missing = CliRunner().invoke(app, [*words, "--config", str(tmp_path / "none.yaml")])
    assert missing.exit_code == 1 and "none.yaml" in missing.output.replace("\n", "")
    config = ["--config", str(write_settings(tmp_path))]
    wrong = CliRunner().invoke(app, ["ablate", "--start", str(tmp_path / "nowhere"), *config])
    assert wrong.exit_code == 1 and "nowhere" in wrong.output.replace("\n", "")
    seeds = CliRunner().invoke(app, [*words, *config, "--seeds", "a,b"])
    assert seeds.exit_code == 1 and "0,1" in seeds.output


def test_result_is_read_as_it_was_written():
    result = SweepResult("full", 0, "f", ("reading",), ("STOP",), (True,), 1.5, 0.5)
    assert load_settings(SweepResult, json.loads(json.dumps(to_plain(result)))) == result
