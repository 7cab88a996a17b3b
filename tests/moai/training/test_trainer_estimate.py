"""Counted operations are those that a real step makes; the estimate's arithmetic adds up."""

from pathlib import Path

import pytest
import torch
from builders import build_tiny_config, build_tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_builders import REPO_ROOT, build_recipe

pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai.models.moai.task_moai import MoAITask, compute_loss  # noqa: E402
from moai.planning.weight_sizes import count_moai  # noqa: E402
from moai.training import step_timing  # noqa: E402
from moai.training.estimate import Cluster, estimate_run, format_table, main  # noqa: E402
from moai.training.flop_counting import SampleShape, StepCount, count_step  # noqa: E402
from moai.training.train_settings import load_settings  # noqa: E402

SHAPE = SampleShape(num_prompt_tokens=7, num_answer_tokens=5, num_auxiliary_tokens=9)


def settings_of(stage: int, **overrides):
    return load_settings(build_recipe("m", Path("out"), stage, train__lora_dropout=0.0, **overrides))


@pytest.mark.parametrize("decoder", ["lora", "full"])
@pytest.mark.parametrize("plora_rank", [0, 4])
def test_counts_are_a_real_step_s_when_both_are_made(
    decoder: str, plora_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(2, train__decoder=decoder)
    config = build_tiny_config(plora_rank=plora_rank, plora_alpha=8.0)
    counted = count_step(config, settings, SHAPE)
    model = build_tiny_model(config=config)
    model = MoAITask.adapt(model, settings)
    monkeypatch.setattr(step_timing, "_SHAPE", SHAPE)
    batch = step_timing._draw_batch(config, 1, "cpu", torch.float32)
    is_image = batch["input_ids"] == config.image_token_id
    batch["input_ids"] = torch.where(is_image, batch["input_ids"], batch["input_ids"] % 200 + 3)
    batch["auxiliary_input_ids"] = batch["auxiliary_input_ids"] % 200 + 3
    batch["labels"] = torch.where(batch["labels"] < 0, batch["labels"], batch["input_ids"])
    forward = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), forward:
        loss, _ = compute_loss(model.train(), batch, {"mode": "gated", "top_k": 3}, SHAPE.num_answer_tokens + 1)
        forward_flops = forward.get_total_flops()
        loss.backward()
        backward_flops = forward.get_total_flops() - forward_flops
    assert counted.forward_flops == pytest.approx(forward_flops, rel=0.01)
    assert counted.backward_flops == pytest.approx(backward_flops, rel=0.02)
    assert counted.num_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < counted.decoder_flops < counted.forward_flops


def test_first_stage_costs_less_when_only_one_expert_speaks() -> None:
    config = build_tiny_config()
    first, second = (count_step(config, settings_of(stage), SHAPE) for stage in (1, 2))
    assert first.forward_flops < second.forward_flops and first.saved_bytes < second.saved_bytes
    assert first.num_trained < second.num_trained  # the gates
    assert first.num_layers == config.text_config.num_hidden_layers


COUNT = StepCount(
    num_parameters=1000, num_trained=100, num_linear=800, num_copied=50,
    forward_flops=10**12, backward_flops=10**12, decoder_flops=5 * 10**11,
    saved_bytes=4 * 10**9, layer_bytes=10**9, outside_bytes=10**8, num_layers=4, boundary_bytes=10**7,
)  # fmt: skip


def test_estimate_adds_up_when_done_by_hand() -> None:
    cluster = Cluster(1, memory_gb=80, peak_tflops=1.0, efficiency=0.5, bandwidth_gb=1)
    row = estimate_run(COUNT, cluster, num_samples=64, batch_size=8)
    assert row.weights_gb == pytest.approx((900 + 50) * 2 / 1e9) and row.trained_gb == pytest.approx(1600 / 1e9)
    assert row.micro_batch == 8 and row.activations_gb == pytest.approx(8 * 1.14)
    assert row.step_s == pytest.approx(8 * 2.5 / 0.5)
    assert row.hours == pytest.approx(row.step_s * 8 / 3600)
    plain = estimate_run(COUNT, cluster, num_samples=64, batch_size=8, is_recomputed=False)
    assert plain.step_s == pytest.approx(8 * 2 / 0.5) and plain.activations_gb == pytest.approx(32)
    quantized = estimate_run(COUNT, cluster, num_samples=64, batch_size=8, is_quantized=True)
    assert quantized.weights_gb < 0.5 * row.weights_gb


def test_estimate_says_that_nothing_fits_when_memory_is_small() -> None:
    small = Cluster(1, memory_gb=0.5)
    assert estimate_run(COUNT, small, num_samples=64, batch_size=8).micro_batch == 0
    assert "none fits" in format_table({1: COUNT}, [small], 64, 8)


def test_more_gpus_take_less_time_when_the_batch_is_shared() -> None:
    hours = [estimate_run(COUNT, Cluster(n), num_samples=640, batch_size=64).hours for n in (1, 8, 64)]
    assert hours[0] > hours[1] > hours[2]


@pytest.mark.slow
def test_documented_arithmetic_is_the_command_s_when_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPO_ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    documented = text.split("<!-- estimate -->")[1].split("<!-- /estimate -->")[0].strip()
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == documented


def test_sizes_of_the_published_models_are_those_that_the_readme_tells(capsys) -> None:
    assert main(["--weights"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    readme = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
    assert len(rows) == 3
    for name, parameters, download, in_16_bits, _, in_4_bits in rows:
        assert f"|{name}|{parameters}|{download}|{in_16_bits}|{in_4_bits}|" in readme


def test_quantized_parameters_are_those_that_bitsandbytes_replaces(tmp_path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from moai import MoAIForConditionalGeneration

    model = build_tiny_model(plora_rank=4)
    model.save_pretrained(tmp_path)
    loaded = MoAIForConditionalGeneration.from_pretrained(tmp_path, load_in_4bit=True, device_map={"": "cpu"})
    replaced = [module for module in loaded.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    size = count_moai(model.config)
    assert size.num_quantized == sum(module.in_features * module.out_features for module in replaced) > 0
    assert size.num_parameters == sum(parameter.numel() for parameter in model.parameters())
