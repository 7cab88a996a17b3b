"""Quantisation on the CPU: what is really quantised, and that it runs, trains and saves."""

from contextlib import nullcontext

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from moai import MoAIForConditionalGeneration
from moai.models.moai.adapters import default_lora_config
from moai.models.moai.quantization import COMPUTE_DTYPE_MODULES, with_default_skip_modules

bitsandbytes = pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "moai-vlm[quantization]"')

QUANTISED = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
WAYS = {
    "4bit": {"load_in_4bit": True},
    "8bit": {"load_in_8bit": True},
    "nf4_config": {"quantization_config": NF4, "dtype": torch.bfloat16},
    "nf4_dict": {"quantization_config": NF4.to_dict()},
    "8bit_config": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
}
# Wide enough that the decoder's matrices are most of the model, as in any real one.
SIZES = {"text": {"hidden_size": 128, "head_dim": 32, "intermediate_size": 512}, "plora_alpha": 8.0}


@pytest.fixture(scope="module", params=[0, 4], ids=["plain", "partial_lora"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A saved model, with and without partial LoRA."""
    model = build_tiny_model(plora_rank=request.param, **SIZES)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, folder


def count_weights(model: torch.nn.Module) -> tuple[int, int]:
    """Weights of the decoder's linears: quantised ones and all, counted in logical elements."""
    quantised = total = 0
    for name, module in model.named_modules():
        if "language_model.layers" not in name or not isinstance(module, torch.nn.Linear):
            continue
        size = module.in_features * module.out_features
        total += size
        if isinstance(module, QUANTISED):
            assert module.weight.dtype in (torch.uint8, torch.int8), name
            assert module.weight.numel() == size / (2 if isinstance(module, bitsandbytes.nn.Linear4bit) else 1)
            quantised += size
    return quantised, total


def words(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()][:, :255].float()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("door", [MoAIForConditionalGeneration, AutoModelForImageTextToText])
def test_decoder_is_really_quantised_and_nothing_else_when_loaded(checkpoint, way: str, door: type) -> None:
    model, folder = checkpoint
    loaded = door.from_pretrained(folder, **WAYS[way])
    quantised, total = count_weights(loaded)
    expected = sum(
        module.in_features * module.out_features
        for name, module in model.model.language_model.layers.named_modules()
        if name.replace(".base_layer", "").endswith(LINEARS) and isinstance(module, torch.nn.Linear)
    )
    assert total == expected > 0 and quantised >= 0.95 * total
    compute_dtype = WAYS[way].get("dtype", torch.float32)
    for name, module in loaded.named_modules():
        if isinstance(module, QUANTISED):
            assert "language_model.layers" in name, name
    for name, parameter in loaded.named_parameters():
        if parameter.dtype in (torch.uint8, torch.int8):
            continue
        assert parameter.dtype == compute_dtype, name
    kept = ("vision_tower", "multi_modal_projector", "compressor", "mixers", "lm_head", ".update.", "embed_tokens")
    for name, parameter in loaded.named_parameters():
        if any(part in name for part in kept):
            assert torch.equal(parameter, model.state_dict()[name].to(compute_dtype)), name


@pytest.mark.parametrize("way", ["4bit", "8bit", "nf4_config"])
def test_quantised_model_speaks_and_answers_alike_when_run(checkpoint, way: str) -> None:
    model, folder = checkpoint
    inputs = build_tiny_inputs(model.config)
    loaded = MoAIForConditionalGeneration.from_pretrained(folder, **WAYS[way])
    similarity = torch.nn.functional.cosine_similarity(words(loaded, inputs), words(model, inputs), dim=-1)
    assert similarity.mean() > 0.9
    generated = loaded.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=-1)
    assert generated.shape == (2, inputs["input_ids"].shape[1] + 3)


@pytest.mark.parametrize(("way", "most"), [("4bit", 0.2), ("8bit", 0.3)])
def test_decoder_takes_a_fraction_of_the_memory_when_quantised(checkpoint, way: str, most: float) -> None:
    model, folder = checkpoint
    loaded = MoAIForConditionalGeneration.from_pretrained(folder, **WAYS[way])

    def count_bytes(decoder: torch.nn.Module) -> int:
        total = 0
        for module in decoder.layers.modules():
            if isinstance(module, torch.nn.Linear):
                total += module.weight.numel() * module.weight.element_size()
                state = getattr(module.weight, "quant_state", None)
                if state is not None:
                    total += sum(tensor.numel() * tensor.element_size() for tensor in state.as_dict(True).values())
        return total

    before, after = (count_bytes(each.model.language_model) for each in (model, loaded))
    assert after / before < most  # float32 to 4 bits and their scales, or to 8 bits
    assert loaded.get_memory_footprint() < model.get_memory_footprint()


@pytest.mark.parametrize("way", ["4bit", "8bit"])
def test_quantised_model_is_the_same_when_saved_and_loaded(checkpoint, tmp_path, way: str) -> None:
    model, folder = checkpoint
    inputs = build_tiny_inputs(model.config)
    loaded = MoAIForConditionalGeneration.from_pretrained(folder, **WAYS[way])
    loaded.save_pretrained(tmp_path)
    again = MoAIForConditionalGeneration.from_pretrained(tmp_path)
    assert count_weights(again) == count_weights(loaded)
    assert torch.equal(words(again, inputs), words(loaded, inputs))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # PEFT's call
@pytest.mark.parametrize("arguments", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}])
@pytest.mark.parametrize("way", ["4bit", "8bit"])
def test_qlora_step_lowers_the_loss_when_trained(checkpoint, way: str, arguments: dict) -> None:
    peft = pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')
    model, folder = checkpoint
    loaded = MoAIForConditionalGeneration.from_pretrained(folder, **WAYS[way])
    with nullcontext() if arguments else pytest.warns(UserWarning, match="use_reentrant=False"):
        loaded = peft.prepare_model_for_kbit_training(loaded, **arguments)
    adapted = peft.get_peft_model(loaded, default_lora_config(model, 4, dropout=0.0)).train()
    inputs = build_tiny_inputs(model.config, (6, 6), (4, 4))
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    losses = []
    for _ in range(3):
        loss = adapted(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        if not losses:
            grads = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}
            for part in ("lora_B", "compressor.modules_to_save", "mixers.modules_to_save"):
                assert any(part in name and grad is not None and grad.abs().sum() > 0 for name, grad in grads.items())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert count_weights(adapted)[0] > 0


def test_skip_list_is_ours_only_when_the_caller_gives_none() -> None:
    assert with_default_skip_modules({}) == {}
    given = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    config = with_default_skip_modules({"quantization_config": given})["quantization_config"]
    assert config.llm_int8_skip_modules == ["lm_head"]
    caller = BitsAndBytesConfig(load_in_8bit=True)
    config = with_default_skip_modules({"quantization_config": caller})["quantization_config"]
    assert config.llm_int8_skip_modules == list(COMPUTE_DTYPE_MODULES)
    assert caller.llm_int8_skip_modules is None, "the caller's own object was changed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"load_in_4bit": True, "load_in_8bit": True},
        {"load_in_4bit": True, "quantization_config": NF4},
        {"load_in_8bit": True, "quantization_config": NF4},
    ],
)
def test_quantization_says_choose_one_when_two_are_asked_for(wrong: dict) -> None:
    with pytest.raises(ValueError, match="Choose one"):
        with_default_skip_modules(wrong)


def test_load_in_4bit_says_what_to_install_when_bitsandbytes_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    from moai import import_utils

    monkeypatch.setattr(import_utils, "_is_package_available", lambda package: package != "bitsandbytes")
    with pytest.raises(ImportError, match=r"moai-vlm\[quantization\]"):
        with_default_skip_modules({"load_in_4bit": True})


@pytest.mark.parametrize("way", ["4bit", "8bit"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16, torch.float32, "auto"])
def test_saved_quantised_model_runs_in_the_dtype_asked_for(tmp_path, way: str, stored, wanted) -> None:
    build_tiny_model(**SIZES).save_pretrained(tmp_path / "plain")
    model = MoAIForConditionalGeneration.from_pretrained(tmp_path / "plain", dtype=stored, **WAYS[way])
    model.save_pretrained(tmp_path / "quantised")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "quantised", dtype=wanted)
    expected = stored if wanted == "auto" else wanted
    dtypes = {parameter.dtype for parameter in loaded.parameters() if parameter.is_floating_point()}
    assert dtypes == {expected} == {loaded.dtype}
    inputs = build_tiny_inputs(loaded.config)
    said = {name: value.to(expected) if value.is_floating_point() else value for name, value in inputs.items()}
    reference = {name: value.to(stored) if value.is_floating_point() else value for name, value in inputs.items()}
    assert (words(loaded, said) - words(model, reference)).abs().max() < 0.5


def test_other_bits_are_refused_when_the_checkpoint_was_saved_quantised(tmp_path) -> None:
    build_tiny_model(**SIZES).save_pretrained(tmp_path / "plain")
    model = MoAIForConditionalGeneration.from_pretrained(tmp_path / "plain", load_in_4bit=True)
    model.save_pretrained(tmp_path / "quantised")
    with pytest.raises(ValueError, match="saved in 4"):
        MoAIForConditionalGeneration.from_pretrained(tmp_path / "quantised", load_in_8bit=True)
    again = MoAIForConditionalGeneration.from_pretrained(tmp_path / "quantised", load_in_4bit=True)
    assert count_weights(again)[0] > 0
