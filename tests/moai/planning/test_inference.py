"""What `moai plan` counts is what a loaded model has."""

import json
from pathlib import Path

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model
from prompted_builders import FAMILIES, save_prompted
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from moai.cli import app
from moai.planning.inference import BITS, DEVICES, AnswerShape, ModelShape, measure_verbalizers, plan_answer


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    build_tiny_model(plora_rank=4).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["moai", *FAMILIES])
def test_weights_are_those_of_a_load_when_measured(family: str, bits: int, tiny: Path, tmp_path: Path) -> None:
    folder = str(tiny) if family == "moai" else save_prompted(tmp_path / family, family)
    settings = {}
    if bits < 16:
        pytest.importorskip("bitsandbytes")
        from moai.models.quantization_choice import resolve_quantization

        settings = {"device_map": {"": "cpu"}, **resolve_quantization({f"load_in_{bits}bit": True})}
        if family == "moai":
            settings = {"device_map": {"": "cpu"}, f"load_in_{bits}bit": True}
    loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16, **settings)
    planned = plan_answer(ModelShape.of_checkpoint(folder), AnswerShape(num_image_tokens=4), bits).weights
    # nf4's constants weigh more in tiny matrices than in real ones
    measured = loaded.get_memory_footprint(return_buffers=False)
    assert planned == pytest.approx(measured, rel=0.1)


def test_all_is_shrunk_when_it_is_asked_for(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from moai import MoAIForConditionalGeneration

    model = build_tiny_model(
        plora_rank=4, vision={"hidden_size": 64, "intermediate_size": 128}, compressor={"head_dim": 32}
    )
    model.save_pretrained(tmp_path)
    inputs = build_tiny_inputs(model.config)
    loaded = MoAIForConditionalGeneration.from_pretrained(
        tmp_path, load_in_4bit=True, quantize_all=True, device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    replaced = [module for module in loaded.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    shape = ModelShape.of_checkpoint(str(tmp_path))
    assert sum(m.in_features * m.out_features for m in replaced) == shape.size_of_all.num_quantized
    assert shape.size_of_all.num_quantized > shape.size.num_quantized
    inputs = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        assert torch.isfinite(loaded(**inputs).logits[..., :255]).all()
    with pytest.raises(ValueError, match="got neither"):
        MoAIForConditionalGeneration.from_pretrained(tmp_path, quantize_all=True)


def test_operations_are_those_of_a_prompt_when_counted(tiny: Path) -> None:
    model = build_tiny_model(plora_rank=4)
    inputs = build_tiny_inputs(model.config, num_words=(40,), num_auxiliary_words=(6,))
    counter = FlopCounterMode(display=False)
    with counter:
        model(**inputs, logits_to_keep=1)
    shape = AnswerShape(num_prompt_tokens=40, num_auxiliary_tokens=6)
    planned = plan_answer(ModelShape.of(model.config), shape, 16).prompt_flops
    assert 0.5 < planned / counter.get_total_flops() < 2  # tiny: a mixer is no small part of it


def test_cache_is_what_a_run_fills_when_it_answers(tiny: Path) -> None:
    model = build_tiny_model()
    shape = AnswerShape(num_prompt_tokens=7, num_answer_tokens=5, batch_size=2)
    text = model.config.text_config
    expected = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * (4 + 7 + 5) * 2 * 2
    assert plan_answer(ModelShape.of(model.config), shape, 16).cache == expected


def test_command_tells_sizes_and_devices_when_asked(tiny: Path) -> None:
    text = run(str(tiny), "--verbalizers", "none")
    assert all(f"{bits} bits" in text for bits in BITS) and all(device.name in text for device in DEVICES)
    row = json.loads(run(str(tiny), "--verbalizers", "none", "--json"))
    assert [plan["bits"] for plan in row["plans"]] == [*BITS, 4] and row["verbalizers"] == {}
    assert row["num_parameters"] == sum(row["parts"].values())


def test_verbalizers_weigh_what_their_files_do_when_they_are_here() -> None:
    row = json.loads(run("moai-nano", "--json"))
    assert set(row["verbalizers"]) == {"segmentation", "detection", "scene_graph", "ocr"}
    assert all(size > 1e6 for size in row["verbalizers"].values())
    assert row["plans"][0]["verbalizers"] == sum(row["verbalizers"].values())
    assert measure_verbalizers([]) == {}


def test_command_refuses_half_a_pair_when_given() -> None:
    assert CliRunner().invoke(app, ["plan", "--vision", "clip"]).exit_code == 2
