"""PEFT's prompt learning: virtual tokens in front of the prompt, whoever runs the model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model
from flamingo_builders import build_flamingo, build_processor, make_image, save_flamingo
from pipeline_builders import write_tiny_checkpoint
from prismer_builders import build_prismer, save_prismer

from moai import Pipeline
from moai.models.ranking import rank_continuations

pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from peft import (  # noqa: E402
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

NUM_VIRTUAL, NEW = 4, 6
SETTINGS = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
SHARED = {"task_type": "CAUSAL_LM", "num_virtual_tokens": NUM_VIRTUAL}
CONFIGS = {
    "p_tuning": lambda: PromptEncoderConfig(**SHARED, encoder_hidden_size=16),
    "p_tuning_lstm": lambda: PromptEncoderConfig(
        **SHARED, encoder_hidden_size=12, encoder_reparameterization_type="LSTM"
    ),
    "prompt_tuning": lambda: PromptTuningConfig(**SHARED),
    "prefix_tuning": lambda: PrefixTuningConfig(**SHARED),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Model and a function from questions to inputs, by name."""
    folder = tmp_path_factory.mktemp("flamingo")
    flamingo, processor = build_flamingo(folder).eval(), build_processor(folder)
    with torch.no_grad():  # as after a step of training: at first both new tokens have one embedding
        flamingo.get_input_embeddings().weight[flamingo.config.image_token_id] += 0.1

    def ask_flamingo(*questions: str) -> dict[str, Any]:
        shots = [(make_image(5), "Who?", "me")]
        asked = [processor.build_conversation(make_image(len(q)), q, shots[: len(q) % 2]) for q in questions]
        return dict(processor(conversations=asked))

    prismer, reader = build_prismer(seed=1)

    def ask_prismer(*questions: str) -> dict[str, Any]:
        return dict(reader([make_image(len(q)) for q in questions], list(questions)))

    moai = build_tiny_model()
    with torch.no_grad():
        moai.lm_head.weight.mul_(4)

    def ask_moai(*questions: str) -> dict[str, Any]:
        return build_tiny_inputs(moai.config, tuple(map(len, questions)), (3,) * len(questions))

    return {"moai": (moai, ask_moai), "flamingo": (flamingo, ask_flamingo), "prismer": (prismer, ask_prismer)}


@pytest.fixture(
    params=[(m, c) for m in ("moai", "flamingo", "prismer") for c in CONFIGS if (m, c) != ("prismer", "prefix_tuning")]
)
def adapted(request: pytest.FixtureRequest, bases: dict[str, Any]) -> tuple[PeftModel, Any]:
    torch.manual_seed(0)
    name, config = request.param
    model, ask = bases[name]
    adapted = get_peft_model(model, CONFIGS[config]()).eval()
    for parameter in adapted.prompt_encoder.parameters():  # loud enough that the prompt matters
        torch.nn.init.normal_(parameter.data, std=0.5)
    return adapted, ask


def never_said(adapted: PeftModel) -> list[int]:
    """The image token: a random model says it, and has no image for it."""
    image_token_id = getattr(adapted.get_base_model().config, "image_token_id", None)
    return [] if image_token_id is None else [image_token_id]


def step_by_step(adapted: PeftModel, inputs: dict[str, Any]) -> torch.Tensor:
    """Greedy decoding by whole forward passes."""
    inputs = dict(inputs)
    for _ in range(NEW):
        logits = adapted(**inputs).logits[:, -1]
        logits[:, never_said(adapted)] = -torch.inf
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits.argmax(-1, keepdim=True)], dim=1)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):  # decoded tokens have role 0
            if name in inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, 1), value=value)
    return inputs["input_ids"]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_generation_equals_whole_passes_when_a_prompt_is_learned(adapted: tuple[PeftModel, Any]) -> None:
    model, ask = adapted
    inputs = ask("What?", "How many are there?")
    settings = SETTINGS | {"suppress_tokens": never_said(model) or None}
    expected = step_by_step(model, inputs)
    with warnings.catch_warnings():
        if model.get_base_model().config.model_type == "moai":  # nobody who generates chose that name
            warnings.filterwarnings("error", message=".*past_key_values.*")
        assert model.generate(**inputs, **settings).tolist() == expected.tolist()
    with model.disable_adapter():
        plain = model.get_base_model().generate(**inputs, **settings)
    assert plain.tolist() != expected.tolist()
    if model.active_peft_config.peft_type != "PREFIX_TUNING":  # whose prefix is a cache
        assert model.generate(**inputs, **settings, use_cache=False).tolist() == expected.tolist()
    assert model.generate(**inputs, **settings, num_beams=3).shape == expected.shape
    single = ask("What?")  # the batch is padded on the left
    assert model.generate(**single, **settings)[0, -NEW:].tolist() == expected[0, -NEW:].tolist()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("config", CONFIGS)
def test_flamingo_ranks_as_whole_passes_do_when_a_prompt_is_learned(bases: dict[str, Any], config: str) -> None:
    base, ask = bases["flamingo"]
    model, inputs = get_peft_model(base, CONFIGS[config]()).eval(), ask("What?", "How many are there?")
    choices = [[9, 17, 4], [5]]
    found = rank_continuations(model, inputs, choices)
    for choice, column in zip(choices, found.T, strict=True):
        ids = torch.tensor([choice, choice])
        whole = inputs | {"input_ids": torch.cat([inputs["input_ids"], ids], dim=1)}
        whole["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, len(choice)), value=1)
        logits = model(**whole).logits[:, -len(choice) - 1 : -1].log_softmax(dim=-1)
        torch.testing.assert_close(column, logits.gather(-1, ids[..., None]).sum(dim=(1, 2)), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_virtual_tokens_alone_learn_and_are_saved_when_a_prompt_is_learned(
    adapted: tuple[PeftModel, Any], tmp_path: Path
) -> None:
    model, ask = adapted
    inputs = ask("What?", "Where?")
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    model(**inputs, labels=labels).loss.backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned and all("prompt_encoder" in name for name in learned)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 300_000
    again = PeftModel.from_pretrained(model.get_base_model(), tmp_path).eval()
    with torch.no_grad(), warnings.catch_warnings():
        expected, found = (m.generate(**inputs, **SETTINGS).tolist() for m in (model, again))
    assert found == expected


def test_answers_stay_out_of_the_mixture_when_a_prompt_is_learned(bases: dict[str, Any]) -> None:
    base, ask = bases["moai"]
    model, inputs = get_peft_model(base, CONFIGS["p_tuning"]()).eval(), ask("What?", "Where?")
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    changed = inputs["input_ids"].clone()
    changed[:, -2] = (changed[:, -2] + 1) % 200 + 3
    with torch.no_grad():
        one = model(**inputs, labels=labels).logits
        other = model(**inputs | {"input_ids": changed}, labels=labels).logits
    torch.testing.assert_close(one[:, :-2], other[:, :-2], atol=1e-5, rtol=1e-5)


def test_pipeline_reports_without_routing_when_a_prompt_is_learned(tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(write_tiny_checkpoint(tmp_path), [])
    asked = make_image(0), "Who?"
    (answer,) = pipeline.answer_each(*asked, max_new_tokens=2, is_reporting=True)
    assert "routing" in answer.report
    pipeline.answering.model = get_peft_model(pipeline.answering.model, CONFIGS["p_tuning"]()).eval()
    (answer,) = pipeline.answer_each(*asked, max_new_tokens=2, is_reporting=True)
    assert isinstance(answer.answer, str) and "routing" not in answer.report


def test_flamingo_asks_for_places_when_embeddings_do_not_tell_them(tmp_path: Path) -> None:
    model, processor = build_flamingo(tmp_path), build_processor(tmp_path)
    inputs = processor(conversations=[processor.build_conversation(make_image(0), "What?")])
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="media_times"):
        model(inputs_embeds=embeds, **inputs)
    times = (ids == model.config.image_token_id).cumsum(dim=1)
    found = model(inputs_embeds=embeds, media_times=times, **inputs).logits
    torch.testing.assert_close(found, model(input_ids=ids, **inputs).logits)


def test_prismer_refuses_a_prefix_by_name(bases: dict[str, Any]) -> None:
    model, ask = bases["prismer"]
    adapted = get_peft_model(model, CONFIGS["prefix_tuning"]()).eval()
    with pytest.raises(ValueError, match="EncoderDecoderCache"):
        adapted(**ask("What?"))


@pytest.mark.parametrize("save", [save_flamingo, save_prismer])
def test_pipeline_takes_what_an_adapter_of_pefts_own_lacks_from_its_base(save: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "base")
    base = Pipeline.from_pretrained(folder, verbalizers=[])
    plain = base(make_image(0), "What?", **SETTINGS)
    torch.manual_seed(0)
    adapted = get_peft_model(base.model, CONFIGS["p_tuning"]())
    for parameter in adapted.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter.data, std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")  # weights and configuration: nothing else
    loaded = Pipeline.from_pretrained(tmp_path / "adapter", verbalizers=[])
    answer = loaded(make_image(0), "What?", **SETTINGS)
    held = Pipeline(adapted.eval(), base.processor)(make_image(0), "What?", **SETTINGS)
    assert answer.answer == held.answer and answer.confidence == pytest.approx(held.confidence)
    assert answer.confidence != pytest.approx(plain.confidence)
