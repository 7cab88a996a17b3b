"""What `moai plan` counts is what a loaded model has."""

import json
from pathlib import Path

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model
from prompted_builders import FAMILIES, save_prompted
from training_builders import REPO_ROOT, write_tiny_checkpoint
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from moai.cli import app
from moai.planning.inference import DEVICES, count_answer, measure_verbalizers, plan_answer
from moai.planning.planned_model import PlannedModel, SampleShape
from verbalizers import build_verbalizer

BITS = (16, 8, 4)
SHAPE = SampleShape(num_prompt_tokens=7, num_auxiliary_tokens=9, num_answer_tokens=5)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny", plora_rank=4)


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
    planned = PlannedModel.load(folder).size.to_bytes(bits)
    # nf4's constants weigh more in tiny matrices than in real ones
    measured = loaded.get_memory_footprint(return_buffers=False)
    assert planned == pytest.approx(measured, rel=0.1)


def test_all_is_shrunk_when_it_is_asked_for(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from moai import MoAIForConditionalGeneration
    from moai.planning.weight_sizes import count_model

    model = build_tiny_model(
        plora_rank=4, vision={"hidden_size": 64, "intermediate_size": 128}, compressor={"head_dim": 32}
    )
    model.save_pretrained(tmp_path)
    inputs = build_tiny_inputs(model.config)
    loaded = MoAIForConditionalGeneration.from_pretrained(
        tmp_path, load_in_4bit=True, quantize_all=True, device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    from moai.models.moai.answering_moai import MoAIAnswering

    replaced = [module for module in loaded.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    of_all = count_model(model, MoAIAnswering.always_whole_modules)
    assert sum(m.in_features * m.out_features for m in replaced) == of_all.num_quantized
    assert of_all.num_quantized > count_model(model, MoAIAnswering.whole_modules).num_quantized
    inputs = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        assert torch.isfinite(loaded(**inputs).logits[..., :255]).all()
    with pytest.raises(ValueError, match="got neither"):
        MoAIForConditionalGeneration.from_pretrained(tmp_path, quantize_all=True)


def test_cache_is_what_a_run_fills_when_it_answers(tiny: Path) -> None:
    model = PlannedModel.load(tiny)
    count = count_answer(model, SHAPE, batch_size=2)
    text = model.config.text_config
    whole = count.prompt_length + SHAPE.num_answer_tokens
    assert count.cache_bytes == 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * whole * 2 * 2
    plan = plan_answer(model, count, 16)
    assert plan.peak == pytest.approx(plan.weights + max(count.prompt_bytes, plan.cache + count.logits_bytes))
    longer = count_answer(model, SampleShape(num_prompt_tokens=27, num_auxiliary_tokens=9, num_answer_tokens=5))
    assert longer.prompt_length - count.prompt_length == 20 and longer.prompt_flops > count.prompt_flops / 2


def test_command_tells_sizes_and_devices_when_asked(tiny: Path) -> None:
    text = run(str(tiny), "--verbalizers", "none")
    assert all(f"{bits} bits" in text for bits in BITS) and all(device.name in text for device in DEVICES)
    row = json.loads(run(str(tiny), "--verbalizers", "none", "--json"))
    assert [plan["bits"] for plan in row["plans"]] == [*BITS, 4] and row["verbalizers"] == {}
    assert row["num_parameters"] == sum(row["parts"].values())


def test_verbalizers_weigh_what_their_files_do_when_they_are_here() -> None:
    row = json.loads(run("moai-nano", "--json"))
    assert set(row["verbalizers"]) == {"segmentation", "detection", "scene_graph", "ocr"}
    total = sum(row["verbalizers"].values())
    folders = (
        REPO_ROOT / "checkpoints" / "verbalizers" / name
        for name in ("owlv2-nano", "nanodet-coco", "efficientnet-imagenet")
    )
    assert row["verbalizers"]["detection"] >= sum((path / "model.safetensors").stat().st_size for path in folders)
    assert row["verbalizers"].pop("scene_graph") > 1e5 and all(size > 1e6 for size in row["verbalizers"].values())
    assert row["plans"][0]["verbalizers"] == total
    assert measure_verbalizers([]) == {}
    inner = {"backend": "nanodet", "checkpoint": "owner/not-here"}
    whole = build_verbalizer("detection", "by_image", drawing=None, photograph=inner)
    assert measure_verbalizers([whole]) == {"detection": None}  # not known before it is fetched


def test_sizes_of_the_published_models_are_those_that_the_readme_tells() -> None:
    size = PlannedModel.load("MoAI-7B").size
    readme = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
    sizes = [f"{size.to_bytes(bits) / 1e9:.2f} GB" for bits in (16, 16, 4)]
    assert f"| MoAI-7B | {size.num_parameters / 1e6:,.0f} M | {' | '.join(sizes)} |" in readme


def test_new_model_is_planned_when_two_backbones_are_named(tmp_path: Path) -> None:
    from flamingo_builders import save_decoder, save_tower

    backbones = str(save_tower(tmp_path / "tower")), str(save_decoder(tmp_path / "decoder"))
    row = json.loads(run("--vision", backbones[0], "--text", backbones[1], "--json"))
    assert row["parts"]["mixers"] > 0 and row["plans"][0]["prompt_flops"] > 0


@pytest.mark.parametrize(
    "words",
    [
        ["--vision", "clip"],
        ["--set", "seed=1"],
        ["--gpus", "many"],
        ["--image-size", "640"],
    ],
)
def test_command_refuses_words_that_do_not_fit_when_given(words: list[str]) -> None:
    result = CliRunner().invoke(app, ["plan", *words])
    assert result.exit_code == 2 and "expected" in result.stderr
