"""PEFT's prompt learning on MoAI: virtual tokens are prompt language in front of the prompt, whoever runs the model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model
from PIL import Image
from pipeline_builders import write_tiny_checkpoint

from moai import Pipeline

pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from peft import (  # noqa: E402
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

NUM_VIRTUAL = 4
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
CONFIGS = {
    "p_tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL, encoder_hidden_size=32),
    "p_tuning_lstm": PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL, encoder_hidden_size=32,
        encoder_reparameterization_type="LSTM",
    ),
    "prompt_tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL),
    "prefix_tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL),
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def adapted(request: pytest.FixtureRequest) -> PeftModel:
    torch.manual_seed(0)
    model = build_tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    return get_peft_model(model, CONFIGS[request.param]).eval()


def inputs_of(adapted: PeftModel) -> dict[str, Any]:
    return build_tiny_inputs(adapted.get_base_model().config)


def step_by_step(adapted: PeftModel, inputs: dict[str, Any], num_steps: int) -> torch.Tensor:
    """Greedy decoding by whole forward passes: decoded tokens have role 0."""
    ids, mask, roles = inputs["input_ids"], inputs["attention_mask"], inputs["mm_token_type_ids"]
    for _ in range(num_steps):
        grown = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": roles}
        logits = adapted(**inputs | grown).logits[:, -1]
        logits[:, adapted.get_base_model().config.image_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask, roles = (torch.nn.functional.pad(tensor, (0, 1), value=v) for tensor, v in ((mask, 1), (roles, 0)))
    return ids


@torch.no_grad()
def test_generation_equals_whole_passes_when_a_prompt_is_learned(adapted: PeftModel) -> None:
    inputs = inputs_of(adapted)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=FutureWarning
        )  # PEFT's own call of forward names the cache as before
        expected = step_by_step(adapted, inputs, GREEDY["max_new_tokens"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*past_key_values.*")  # nobody who generates chose that name
        cached = adapted.generate(**inputs, **GREEDY)
    assert cached.tolist() == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize("options", [{"use_cache": False}, {"num_beams": 3}, {"num_beams": 3, "use_cache": False}])
def test_generation_is_the_same_with_and_without_cache_and_beams_run(adapted: PeftModel, options: dict) -> None:
    if options.get("use_cache") is False and adapted.active_peft_config.peft_type == "PREFIX_TUNING":
        pytest.skip("PEFT's prefix is a cache: without one it has no place")
    inputs = inputs_of(adapted)
    found = adapted.generate(**inputs, **GREEDY, **options)
    other = {**options, "use_cache": not options.get("use_cache", True)}
    if options.get("use_cache") is False:
        assert found.tolist() == adapted.generate(**inputs, **GREEDY, **other).tolist()
    assert found.shape == (2, inputs["input_ids"].shape[1] + GREEDY["max_new_tokens"])


def test_virtual_tokens_alone_learn_and_answers_stay_out_of_the_mixture(adapted: PeftModel) -> None:
    inputs = inputs_of(adapted)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    adapted(**inputs, labels=labels).loss.backward()
    learned = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert learned and all("prompt_encoder" in name for name in learned)
    changed = inputs["input_ids"].clone()
    changed[:, -2] = (changed[:, -2] + 1) % 200 + 3
    with torch.no_grad():
        one = adapted(**inputs, labels=labels).logits
        other = adapted(**inputs | {"input_ids": changed}, labels=labels).logits
    before = one.shape[1] - 2  # of the changed token
    torch.testing.assert_close(one[:, :before], other[:, :before], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_left_padded_batch_equals_singles_when_a_prompt_is_learned(adapted: PeftModel) -> None:
    inputs = inputs_of(adapted)
    padded = {name: value[:1] for name, value in inputs.items()}
    for name, fill in (("input_ids", 0), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        padded[name] = torch.nn.functional.pad(padded[name], (3, 0), value=fill)
    single = {name: value[:1] for name, value in inputs.items()}
    found, alone = (adapted.generate(**batch, **GREEDY)[:, -6:] for batch in (padded, single))
    assert found.tolist() == alone.tolist()


@torch.no_grad()
def test_adapter_is_small_and_answers_the_same_when_saved_and_loaded(adapted: PeftModel, tmp_path: Path) -> None:
    inputs = inputs_of(adapted)
    expected = adapted.generate(**inputs, **GREEDY)
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 300_000
    again = PeftModel.from_pretrained(adapted.get_base_model(), tmp_path).eval()
    assert again.generate(**inputs, **GREEDY).tolist() == expected.tolist()


def test_pipeline_reports_without_routing_when_a_prompt_is_learned(tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(write_tiny_checkpoint(tmp_path), [])
    asked = Image.new("RGB", (40, 30)), "Who?"
    (answer,) = pipeline.answer_each(*asked, max_new_tokens=2, is_reporting=True)
    assert "routing" in answer.report
    pipeline.answering.model = get_peft_model(pipeline.answering.model, CONFIGS["p_tuning"]).eval()
    (answer,) = pipeline.answer_each(*asked, max_new_tokens=2, is_reporting=True)
    assert isinstance(answer.answer, str) and "routing" not in answer.report
