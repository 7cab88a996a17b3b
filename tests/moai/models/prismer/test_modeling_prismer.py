"""What is Prismer's own: sizes, vision tokens read once, losses, instance rows. The rest: test_model_invariants.py."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from pipeline_builders import build_scene, draw_image
from prismer_builders import build_prismer

import moai  # noqa: F401 - registers the Auto classes
from moai.models.prismer.configuration_prismer import EXPERTS, PrismerConfig
from moai.models.prismer.modeling_prismer import PrismerForConditionalGeneration
from moai.models.prismer.ranking import rank_answers
from moai.models.prismer.scenes_prismer import encode_scenes

QUESTIONS = ("What is it", "Is there a dog on the grass here?", "Why?")


@pytest.fixture(params=[EXPERTS, ()], ids=["prismer", "prismerz"])
def built(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return build_prismer(request.param)


def make_batch(processor: Any, rows: tuple[int, ...] = (0, 1, 2), **kwargs: Any) -> Any:
    scenes = [build_scene(word="STOP"), None, build_scene(word="OPEN")]
    maps = encode_scenes([scenes[row] for row in rows], experts=processor.experts)["expert_maps"]
    images = [draw_image(row) for row in rows]
    return processor(images, [QUESTIONS[row] for row in rows], expert_maps=maps, **kwargs)


@pytest.mark.parametrize(
    ("name", "experts", "trainable", "total", "with_language"),
    [
        ("base", EXPERTS, 157.4, 327.5, 242.4),
        ("base", (), 104.2, 274.3, None),
        ("large", EXPERTS, 362.5, 967.1, 664.8),
        ("large", (), 268.2, 872.9, None),
    ],
)
def test_parameters_are_those_of_the_original_when_counted(
    name: str, experts: tuple[str, ...], trainable: float, total: float, with_language: float | None
) -> None:
    with torch.device("meta"):
        model = PrismerForConditionalGeneration(PrismerConfig.from_preset(name, experts))
    model.tie_weights()

    def count(mode: str) -> float:
        model.freeze(mode)
        return round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6, 1)

    assert (count("freeze_lang_vision"), count("none")) == (trainable, total)
    assert with_language in (None, count("freeze_vision"))


def test_stems_and_resampler_are_drawn_as_torch_does_when_new() -> None:
    vision = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    model = PrismerForConditionalGeneration(PrismerConfig(vision_config=vision, text_config=text))
    encoder = model.model.vision_encoder
    layers = [*encoder.stems.modules(), *encoder.resampler.modules()]
    drawn = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(drawn) > 30
    for layer in drawn:
        expected = (3 * layer.weight[0].numel()) ** -0.5
        assert 0.8 * expected < layer.weight.std().item() < 1.2 * expected


def test_answers_are_the_same_when_encoded_images_are_given(built: Any) -> None:
    model, processor = built
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    batch = make_batch(processor)
    settings = {"num_beams": 3, "max_new_tokens": 10, "do_sample": False}
    cached = model.generate(**batch, **settings)
    states = model.encode_images(**{name: batch[name] for name in batch if name not in ("input_ids", "attention_mask")})
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(cached, model.generate(**given, encoder_hidden_states=states, **settings))


def test_generation_reads_vision_tokens_once_when_cached(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = built
    calls: list[Any] = []
    key = model.model.text_decoder.layers[0].crossattention.self.key
    key.register_forward_hook(lambda *_: calls.append("key"))
    model.model.vision_encoder.register_forward_hook(lambda *_: calls.append("vision"))
    model.generate(**make_batch(processor), max_new_tokens=6, min_new_tokens=6, num_beams=2)
    assert calls == ["vision", "key"]


def test_training_padding_changes_no_loss_when_on_either_side(built: Any) -> None:
    model, processor = built
    answers = ("a dog", "no", "because it rains")
    losses = []
    for side in ("left", "right"):
        batch = make_batch(processor, answers=answers, padding_side=side)
        with torch.inference_mode():
            output = model(**batch)
        assert torch.allclose(output.loss, output.sample_losses.mean())
        losses.append(output.sample_losses)
    alone = [make_batch(processor, (row,), answers=(answers[row],)) for row in range(3)]
    losses.append(torch.cat([model(**batch).sample_losses for batch in alone]).detach())
    assert torch.allclose(losses[0], losses[1], atol=1e-3) and torch.allclose(losses[0], losses[2], atol=1e-3)
    said = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0])
    assert said == " A dog</s>"


def test_every_part_that_learns_has_a_gradient_when_trained() -> None:
    model, processor = build_prismer()
    model.freeze("freeze_lang_vision")
    model.train()
    batch, gradients = make_batch(processor, answers=("a", "b", "c")), []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            model.gradient_checkpointing_enable()
        random.seed(0)
        torch.manual_seed(0)
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    first, second = gradients
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-4, rtol=1e-3) for name in first)
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking
    assert not [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]


def test_instance_rows_are_fixed_in_evaluation_and_drawn_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = build_prismer()
    embedding = model.model.vision_encoder.instance_embedding
    features, numbers = torch.zeros(2, 16, 2, 2), torch.tensor([[[[0, 1], [2, 255]]], [[[255] * 2] * 2]])
    fixed = embedding(features, numbers)
    assert torch.equal(fixed[0, :, 0, 1], embedding.weight[1]) and torch.equal(fixed[1, :, 0, 0], embedding.weight[127])
    drawn: list[int] = []
    monkeypatch.setattr("random.randint", lambda low, high: drawn.append(len(drawn)) or 100 + len(drawn))
    embedding.is_drawing = True
    random_rows = embedding(features, numbers)
    assert len(drawn) == 4  # 0, 1, 2 and 255 of the whole batch
    assert torch.equal(random_rows[0, :, 1, 1], random_rows[1, :, 0, 0])
    assert torch.equal(random_rows[0, :, 0, 0], embedding.weight[101])


def test_missing_map_is_named_when_an_expert_is_left_out() -> None:
    model, processor = build_prismer()
    batch = make_batch(processor)
    batch.pop("edge_values")
    with pytest.raises(ValueError, match="edge"):
        model(**batch)
    blind, _ = build_prismer(())
    with pytest.raises(ValueError, match="depth"):
        blind(batch["input_ids"], pixel_values=batch["pixel_values"], depth_values=batch["depth_values"])
    with pytest.raises(ValueError, match="freeze_lang_vision"):
        model.freeze("freeze")
    with pytest.raises(ValueError, match="EncoderDecoderCache"):
        model.generate(**make_batch(processor), max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="smell"):
        PrismerConfig(experts=["smell"])


def test_ranking_chooses_the_likeliest_whole_answer_when_all_are_candidates(built: Any) -> None:
    model, processor = built
    batch = make_batch(processor)
    answers = ["yes", "no", "a dog", "nothing at all"]
    data = dict(batch)
    ids, mask = data.pop("input_ids"), data.pop("attention_mask")
    ranked = rank_answers(model, model.encode_images(**data), ids, mask, processor.encode_answers(answers))
    for row in range(3):
        losses = []
        for answer in answers:
            output = model(**make_batch(processor, (row,), answers=(answer,)))
            losses.append(output.sample_losses.item() / len(processor.encode_answer(answer)))
        assert int(ranked.best[row]) == min(range(4), key=losses.__getitem__)
        scores = dict(zip(ranked.candidates[row].tolist(), ranked.scores[row].tolist(), strict=True))
        assert [scores[i] for i in range(4)] == pytest.approx([-loss for loss in losses], abs=1e-4)
