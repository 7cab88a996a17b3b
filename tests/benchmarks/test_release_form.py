"""The benchmark compares like with like only if both forms compute the same thing: that is checked here."""

import json

import pytest
import torch

from benchmarks import forward, measurement
from benchmarks.forward_variants import (
    NUM_DECODE_STEPS,
    OURS,
    PHASES,
    RELEASE,
    VARIANTS,
    OursRunner,
    ReleaseRunner,
    Sizes,
    build_runners,
    largest_difference,
)

SMALL = Sizes(hidden_size=64, num_layers=4, image_grid=3, num_text_tokens=20, num_auxiliary_words=5, vocab_size=128)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[1, 3], ids=["one", "batch"])
def runners(request: pytest.FixtureRequest) -> dict[str, object]:
    return build_runners(SMALL, request.param, CPU)


@pytest.mark.parametrize("phase", PHASES)
def test_release_form_equals_ours_when_nothing_is_padded(runners: dict[str, object], phase: str) -> None:
    runners[OURS].prefill(), runners[RELEASE].prefill()
    assert largest_difference(runners, phase) < 2e-5


def test_training_gradients_are_equal_when_both_forms_differentiate(runners: dict[str, object]) -> None:
    gradients = []
    for name in (OURS, RELEASE):
        runners[name].training()
        parameters = runners[name].model.named_parameters()
        gradients.append({key: value.grad.clone() for key, value in parameters if value.grad is not None})
    ours, release = gradients
    assert set(ours) == set(release)
    assert {key.split(".")[1] for key in ours} >= {"compressor", "mixers", "language_model"}
    for key in ours:
        torch.testing.assert_close(
            ours[key], release[key], rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_difference_is_seen_when_one_gate_changes() -> None:
    """The comparison is no comparison if it cannot fail: break one side's weights."""
    runners = build_runners(SMALL, 1, CPU)
    other = build_runners(SMALL, 1, CPU)
    assert isinstance(runners[OURS], OursRunner)
    assert isinstance(other[RELEASE], ReleaseRunner)
    with torch.no_grad():
        other[RELEASE].model.model.mixers.layers[0].image_gate.bias[0] += 1.0
    assert (runners[OURS].prefill() - other[RELEASE].prefill()).abs().max() > 1e-4


def test_decode_leaves_the_prompt_cache_as_it_was_when_repeated(runners: dict[str, object]) -> None:
    runner = runners[OURS]
    runner.prefill()
    length = runner.cache.get_seq_length()
    first, second = runner.decode(), runner.decode()
    assert runner.cache.get_seq_length() == length
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_times_alternate_when_several_calls_are_measured() -> None:
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = measurement.time_alternating(calls, num_rounds=2, device=CPU, num_warmups=1)
    assert "".join(order) == "abccbaabc"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratio_pairs_rounds_when_the_machine_slows_down() -> None:
    """Everything doubles in round two; a ratio of medians over unequal rounds would move, paired ratios do not."""
    ratio = measurement.paired_ratio([20.0, 40.0], [10.0, 20.0])
    assert (ratio.median, ratio.lower, ratio.upper) == (2.0, 2.0, 2.0)


def test_peak_memory_counts_what_a_call_holds_when_it_is_freed_again() -> None:
    mebibytes = measurement.peak_memory_mib(lambda: torch.ones(64 * 2**18).sum(), CPU)
    assert 60 < mebibytes < 80


def test_memory_process_prints_one_json_object_when_asked(monkeypatch, capsys) -> None:
    monkeypatch.setitem(forward.SIZES, "small", SMALL)
    forward.main(["--measure-memory-of", "ours", "prefill", "1", "--threads", "1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]).keys() == {"peak_mib"}


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    return forward.measure_times(SMALL, [1], 1, CPU)


def test_tables_show_every_variant_and_aim_when_printed(measured: list[dict]) -> None:
    peaks = {"peak_mib": dict.fromkeys(VARIANTS, 10.0)}
    records = [record | peaks | {"batch": batch} for batch in (1, 2) for record in measured]
    printed = forward.to_markdown("a machine", records)
    assert len(records) == len(PHASES) * 2
    for text in ("(a) ours", "(b) release", "(c) backbone", "(>= 2)", "(>= 3)", "(<= 1.10)", "(<= 1.02)", "(<= 0.6)"):
        assert text in printed
    assert printed.count("| a+ / c |") == len(records) and printed.count("(<= 1.05)") == 2 * len(records)


def test_decode_record_is_per_step_when_a_call_runs_several(measured: list[dict]) -> None:
    (record,) = [record for record in measured if record["phase"] == "decode"]
    sizes, length = SMALL, SMALL.num_image_tokens + SMALL.num_text_tokens
    width = sizes.hidden_size
    linears = (
        sizes.num_layers * (2 * width**2 + 2 * width**2 // 4 + 3 * width * (7 * width // 2)) + width * sizes.vocab_size
    )
    assert record["flops"]["ours"]["products"] == 2 * linears
    seen = sum(length + step for step in range(1, NUM_DECODE_STEPS + 1)) / NUM_DECODE_STEPS
    assert record["flops"]["ours"]["attention"] == 4 * width * sizes.num_layers * seen
    assert len(record["times_ms"]["ours"]) == NUM_DECODE_STEPS
