"""What transformers promises of every model, asked of MoAI: weights, initialisation, embeddings, devices, declarations.

transformers checks its own models with test mixins that its wheel does not bring. This module and
test_transformers_contract_running.py ask the same questions in our words, of two decoder families. What
stands elsewhere is not repeated: bit-equal round trips of other variants and pickled weights (test_save_load.py),
statistics of new parts (test_modeling_checkpoints.py), quantisation (test_quantization.py), adapters (test_peft.py).
"""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from builders import FIRST_WORD_ID, IMAGE_TOKEN_ID, build_tiny_config, build_tiny_inputs, build_tiny_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from moai import MoAIConfig, MoAIForConditionalGeneration, MoAIModel
from moai.models.cache_names import CACHE_NAME

FAMILIES = ("llama", "qwen3")
DYNAMIC_ROPE = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
UNTOUCHED = 1234.0  # no initialisation writes this number

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def said(model: MoAIForConditionalGeneration, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Logits of the words before the placeholder at the positions that are tokens, (tokens, 255) float32."""
    inputs = build_tiny_inputs(model.config) if inputs is None else inputs
    with torch.no_grad():
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
    return logits[:, :IMAGE_TOKEN_ID].float()


def save_only(model: MoAIForConditionalGeneration, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint of this model that holds just these tensors."""
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# ---------------------------------------------------------------- declarations


def test_declarations_are_true_when_transformers_reads_them(family: str) -> None:
    model = build_tiny_model(family)
    for each, generates in ((model, True), (model.model, False)):
        arguments = list(inspect.signature(each.forward).parameters)
        assert each.main_input_name == arguments[0]
        assert each.input_modalities == ("image", "text")
        assert each.can_generate() is generates
        assert each.get_decoder() is model.model.language_model
        assert each.get_encoder("image") is model.model.vision_tower
    assert getattr(model, model.base_model_prefix) is model.base_model is model.model
    assert model.get_input_embeddings() is model.model.get_input_embeddings() is model.get_decoder().embed_tokens
    assert model.config.get_text_config() is model.config.text_config is model.get_decoder().config
    assert model.config.vision_config is model.model.vision_tower.config


@pytest.mark.parametrize(
    ("auto", "expected"),
    [
        (AutoModel, MoAIModel),
        (AutoModelForImageTextToText, MoAIForConditionalGeneration),
        (AutoModelForMultimodalLM, MoAIForConditionalGeneration),
    ],
)
def test_auto_class_builds_ours_when_given_the_configuration(family: str, auto: Any, expected: type) -> None:
    assert type(auto.from_config(build_tiny_config(family))) is expected


def test_configuration_is_the_same_when_saved_pickled_or_copied(family: str, tmp_path: Path) -> None:
    config = build_tiny_config(family, plora_rank=4, vision_feature_layer=-2)
    config.save_pretrained(tmp_path)
    for other in (
        MoAIConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        MoAIConfig.from_dict(config.to_dict()),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
    ):
        assert type(other) is MoAIConfig
        assert other.to_dict() | {"_name_or_path": ""} == config.to_dict()
        assert type(other.text_config) is type(config.text_config)
    text = type(config.text_config).from_pretrained(tmp_path)  # a part is found in the whole's folder
    assert text.hidden_size == config.text_config.hidden_size and text.vocab_size == config.text_config.vocab_size


def test_attention_reaches_every_part_when_chosen(family: str, tmp_path: Path) -> None:
    build_tiny_model(family).save_pretrained(tmp_path)
    for chosen, text, vision in (("eager", "eager", "eager"), ({"text_config": "eager"}, "eager", "sdpa")):
        model = MoAIForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=chosen)
        assert model.get_decoder().config._attn_implementation == text
        assert model.model.vision_tower.config._attn_implementation == vision
    with pytest.raises(ValueError, match="imaginary"):
        model.set_attn_implementation("imaginary")


# ---------------------------------------------------------------- saving and loading


def test_loading_reports_keys_when_some_are_missing_foreign_or_misshapen(family: str, tmp_path: Path) -> None:
    model = build_tiny_model(family)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    missing = {"model.mixers.layers.1.image_gate.weight", "model.language_model.norm.weight"}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in missing}
    tensors["model.nobody.weight"] = torch.zeros(2)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:100].clone()
    folder = save_only(model, tmp_path, tensors)
    with pytest.raises(RuntimeError, match="mismatch"):
        MoAIForConditionalGeneration.from_pretrained(folder)
    loaded, info = MoAIForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True
    )
    assert set(info["missing_keys"]) == missing and set(info["unexpected_keys"]) == {"model.nobody.weight"}
    (mismatch,) = info["mismatched_keys"]
    assert mismatch[0] == "lm_head.weight"
    assert loaded.lm_head.weight.shape == (256, 64) and loaded.lm_head.weight.isfinite().all()
    assert not loaded.model.mixers.layers[1].image_gate.weight.any()  # a new gate is even
    assert (loaded.get_decoder().norm.weight == 1).all()


# ---------------------------------------------------------------- initialisation


@pytest.mark.parametrize("text", [{}, DYNAMIC_ROPE], ids=["plain", "dynamic rope"])
@pytest.mark.parametrize("holds_weights", [True, False])
def test_nothing_stays_on_meta_when_loaded(family: str, text: dict, holds_weights: bool, tmp_path: Path) -> None:
    model = build_tiny_model(family, text=text, plora_rank=4)
    with torch.device("meta"):
        empty = MoAIForConditionalGeneration(model.config)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    folder = save_only(model, tmp_path, model.state_dict() if holds_weights else {})
    loaded = MoAIForConditionalGeneration.from_pretrained(folder)
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    buffers = dict(model.named_buffers())
    assert {name.split(".")[-1] for name in buffers} == {"position_ids", "inv_freq", "original_inv_freq"}
    assert not buffers.keys() & model.state_dict().keys()  # none is saved: loading must compute them
    assert buffers.keys() == dict(loaded.named_buffers()).keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in loaded.named_buffers())
    assert said(loaded).isfinite().all()
    if holds_weights:
        assert torch.equal(said(loaded), said(model))


@pytest.mark.parametrize("architecture", ["encoder", "perceiver"])
def test_initialisation_writes_every_parameter_and_buffer_when_run(family: str, architecture: str) -> None:
    model = build_tiny_model(family, plora_rank=4, compressor={"architecture": architecture})
    born = MoAIForConditionalGeneration(model.config)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.fill_(UNTOUCHED)
    for module in (*model.modules(), *tensors.values()):
        module._is_hf_initialized = False
    model.initialize_weights()
    assert not [name for name, tensor in tensors.items() if (tensor == UNTOUCHED).any()]
    # and as building one does. The tower's own rules ask for its authors' class, which a MoAI is not: see
    # PreTrainedModel._initialize_weights on custom code.
    for name, expected in (dict(born.named_parameters()) | dict(born.named_buffers())).items():
        tensor = tensors[name]
        if expected.unique().numel() == 1 or not expected.is_floating_point() or "inv_freq" in name:
            assert torch.equal(tensor, expected), name
        elif not name.startswith("model.vision_tower."):
            assert 0.5 < tensor.std() / expected.std() < 2, name


def test_initialisation_repeats_when_seeded(family: str, tmp_path: Path) -> None:
    config = build_tiny_config(family, plora_rank=4)
    folder = save_only(build_tiny_model(config=config), tmp_path, {})
    for build in (
        lambda: MoAIForConditionalGeneration(config),
        lambda: MoAIForConditionalGeneration.from_pretrained(folder),
    ):
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(build().state_dict())
        first, again, other = states
        assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
        constant = {name for name, tensor in first.items() if tensor.unique().numel() == 1}
        assert not [name for name in first.keys() - constant if torch.equal(first[name], other[name])]


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize("tie", [True, False])
def test_head_is_the_embedding_when_tied_only(family: str, tie: bool, tmp_path: Path) -> None:
    model = build_tiny_model(family, tie_word_embeddings=tie)
    ((head, embedding),) = model._tied_weights_keys.items()
    assert model.get_parameter(head) is model.get_output_embeddings().weight
    assert model.get_parameter(embedding) is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "small")
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "large")
    loaded = [MoAIForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("small", "large")]
    for each in (model, *loaded, copy.deepcopy(model)):
        assert (each.get_parameter(head) is each.get_parameter(embedding)) == tie
        assert each.all_tied_weights_keys == ({head: embedding} if tie else {})
        with torch.no_grad():
            each.get_input_embeddings().weight[7] += 1
        assert torch.equal(each.lm_head.weight[7], each.get_input_embeddings().weight[7]) == tie


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("asked", "multiple", "expected"), [(300, None, 300), (257, 64, 320), (None, 100, 300), (220, None, 220)]
)
def test_old_words_sound_alike_when_the_vocabulary_is_resized(
    family: str, tie: bool, asked: int | None, multiple: int | None, expected: int, tmp_path: Path
) -> None:
    placeholder = 200
    model = build_tiny_model(family, tie_word_embeddings=tie, image_token_id=placeholder)
    inputs, before = build_tiny_inputs(model.config), build_tiny_inputs(model.config)
    words = said(model, before)[:, : min(expected, 255)]
    embedding = model.resize_token_embeddings(asked, pad_to_multiple_of=multiple)
    assert embedding is model.get_input_embeddings() and embedding.weight.shape == (expected, 64)
    assert model.lm_head.weight.shape == (expected, 64) and model.lm_head.out_features == expected
    assert model.config.text_config.vocab_size == model.vocab_size == expected
    assert torch.allclose(said(model, inputs)[:, :255], words, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert torch.equal(said(MoAIForConditionalGeneration.from_pretrained(tmp_path), inputs), said(model, inputs))
    ids = torch.tensor([[FIRST_WORD_ID, expected - 1]])
    assert model(ids, labels=ids).loss.isfinite()


def test_vocabulary_is_kept_when_the_placeholder_would_fall_off(family: str) -> None:
    model = build_tiny_model(family)
    for part in (model, model.model):
        with pytest.raises(ValueError, match="image_token_id"):
            part.resize_token_embeddings(IMAGE_TOKEN_ID)
    assert model.get_input_embeddings().weight.shape[0] == model.config.text_config.vocab_size == 256


def test_model_speaks_through_other_embeddings_when_they_are_set(family: str) -> None:
    model = build_tiny_model(family)
    silent = said(model)
    words, head = torch.nn.Embedding(256, 64), torch.nn.Linear(64, 256, bias=False)
    for part in (model, model.model):
        part.set_input_embeddings(words)
        assert model.get_input_embeddings() is words is model.get_decoder().embed_tokens
    heard = said(model)
    assert not torch.allclose(heard, silent, atol=1e-3)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head and not torch.allclose(said(model), heard, atol=1e-3)


# ---------------------------------------------------------------- copies, dtypes, devices


@pytest.mark.parametrize("plora_rank", [0, 4])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_is_equal_and_its_own_when_duplicated(family: str, plora_rank: int, duplicate: Any) -> None:
    # Pickled: what torch.multiprocessing does to a model that is handed to a worker.
    model = build_tiny_model(family, text=DYNAMIC_ROPE, plora_rank=plora_rank)
    other, expected = duplicate(model), said(model)
    assert torch.equal(said(other), expected)
    assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(said(model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_parameter_changes_dtype_when_the_model_is_cast(family: str, dtype: torch.dtype) -> None:
    model = build_tiny_model(family, plora_rank=4, plora_alpha=8.0)
    expected = said(model)
    model = model.bfloat16() if dtype == torch.bfloat16 else model.half()
    assert model.dtype == dtype and {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.nn.functional.cosine_similarity(said(model), expected, dim=-1).min() > 0.99
    model = model.float()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.nn.functional.cosine_similarity(said(model), expected, dim=-1).min() > 0.99


def test_blocks_stay_whole_when_a_device_map_is_inferred(family: str) -> None:
    model = build_tiny_model(family, plora_rank=4)
    core = model.model
    blocks = [*core.language_model.layers, *core.mixers.layers, *core.compressor.stack.layers]
    blocks += core.vision_tower.encoder.layers
    assert {type(block).__name__ for block in blocks} <= set(model._no_split_modules)
    assert set(model._skip_keys_device_placement) == {CACHE_NAME, "mixture"}
    names = {id(module): name for name, module in model.named_modules()}
    sizes = accelerate.utils.compute_module_sizes(model)
    for share in (0.3, 0.5, 0.8):
        budget = {"cpu": int(share * sizes[""]), "disk": 10**9}
        places = accelerate.infer_auto_device_map(model, budget, no_split_module_classes=list(model._no_split_modules))
        assert set(places.values()) == {"cpu", "disk"}
        for block in blocks:
            assert not [name for name in places if name.startswith(f"{names[id(block)]}.")], names[id(block)]


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_model_equals_itself_when_loaded_onto_cpu_and_disk(family: str, share: float, tmp_path: Path) -> None:
    model = build_tiny_model(family, plora_rank=4)
    model.save_pretrained(tmp_path / "model")
    expected, inputs = said(model), build_tiny_inputs(model.config)
    memory = {"cpu": int(share * accelerate.utils.compute_module_sizes(model)[""])}
    spread = MoAIForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory=memory, offload_folder=tmp_path / "offload"
    )
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.allclose(said(spread), expected, atol=1e-6)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(spread.generate(**inputs, **options), model.generate(**inputs, **options))


def test_model_equals_itself_when_its_blocks_are_dispatched(family: str, tmp_path: Path) -> None:
    model = build_tiny_model(family, plora_rank=4)
    expected = said(model)
    places = {name: "cpu" for name, _ in model.named_children()} | {"model": "disk"}
    spread = accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path / "disk")
    assert next(spread.model.mixers.parameters()).is_meta, "nothing was offloaded"
    assert torch.allclose(said(spread), expected, atol=1e-6)
