"""Dynamic rotary positions: nothing is remembered between calls, rows do not influence one another."""

from __future__ import annotations

import torch
from builders import build_tiny_inputs, build_tiny_model

LIMIT = 6  # shorter than the prompts below: scaling is in force
DYNAMIC = {
    "max_position_embeddings": LIMIT,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0},
}


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_short_prompt_is_read_alike_when_a_longer_one_came_before():
    model = build_tiny_model(text=DYNAMIC)
    short = build_tiny_inputs(model.config, (4,), (3,))
    long = build_tiny_inputs(model.config, (30,), (3,))
    assert short["input_ids"].shape[1] > LIMIT, "both prompts must be longer than the trained length"
    alone = logits_of(model, short)
    logits_of(model, long)
    assert torch.equal(logits_of(model, short), alone)


def test_padded_row_equals_single_when_rows_exceed_the_trained_length():
    model = build_tiny_model(text=DYNAMIC)
    lengths = (20, 4)
    batch = build_tiny_inputs(model.config, lengths, (3, 3))
    together = logits_of(model, batch)
    for row in range(len(lengths)):
        keep = batch["attention_mask"][row].bool()
        single = {name: value[row : row + 1] for name, value in batch.items()}
        single |= {name: single[name][:, keep] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        assert torch.allclose(together[row, keep], logits_of(model, single)[0], atol=1e-4)


def test_logits_change_when_scaling_is_dynamic():
    """The comparisons above can fail: beyond the trained length scaling matters."""
    scaled = build_tiny_model(text=DYNAMIC)
    plain = build_tiny_model(text=DYNAMIC | {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}})
    inputs = build_tiny_inputs(scaled.config, (20,), (3,))
    assert not torch.allclose(logits_of(scaled, inputs), logits_of(plain, inputs), atol=1e-2)


def test_generate_equals_single_when_rows_cross_the_trained_length():
    model = build_tiny_model(text=DYNAMIC | {"max_position_embeddings": 12})
    batch = build_tiny_inputs(model.config, (5, 3), (4, 2))
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for row, lengths in enumerate(((5, 4), (3, 2))):
        keep = batch["attention_mask"][row].bool()
        words = batch["auxiliary_attention_mask"][row].bool()
        single = {name: value[row : row + 1] for name, value in batch.items()}
        for name, mask in (("input_ids", keep), ("attention_mask", keep), ("mm_token_type_ids", keep)):
            single[name] = single[name][:, mask]
        for name in ("auxiliary_input_ids", "auxiliary_attention_mask"):
            single[name] = single[name][:, words]
        assert int(keep.sum()) == lengths[0] + model.config.num_image_tokens
        alone = model.generate(**single, **settings)[:, single["input_ids"].shape[1] :]
        assert alone.tolist() == together[row : row + 1].tolist()
