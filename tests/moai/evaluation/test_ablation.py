"""The ablations' settings, arithmetic and report; the runs themselves are in test_ablation_run.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from moai.evaluation.ablation import AblationResult, select_jobs
from moai.evaluation.ablation_config import AblationConfig, Variant, load_ablation_config
from moai.evaluation.ablation_report import BEGIN, END, draw_ablation, markdown_report, write_markdown
from moai.evaluation.ablation_statistics import compare, mean_share, right_answers, share_of
from moai.evaluation.ablation_training import draw_routing
from moai.evaluation.answer_metrics import wilson_interval

SETTINGS = Path(__file__).resolve().parents[3] / "configs" / "ablation.yaml"


@pytest.fixture(scope="module")
def config() -> AblationConfig:
    return replace(load_ablation_config(SETTINGS), seeds=(0, 1))


def made_up(config: AblationConfig, shares: dict[str, float], seeds=(0, 1)) -> dict:
    """Results in which each named variant answers the first questions of every kind right, up to a share."""
    count = config.test.per_kind
    results = {}
    for name, share in shares.items():
        for seed in seeds:
            kinds = tuple(kind for kind in config.test.kinds for _ in range(count))
            right = tuple(k < share * count for _ in config.test.kinds for k in range(count))
            results[name, seed] = AblationResult(name, seed, "made up", kinds, right, 60.0, 3.0)
    return results


def test_settings_of_the_repository_cover_the_papers_tables_when_read(config):
    trained = [variant for variant in config.variants if variant.weights_of is None]
    assert {variant.stages for variant in trained} == {"both", "first", "second"}
    assert {variant.top_k for variant in trained} == {1, 2, 3}
    assert {variant.gates for variant in trained} >= {"trained", "uniform", "random"}
    assert any(variant.num_latents for variant in trained)
    missing = [set(config.reference.verbalizers) - set(variant.verbalizers) for variant in trained]
    assert {"ocr"} in missing and {"scene_graph"} in missing and {"segmentation", "detection"} in missing


def test_settings_start_from_a_finished_model_with_pictures_when_read():
    settings = load_ablation_config(SETTINGS)
    assert settings.start_stage == "finished"
    assert settings.recipe.questions.shards.with_pictures
    assert settings.recipe.questions.shards.image_size == settings.recipe.multimodal.vision["image_size"]
    assert {variant.top_k for variant in settings.variants} == {1, 2, 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [0]}, "sedes.*Correct the spelling"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "gate": "uniform"}]}, "gate"),
        ({"variants": [{"name": "a", "label": "a"}]}, "incomplete"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "gates": "learned"}]}, "learned"),
        ({"variants": [{"name": "a", "label": "a", "table": "t", "weights_of": "a"}]}, "must be trained"),
        ({"start_stage": "text"}, "start_stage"),
        ({"test": {"kinds": ["description"]}}, "description"),
    ],
)
def test_settings_name_the_mistake_when_a_field_is_wrong(tmp_path, change, message):
    values = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    (tmp_path / "nano.yaml").write_text((SETTINGS.parent / "nano.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    path = tmp_path / "ablation.yaml"
    path.write_text(yaml.safe_dump({**values, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_ablation_config(path)


def test_variants_differ_in_what_they_name_only_when_turned_into_training(config):
    full, blind = config.reference, config.find("without-ocr")
    ours, theirs = config.settings(full, 0), config.settings(blind, 0)
    assert theirs.shards.verbalizers == ("segmentation", "detection", "scene_graph")
    assert replace(theirs, shards=ours.shards) == ours
    steps = {name: config.settings(config.find(name), 0).first_stage_steps for name in ("first-stage", "second-stage")}
    assert steps == {"first-stage": ours.loop.num_steps, "second-stage": 0}
    assert config.settings(full, 0).shards.seed != config.settings(full, 1).shards.seed


def test_fingerprint_changes_when_anything_that_decides_changes(config):
    full = config.reference
    same = config.fingerprint(replace(full, label="other words", worse_at=("reading",)), 0, "start")
    assert config.fingerprint(full, 0, "start") == same
    others = {
        config.fingerprint(full, 1, "start"),
        config.fingerprint(full, 0, "another start"),
        config.fingerprint(replace(full, top_k=2), 0, "start"),
        replace(config, test=replace(config.test, per_kind=7)).fingerprint(full, 0, "start"),
        replace(config, start_stage="phrases").fingerprint(full, 0, "start"),
    }
    assert len(others) == 5 and same not in others


def test_jobs_put_weights_before_borrowers_and_seeds_one_after_another_when_selected(config):
    borrower = Variant("late", "late", "t", weights_of="full", top_k=1)
    jobs = select_jobs(replace(config, variants=(*config.variants, borrower)))
    order = [(variant.name, seed) for variant, seed in jobs]
    assert order.index(("full", 0)) + 1 == order.index(("late", 0)) < order.index(("top-1", 0))
    assert order.index(("half-latents", 0)) < order.index(("full", 1))
    assert [seed for name, seed in order if name == "nano"] == [0]  # the start has no seed
    assert {variant.name for variant, _ in select_jobs(config, ("top-1",))} == {"full", "top-1"}
    with pytest.raises(ValueError, match="top-9"):
        select_jobs(config, ("top-9",))


def test_routing_is_what_the_variant_says_when_drawn(config):
    full, stage_one, chance = config.reference, config.find("first-stage"), config.find("random-gates")
    assert draw_routing(full, "first", 3, 4, 3) == {"mode": "random_expert", "seed": 3}
    assert draw_routing(full, "second", 3, 4, 2) == {"mode": "gated", "top_k": 2}
    assert draw_routing(full, "test", 3, 4, 3) == {"mode": "gated", "top_k": 3}
    assert draw_routing(stage_one, "test", 3, 4, 3) == {"mode": "uniform"}
    assert draw_routing(config.find("nano-one-expert"), "test", 3, 4, 3)["mode"] == "random_expert"
    weights = draw_routing(chance, "second", 3, 4, 3)
    assert weights.shape == (4, 2, 3) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 2))
    assert torch.equal(weights, draw_routing(chance, "test", 3, 4, 3))
    assert not torch.equal(weights, draw_routing(chance, "test", 4, 4, 3))
    many = torch.stack([draw_routing(chance, "test", seed, 4, 3) for seed in range(500)])
    # A flat Dirichlet distribution over three has the mean 1/3 and the variance 1/18.
    torch.testing.assert_close(many.mean((0, 1, 2)), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(many.var((0, 1, 2)), torch.full((3,), 1 / 18), atol=0.01, rtol=0)


def test_share_is_wilsons_when_there_is_one_seed(config):
    right = right_answers(config, made_up(config, {"full": 0.5}, seeds=(0,)), config.reference)
    found, count = share_of(right, "reading"), config.test.per_kind
    assert found.value == 0.5
    assert (found.low, found.high) == wilson_interval(count // 2, count)


def test_share_stays_unsure_when_no_seed_is_ever_right():
    found = share_of({seed: {"reading": np.zeros(50)} for seed in range(2)}, "reading")
    assert (found.value, found.low, found.high) == (0.0, *wilson_interval(0, 50))


def test_interval_widens_when_seeds_disagree():
    rng = np.random.default_rng(0)
    alike = {seed: {"reading": (rng.random(400) < 0.5).astype(float)} for seed in range(3)}
    apart = {seed: {"reading": (rng.random(400) < 0.2 + 0.3 * seed).astype(float)} for seed in range(3)}
    narrow, wide = share_of(alike, "reading"), share_of(apart, "reading")
    assert narrow.low < narrow.value < narrow.high
    assert narrow.high - narrow.low < 0.1 < 0.25 < wide.high - wide.low


def test_mean_counts_every_kind_once_when_averaged():
    right = {0: {"existence": np.ones(10), "reading": np.zeros(30)}}
    assert mean_share(right).value == 0.5


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.3, "as in the paper"), (0.9, "against the paper"), (0.6, "no difference")]
)
def test_verdict_follows_the_interval_when_compared(config, share, verdict):
    results = made_up(config, {"full": 0.6, "without-ocr": share})
    found = compare(config, results, config.find("without-ocr"))
    assert found.kinds == ("reading",) and found.verdict == verdict
    assert found.difference.low <= found.difference.value <= found.difference.high
    assert found.difference.value == pytest.approx(share - 0.6)
    assert compare(config, results, config.reference) is None


def test_difference_is_surer_than_its_parts_when_questions_are_paired(config):
    rng = np.random.default_rng(0)
    kinds = tuple(kind for kind in config.test.kinds for _ in range(60))
    base = rng.random(len(kinds)) < 0.5
    worse = base & (rng.random(len(kinds)) > 0.1)  # loses some of what the reference has, gains nothing
    results = {
        (name, 0): AblationResult(name, 0, "", kinds, tuple(right.tolist()), 0.0, 0.0)
        for name, right in (("full", base), ("top-1", worse))
    }
    found = compare(config, results, config.find("top-1"))
    alone = mean_share(right_answers(config, results, config.reference))
    assert found.verdict == "as in the paper"
    assert found.difference.high - found.difference.low < alone.high - alone.low


def test_verdict_is_open_when_gains_and_losses_are_as_many(config):
    kinds = tuple(kind for kind in config.test.kinds for _ in range(60))
    flipped = [place % 2 == 0 for place in range(len(kinds))]
    results = {
        (name, 0): AblationResult(name, 0, "", kinds, tuple(right), 0.0, 0.0)
        for name, right in (("full", flipped), ("top-1", [not right for right in flipped]))
    }
    assert compare(config, results, config.find("top-1")).verdict == "undecided"


def test_start_is_compared_with_itself_when_changed_in_the_test(config):
    results = made_up(config, {"full": 0.1, "nano": 0.9, "nano-uniform": 0.5}, seeds=(0,))
    found = compare(config, results, config.find("nano-uniform"))
    assert found.difference.value == pytest.approx(-0.4)


def test_report_holds_every_finished_variant_when_written(config, tmp_path):
    results = made_up(config, {"full": 0.6, "without-ocr": 0.3, "nano": 0.8})
    report = markdown_report(config, results, "ablation.png")
    assert "60 (48-71)" not in report  # two seeds: not the interval of one
    for label in (
        "reference: all verbalizers",
        "without OCR",
        "as it is",
        "as in the paper",
        "variants are not finished",
    ):
        assert label in report
    assert "| without OCR | 2 | 30 (" in report
    tables = [line for line in report.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (6, 10) for line in tables)
    pytest.importorskip("matplotlib")
    draw_ablation(config, results, tmp_path / "plots" / "ablation.png")
    assert (tmp_path / "plots" / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_keeps_what_surrounds_the_marks_when_replaced(tmp_path):
    path = tmp_path / "docs" / "ablation.md"
    write_markdown(path, "first\n")
    path.write_text(f"# Title\n\n{path.read_text(encoding='utf-8')}\nafter\n", encoding="utf-8")
    write_markdown(path, "second\n")
    assert path.read_text(encoding="utf-8") == f"# Title\n\n{BEGIN}\nsecond\n{END}\n\nafter\n"
    path.write_text("my own notes\n", encoding="utf-8")
    with pytest.raises(ValueError, match="which exists"):
        write_markdown(path, "third\n")
    assert path.read_text(encoding="utf-8") == "my own notes\n"
