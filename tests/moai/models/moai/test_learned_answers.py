"""What a model learns from is never shown to it beforehand: through our collator, TRL's and transformers' Trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_tiny_config, build_tiny_inputs, build_tiny_model
from PIL import Image
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.samples import Sample
from moai.models.moai.collator_moai import MoAICollator
from moai.models.moai.image_processing_moai import MoAIImageProcessor
from moai.processing.token_roles import IGNORE_INDEX
from verbalizers import Scene

PATCHES = 4
IMAGES = [Image.fromarray(np.full((28, 28, 3), shade, np.uint8)) for shade in (40, 200)]
ANSWERS = (("a cat, I see.", "two of them"), ("no dog at all", "why?"))
# Turns as in ChatML, the assistant's marked.
MARKED_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ p['text'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ p['text'] + '<|im_end|>\\n' }}{% endif %}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture
def processor(byte_level_tokenizer: PreTrainedTokenizerFast) -> MoAIProcessor:
    image_processor = MoAIImageProcessor(size={"height": 28, "width": 28})
    byte_level_tokenizer.pad_token = "<|endoftext|>"
    return MoAIProcessor(image_processor, byte_level_tokenizer, MARKED_TEMPLATE, num_image_tokens=PATCHES)


@pytest.fixture
def model(processor: MoAIProcessor) -> MoAIForConditionalGeneration:
    text = {"vocab_size": len(processor.tokenizer), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    config = build_tiny_config(text=text, image_token_id=processor.image_token_id, plora_rank=4, plora_alpha=8.0)
    return build_tiny_model(config=config)


def conversation(row: int, num_turns: int) -> list[dict[str, str]]:
    messages = []
    for turn, answer in enumerate(ANSWERS[row][:num_turns]):
        messages += [
            {"role": "user", "content": f"question {turn} of {'many' * row} words?"},
            {"role": "assistant", "content": answer},
        ]
    return messages


def check_nothing_is_seen_early(model: MoAIForConditionalGeneration, batch: dict[str, Any]) -> int:
    """Change each learned token in turn: no logit before it moves. Returns how many there were."""
    batch, labels = dict(batch), batch["labels"]
    is_learned = (labels != IGNORE_INDEX) & (labels != model.config.image_token_id)
    with torch.no_grad():
        base = model(**batch).logits
        for position in is_learned.any(0).nonzero().flatten().tolist():
            rows = is_learned[:, position]
            changed, other = batch["input_ids"].clone(), labels.clone()
            changed[rows, position] = (changed[rows, position] + 7) % 200 + 5
            other[rows, position] = changed[rows, position]
            logits = model(**batch | {"input_ids": changed, "labels": other}).logits
            assert torch.equal(logits[:, :position], base[:, :position]), f"token {position} is seen before its time"
            assert not torch.equal(logits[rows, position], base[rows, position])
    return int(is_learned.sum())


def is_mixed(model: MoAIForConditionalGeneration, batch: dict[str, Any]) -> bool:
    with torch.no_grad():
        return bool(model(**batch, output_routing=True).routing)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("has_findings", [True, False])
def test_our_collator_shows_no_answer_early_whichever_side_is_padded(
    model: MoAIForConditionalGeneration, processor: MoAIProcessor, side: str, has_findings: bool
) -> None:
    samples = []
    for row, num_turns in ((0, 2), (1, 1)):
        messages = conversation(row, num_turns)
        content = [{"type": "image"}, {"type": "text", "text": messages[0]["content"]}]
        shown = [{"role": "user", "content": content}]
        shown += [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages[1:]]
        scenes = (Scene((28, 28), findings={"note": f"text {row}"}),) if has_findings else None
        samples.append(Sample(f"row {row}", tuple(shown), (IMAGES[row],), scenes))
    settings = VerbalizerSettings(map="never") if has_findings else None
    batch = MoAICollator(processor, settings, padding_side=side)(samples)
    assert ("auxiliary_input_ids" in batch) is has_findings
    assert check_nothing_is_seen_early(model, batch) > 10 and is_mixed(model, batch)


def trl_collator(processor: MoAIProcessor, **options: Any) -> Any:
    sft = pytest.importorskip("trl.trainer.sft_trainer", reason="needs TRL: pip install trl")
    return sft.DataCollatorForVisionLanguageModeling(processor, **options)


@pytest.mark.parametrize("num_turns", [1, 2])
@pytest.mark.parametrize("assistant_only", [True, False])
@pytest.mark.filterwarnings("ignore:`labels` begin with the first token")
def test_trl_shows_no_answer_early_when_it_collates_messages(
    model: MoAIForConditionalGeneration, processor: MoAIProcessor, num_turns: int, assistant_only: bool
) -> None:
    collate = trl_collator(processor, assistant_only_loss=assistant_only)
    batch = collate([{"messages": conversation(row, num_turns), "images": [IMAGES[row]]} for row in range(2)])
    assert check_nothing_is_seen_early(model, batch) > 20
    assert is_mixed(model, batch) is assistant_only  # a loss on every token leaves nothing that may look ahead
    if assistant_only:  # what transformers' label smoothing does: the roles alone keep the answers out
        labels, roles = batch.pop("labels"), batch["mm_token_type_ids"]
        assert (roles[(labels != IGNORE_INDEX).cumsum(1) > 0] == 0).all() and (roles == 2).any()


@pytest.mark.parametrize("num_turns", [1, 2])
def test_trl_shows_no_answer_early_when_it_collates_prompt_and_completion(
    model: MoAIForConditionalGeneration, processor: MoAIProcessor, num_turns: int
) -> None:
    collate = trl_collator(processor, completion_only_loss=True)
    rows = [(messages[:-1], messages[-1:]) for messages in (conversation(0, num_turns), conversation(1, num_turns))]
    batch = collate([{"prompt": ask, "completion": say, "images": [IMAGES[n]]} for n, (ask, say) in enumerate(rows)])
    assert check_nothing_is_seen_early(model, batch) > 10 and is_mixed(model, batch)
    # The samples are ours: loss and logits of TRL's batch and of our own collator's.
    own = []
    for row, (ask, say) in enumerate(rows):
        first, *rest = ({**m, "content": [{"type": "text", "text": m["content"]}]} for m in [*ask, *say])
        first["content"].insert(0, {"type": "image"})
        own.append(Sample("", (first, *rest), (IMAGES[row],)))
    with torch.no_grad():
        theirs = [model(**{name: value[[n]] for name, value in batch.items()}).loss.item() for n in range(2)]
        ours = [model(**MoAICollator(processor)([sample])).loss.item() for sample in own]
    # TRL learns the line break behind the end token too.
    assert theirs == pytest.approx(ours, rel=0.2)


@pytest.mark.parametrize(("num_turns", "smoothing"), [(2, 0.0), (1, 0.1), (2, 0.1)])
def test_trainer_hands_the_model_no_answer_ahead_when_it_learns(
    model: MoAIForConditionalGeneration, processor: MoAIProcessor, tmp_path: Path, num_turns: int, smoothing: float
) -> None:
    """Labels may be taken out on the way (label smoothing): the roles are right without them."""
    messages = conversation(0, num_turns)
    messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    messages[0]["content"].insert(0, {"type": "image"})
    batch = processor(images=[[IMAGES[0]]], text=processor.apply_chat_template(messages))
    first = batch["mm_token_type_ids"][0].tolist().index(0)
    row = {name: value[0] for name, value in batch.items()}
    row["labels"] = row["input_ids"].clone()
    row["labels"][:first] = IGNORE_INDEX
    seen: list[dict[str, Any]] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, label_smoothing_factor=smoothing, report_to=[], use_cpu=True, save_strategy="no",
        per_device_train_batch_size=2, gradient_accumulation_steps=2, disable_tqdm=True, learning_rate=1e-3,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=[row] * 8)
    result = trainer.train()
    hook.remove()
    model.eval()
    assert 0 < result.training_loss < 20 and all(p.isfinite().all() for p in model.parameters())
    inputs = {name: value for name, value in seen[0].items() if name != "num_items_in_batch"}
    assert ("labels" in inputs) is (smoothing == 0.0)
    inputs.setdefault("labels", torch.stack([row["labels"]] * 2))
    with_labels = check_nothing_is_seen_early(model, inputs)
    labels = inputs.pop("labels")
    assert with_labels > 5

    def without_labels(**batch: Any) -> Any:
        batch.pop("labels")
        return model(**batch)

    without_labels.config = model.config
    assert check_nothing_is_seen_early(without_labels, inputs | {"labels": labels}) == with_labels


def test_smoothed_loss_is_of_the_next_token_when_the_trainer_computes_it(
    model: MoAIForConditionalGeneration, processor: MoAIProcessor, tmp_path: Path
) -> None:
    batch = dict(processor(images=IMAGES[0], questions="What is it?", answers="a cat, I see."))
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=1e-9, report_to=[], use_cpu=True)
    smoothed = Trainer(model, arguments).compute_loss(model, dict(batch))
    assert smoothed.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


# ---------------------------------------------------------------- every way to name what is learned


def add_answer(inputs: dict[str, torch.Tensor], num_answer: int, pads_right: bool) -> dict[str, torch.Tensor]:
    """Learn the last tokens; roles say that everything is prompt."""
    inputs = dict(inputs)
    inputs["labels"] = torch.full_like(inputs["input_ids"], IGNORE_INDEX)
    inputs["labels"][:, -num_answer:] = inputs["input_ids"][:, -num_answer:]
    if pads_right:
        shifts = (inputs["attention_mask"] == 0).sum(1).tolist()
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
            rows = zip(inputs[name], shifts, strict=True)
            inputs[name] = torch.stack([row.roll(-shift) for row, shift in rows])
    return inputs


@pytest.mark.parametrize("pads_right", [False, True])
@pytest.mark.parametrize("gives", ["roles", "no roles", "embeddings", "shifted", "both"])
def test_answer_stays_out_of_the_mixture_however_it_is_named(gives: str, pads_right: bool) -> None:
    model = build_tiny_model(plora_rank=4, plora_alpha=8.0)
    given = add_answer(build_tiny_inputs(model.config, (8, 6)), 4, pads_right)

    def call(**batch: Any) -> Any:
        batch = dict(batch)
        shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        if gives in ("shifted", "both"):
            batch["shift_labels"] = shifted
        if gives == "shifted":
            batch["labels"] = None
        if gives != "roles" and gives != "embeddings":
            del batch["mm_token_type_ids"]
        if gives == "embeddings":
            batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
        return model(**batch)

    call.config = model.config
    assert check_nothing_is_seen_early(call, given) == 8
    with torch.no_grad():
        expected = model(**given | {"mm_token_type_ids": given["mm_token_type_ids"] * (given["labels"] == -100)})
        assert torch.equal(call(**given).logits, expected.logits)


def test_image_behind_an_answer_is_shown_and_not_mixed_when_turns_are_learned() -> None:
    model = build_tiny_model(plora_rank=4, plora_alpha=8.0)
    slots = [model.config.image_token_id] * model.config.num_image_tokens
    ids = torch.tensor([[*slots, 9, 8, 20, 21, *slots, 7, 22, 23]])
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, [6, 7, 13, 14]] = ids[:, [6, 7, 13, 14]]
    pixels = torch.randn(2, 3, 28, 28)
    inputs = {"input_ids": ids, "labels": labels, "pixel_values": pixels}
    assert check_nothing_is_seen_early(model, inputs) == 4
    with torch.no_grad():
        base = model(**inputs, output_routing=True)
        other = model(**inputs | {"pixel_values": torch.stack([pixels[0], -pixels[1]])})
        assert torch.equal(base.logits[:, :8], other.logits[:, :8]) and not torch.equal(base.logits, other.logits)
        assert {(layer.image.shape[1], layer.language.shape[1]) for layer in base.routing} == {(4, 2)}
        # Partial LoRA looks at the token alone, and sees an image wherever one stands, with embeddings as with ids.
        for roles in (None, torch.tensor([[*[1] * 4, 2, 2, 0, 0, *[1] * 4, 2, 2, 2]])):
            embeds = model.get_input_embeddings()(ids)
            given = {"inputs_embeds": embeds, "labels": labels, "pixel_values": pixels, "mm_token_type_ids": roles}
            assert torch.equal(model(**given).logits, base.logits)


def test_loss_of_turns_is_that_of_single_samples_when_only_the_first_or_last_is_learned() -> None:
    """One sample of two turns: its first turn is as alone; with the last turn's labels only, all before is prompt."""
    model = build_tiny_model()
    single = build_tiny_inputs(model.config, (6,), (4,))
    ids = single["input_ids"]
    answer = torch.tensor([[11, 12, 13]])
    question = torch.tensor([[30, 31]])
    findings = {name: value for name, value in single.items() if name.startswith(("pixel", "auxiliary"))}

    def loss(pieces: list[tuple[torch.Tensor, bool]], **options: Any) -> float:
        labels = [piece if learned else torch.full_like(piece, IGNORE_INDEX) for piece, learned in pieces]
        whole = {"input_ids": torch.cat([piece for piece, _ in pieces], 1), "labels": torch.cat(labels, 1)}
        with torch.no_grad():
            return model(**whole, **findings, **options).loss.item()

    alone = loss([(ids, False), (answer, True)])
    last = loss([(ids, False), (answer, False), (question, False), (answer, True)])
    both = loss([(ids, False), (answer, True), (question, False), (answer, True)])
    assert loss([(ids, False), (answer, True), (question, False), (answer, False)]) == pytest.approx(alone, abs=1e-6)
    roles = torch.cat([single["mm_token_type_ids"], torch.full((1, 5), 2), torch.zeros(1, 3, dtype=torch.long)], 1)
    given = [(ids, False), (answer, False), (question, False), (answer, True)]
    assert loss(given, mm_token_type_ids=roles) == pytest.approx(last, abs=1e-6)
    assert both != pytest.approx((alone + last) / 2, abs=1e-3)  # the second question is not mixed there: see the docs
    everything = torch.where(torch.cat([ids, answer, question, answer], 1) == model.config.image_token_id, 1, 2)
    given = [(ids, False), (answer, True), (question, False), (answer, True)]
    assert loss(given, mm_token_type_ids=everything) == both


# ---------------------------------------------------------------- labels that name the placeholder


def test_placeholder_is_no_word_to_learn_however_labels_name_it() -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config, (8, 6))
    inputs["mm_token_type_ids"][:, -4:] = 0
    ids, placeholder = inputs["input_ids"], model.config.image_token_id
    labels = ids.masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
    labels[:, :-4] = labels[:, :-4].where(labels[:, :-4] == placeholder, IGNORE_INDEX)  # images and answer
    words = labels.masked_fill(labels == placeholder, IGNORE_INDEX)

    def shift(of: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(of[:, 1:], (0, 1), value=IGNORE_INDEX)

    with torch.no_grad():
        output = model(**inputs, labels=words)
        assert output.logits.isfinite().all() and output.logits.mean().abs() < 1e3
        expected = output.loss
        assert model(**inputs, labels=labels).loss == expected
        assert model(**inputs, labels=labels, shift_labels=shift(labels)).loss == expected
        num_items = int((shift(labels) != IGNORE_INDEX).sum())  # as transformers' Trainer counts
        assert num_items > 8
        for count in (num_items, torch.tensor(num_items)):
            assert model(**inputs, labels=labels, num_items_in_batch=count).loss.item() == pytest.approx(
                expected.item()
            )
        for count in (8, torch.tensor(8)):  # and nothing changes where it counted words
            loss = model(**inputs, labels=words, num_items_in_batch=count).loss
            assert loss.item() == pytest.approx(expected.item())
        given = {"logits": output.logits, "labels": None, "vocab_size": output.logits.shape[-1]}
        assert model.loss_function(**given, shift_labels=shift(labels)) == expected
        only = labels.masked_fill(labels != placeholder, IGNORE_INDEX)
        assert model(**inputs, labels=only, num_items_in_batch=8).loss == 0


def test_labels_leave_the_mixture_empty_with_a_word_about_it_when_they_begin_at_once() -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config)
    ids = torch.cat([torch.full((2, 1), 9), inputs["input_ids"]], 1)
    given = {"input_ids": ids, "pixel_values": inputs["pixel_values"]}
    with pytest.warns(UserWarning, match="`labels` begin with the first token.*assistant_only_loss"):
        assert model(**given, labels=ids).loss.isfinite()
