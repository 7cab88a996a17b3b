"""What holds for every model that answers: one case per law and model.

A batch is its rows alone, a cache changes nothing, no token sees a later one, saved and loaded is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import emu_builders
import flamingo_builders
import pytest
import torch
from conversation_builders import CONVERSATIONS
from pipeline_builders import build_scene, draw_image, write_tiny_checkpoint
from prismer_builders import build_prismer
from prompted_builders import save_prompted
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.models.moai.scenes_moai import encode_scenes as encode_for_moai
from moai.models.prismer.configuration_prismer import EXPERTS
from moai.models.prismer.scenes_prismer import encode_scenes
from moai.models.prompted.processing_prompted import PromptedProcessor
from moai.models.ranking import rank_continuations

ROWS = (0, 1, 2)


@dataclass(frozen=True)
class Built:
    """A model with its processor, what makes a batch of some rows, and the dtype in which rows are compared.

    ``answered`` makes a batch that ends with an answer: what of a sequence is causal, where its prompt is not.
    """

    model: Any
    processor: Any
    batch: Callable[..., Any]
    dtype: torch.dtype = torch.float64  # far below what a mask or position would change
    load_processor: Callable[[Path], Any] = AutoProcessor.from_pretrained
    answered: Callable[[Any], Any] | None = None


def _converse(processor: Any, rows: Sequence[int]) -> Any:
    return processor(conversations=[CONVERSATIONS[row] for row in rows])


SCENES = (build_scene(word="STOP"), None, build_scene(word="OPEN"))
QUESTIONS = ("What is it", "Is there a dog on the grass here?", "Why?")


def _show_maps(processor: Any, rows: Sequence[int]) -> Any:
    maps = encode_scenes([SCENES[row] for row in rows], experts=processor.experts)["expert_maps"]
    return processor([draw_image(row) for row in rows], [QUESTIONS[row] for row in rows], expert_maps=maps)


def _say_and_paint(processor: Any, rows: Sequence[int], **answers: Any) -> Any:
    """One image, none, two."""
    images = [[draw_image(seed) for seed in ((0,), (), (1, 2))[row]] for row in rows]
    found, questions = encode_for_moai([SCENES[row] for row in rows]), [QUESTIONS[row] for row in rows]
    return processor(images=images, questions=questions, padding=True, return_tensors="pt", **found, **answers)


def _put_in_prompt(processor: Any, rows: Sequence[int]) -> Any:
    conversations = []
    for row in rows:
        parts = [{"type": "image", "image": draw_image(seed)} for seed in ((0,), (1,), (2, 3))[row]]
        conversations.append([{"role": "user", "content": [*parts, {"type": "text", "text": QUESTIONS[row]}]}])
    return processor(conversations, [("objects: 1 dog", None, "text: STOP")[row] for row in rows])


def _build_moai(folder: Path) -> Built:
    write_tiny_checkpoint(folder)
    model, processor = (each.from_pretrained(folder) for each in (MoAIForConditionalGeneration, MoAIProcessor))
    answered = partial(_say_and_paint, rows=[0], answers=["It is a dog on the grass."])
    return Built(model.eval(), processor, _say_and_paint, answered=answered)


def _prompted_of(family: str) -> Callable[[Path], Built]:
    def build(folder: Path) -> Built:
        model = AutoModelForImageTextToText.from_pretrained(save_prompted(folder, family)).eval()
        load = PromptedProcessor.from_pretrained
        return Built(model, load(folder), _put_in_prompt, load_processor=load)

    return build


def _build_emu(folder: Path) -> Built:
    return Built(emu_builders.build_emu(folder), emu_builders.build_processor(folder), _converse)


def _flamingo_of(family: str) -> Callable[[Path], Built]:
    def build(folder: Path) -> Built:
        model = flamingo_builders.build_flamingo(folder, family)
        dtype = torch.float32 if family == "mpt" else torch.float64  # transformers' MPT knows no double mask
        return Built(model, flamingo_builders.build_processor(folder), _converse, dtype)

    return build


def _prismer_of(experts: tuple[str, ...]) -> Callable[[Path], Built]:
    return lambda folder: Built(*build_prismer(experts), _show_maps)


MODELS: dict[str, Callable[[Path], Built]] = {
    "moai": _build_moai,
    "emu": _build_emu,
    # One of Llama's kind, one that hands its layers no arguments, one with other names.
    **{f"flamingo-{family}": _flamingo_of(family) for family in ("llama", "mpt", "gpt_neox")},
    "prismer": _prismer_of(EXPERTS),
    "prismerz": _prismer_of(()),
    **{f"prompted-{family}": _prompted_of(family) for family in ("llava", "qwen2_vl")},
}


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return MODELS[request.param](tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def test_batch_equals_its_rows_alone_when_padded_on_the_left(built: Built) -> None:
    model, error = deepcopy(built.model).to(built.dtype), 2e-5 if built.dtype == torch.float32 else 1e-6
    batch = built.batch(built.processor, ROWS).to(dtype=built.dtype)
    assert batch["attention_mask"].min() == 0
    together = model(**batch).logits
    for row in ROWS:
        alone = model(**built.batch(built.processor, [row]).to(dtype=built.dtype)).logits[0]
        assert_close(together[row, -len(alone) :], alone, atol=error, rtol=0)
    assert not torch.allclose(together[0, -1], together[1, -1], atol=1e-3)  # images and questions count


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_equals_rows_alone_and_uncached_when_batched(built: Built, num_beams: int) -> None:
    model, batch = built.model, built.batch(built.processor, ROWS)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": num_beams}
    new = model.generate(**batch, **settings)[:, -5:]
    assert torch.equal(model.generate(**batch, **settings, use_cache=False)[:, -5:], new)
    for row in ROWS:
        assert torch.equal(model.generate(**built.batch(built.processor, [row]), **settings)[0, -5:], new[row])


@torch.no_grad()
def test_later_tokens_change_nothing_before_them(built: Built) -> None:
    batch = dict(built.batch(built.processor, [1]) if built.answered is None else built.answered(built.processor))
    before = built.model(**batch).logits
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][0, -3:] = 7
    after = built.model(**batch).logits
    assert_close(before[:, :-3], after[:, :-3], atol=2e-5, rtol=1e-5)
    assert not torch.allclose(before[:, -3:], after[:, -3:], atol=1e-3)


def test_ranking_equals_scoring_of_whole_texts_when_prefix_is_cached(built: Built) -> None:
    if built.batch is _show_maps or not hasattr(built.processor, "encode_answer"):
        pytest.skip("ranks otherwise: Prismer in two steps of its own, MoAI and others by Answering.score_choices")
    model, batch = built.model, built.batch(built.processor, ROWS)
    candidates = [built.processor.encode_answer(word) for word in ("yes", "no", "x")]
    scores = rank_continuations(model, batch, candidates)
    for column, ids in enumerate(candidates):
        tokens = torch.tensor([ids]).expand(3, -1)
        whole = dict(batch) | {
            "input_ids": torch.cat([batch["input_ids"], tokens], dim=1),
            "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(tokens)], dim=1),
        }
        with torch.no_grad():
            logits = model(**whole).logits[:, -len(ids) - 1 : -1].log_softmax(-1)
        assert_close(scores[:, column], logits.gather(-1, tokens[..., None])[..., 0].sum(1), atol=1e-4, rtol=1e-4)
    means = rank_continuations(model, batch, candidates, normalize_length=True)
    assert_close(means[:, 0] * len(candidates[0]), scores[:, 0])


def test_save_and_load_are_bit_equal_when_auto_classes_read(built: Built, tmp_path: Path) -> None:
    model, processor = built.model, built.processor
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.suffix in {".bin", ".pt", ".pkl"}]
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    again, base = (auto.from_pretrained(tmp_path) for auto in (AutoModelForImageTextToText, AutoModel))
    for loaded, expected in ((again, model), (base, model.model)):
        assert type(loaded) is type(expected)
        state = loaded.state_dict()
        assert state.keys() == expected.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())
    assert again.generation_config.suppress_tokens == model.generation_config.suppress_tokens
    read = built.load_processor(tmp_path)
    assert type(read) is type(processor)
    ours, theirs = built.batch(processor, ROWS), built.batch(read, ROWS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    declared = [*getattr(read, "processor", read).model_input_names, *getattr(read, "auxiliary_input_names", ())]
    assert set(ours) <= set(declared)
    with torch.no_grad():
        assert torch.equal(again(**ours).logits, model(**theirs).logits)
        assert torch.equal(base(**ours).last_hidden_state, model.model(**ours).last_hidden_state)
