"""Conversations become samples: what is learnt, what is skipped, and that no answer looks ahead."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_verbalizers import MeanColour, TwoHalves
from pipeline_builders import draw_image, write_tiny_checkpoint
from processing_builders import FORGERIES

from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.data.training_data import DataSettings, TrainingDataset, build_training_dataset
from moai.models.moai.collator_moai import MoAICollator
from moai.processing.image_loading import load_image
from verbalizers.store.building import build_cache
from verbalizers.store.recipe import Recipe
from verbalizers.store.sources import read_sources

ANSWERS = ["Two dogs.", "It is on the left.", "STOP"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> MoAIProcessor:
    return MoAIProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> MoAIForConditionalGeneration:
    return MoAIForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(params=["internlm2", "byte_level"])
def any_processor(request: pytest.FixtureRequest, processor: MoAIProcessor) -> MoAIProcessor:
    return processor if request.param == "internlm2" else request.getfixturevalue("chatml_processor")


def llava_rows() -> list[dict]:
    """Three turns, one turn, and one without an image."""
    talk = [("<image>\nHow many dogs?", ANSWERS[0]), ("Where is the cat?", ANSWERS[1])]
    turns = [{"from": who, "value": text} for pair in talk for who, text in zip(("human", "gpt"), pair, strict=True)]
    single = [{"from": "human", "value": "What is written?\n<image>"}, {"from": "gpt", "value": ANSWERS[2]}]
    plain = [{"from": "human", "value": "Say yes."}, {"from": "gpt", "value": "yes"}]
    return [
        {"id": "a", "image": "0.png", "conversations": turns},
        {"id": "b", "image": "1.png", "conversations": single},
        {"id": "c", "conversations": plain},
    ]


def write_rows(folder: Path, rows: list, name: str = "train.jsonl") -> Path:
    """Rows and four images on disk; a row that is text is written as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(4):
        draw_image(index, 30 + index, 40).save(folder / f"{index}.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / name
    path.write_text("\n".join(lines) if name.endswith("l") else "[\n" + ",\n".join(lines) + "\n]", encoding="utf-8")
    return path


def verbalize(path: Path, out: Path) -> Path:
    """A real cache, as `moai verbalize` fills it."""
    recipe = Recipe.from_verbalizers([TwoHalves(), MeanColour()])
    build_cache(read_sources(path), recipe, out, load_image, num_workers=0)
    return out


def build(path: Path, processor: MoAIProcessor, **fields: object) -> TrainingDataset:
    fields = {"verbalizations": "none"} | fields if "cache" not in fields else fields
    return build_training_dataset(DataSettings(sources=str(path), **fields), MoAICollator(processor))


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_dataset_has_one_sample_per_answer_when_conversations_have_several_turns(
    tmp_path: Path, any_processor: MoAIProcessor, name: str
) -> None:
    dataset = build(write_rows(tmp_path, llava_rows(), name), any_processor)
    assert [dataset[index].answer for index in range(len(dataset))] == [*ANSWERS, "yes"]
    assert [len(dataset[index].images) for index in range(len(dataset))] == [1, 1, 1, 0]
    assert "Two dogs." in str(dataset[1].prompt) and "Two dogs." not in str(dataset[0].prompt)
    assert dataset.report.num_rows == 3 and not dataset.report.problems


def test_labels_decode_to_the_answers_alone_when_samples_are_collated(
    tmp_path: Path, any_processor: MoAIProcessor
) -> None:
    dataset = build(write_rows(tmp_path, llava_rows()), any_processor)
    batch = dataset.collator(list(dataset))
    tokenizer = any_processor.tokenizer
    for row, answer in enumerate([*ANSWERS, "yes"]):
        is_target = batch["labels"][row] != -100
        target = batch["labels"][row][is_target]
        assert target[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(target[:-1]).strip() == answer
        assert (batch["mm_token_type_ids"][row][is_target] == 0).all()
        assert torch.equal(batch["input_ids"][row][is_target], target)


def test_lengths_tell_the_tokens_of_samples_when_none_is_made(tmp_path: Path, any_processor: MoAIProcessor) -> None:
    rows = llava_rows()
    rows[0]["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    dataset = build(write_rows(tmp_path, rows), any_processor)
    collate = dataset.collator
    exact = [collate([dataset[index]])["input_ids"].shape[1] for index in range(len(dataset))]
    assert np.abs(np.array(exact) - dataset.lengths).max() <= 2


def test_answer_tokens_move_no_earlier_logit_when_they_change(
    tmp_path: Path, processor: MoAIProcessor, model: MoAIForConditionalGeneration
) -> None:
    path = write_rows(tmp_path, llava_rows())
    dataset = build(path, processor, cache=str(verbalize(path, tmp_path / "cache")))
    batch = dataset.collator(list(dataset))
    with torch.no_grad():
        before = model(**batch, use_cache=False).logits
        for row in range(len(dataset)):
            first = int((batch["labels"][row] != -100).nonzero()[0])
            for position in range(first, batch["labels"].shape[1]):
                changed = {key: value.clone() for key, value in batch.items()}
                changed["input_ids"][row, position] = 300 if batch["input_ids"][row, position] != 300 else 301
                after = model(**changed, use_cache=False).logits
                attended = batch["attention_mask"][row, :position].bool()
                assert torch.equal(after[row, :position][attended], before[row, :position][attended])
                assert not torch.equal(after[row, position], before[row, position])


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_its_singles_when_samples_differ_in_length(
    tmp_path: Path, processor: MoAIProcessor, model: MoAIForConditionalGeneration, side: str
) -> None:
    path = write_rows(tmp_path, llava_rows())
    dataset = build(path, processor, cache=str(verbalize(path, tmp_path / "cache")))
    collate = dataset.collator.replace(padding_side=side)
    batch = collate(list(dataset))
    assert bool((batch["attention_mask"][:, 0] == 0).any()) is (side == "left")
    with torch.no_grad():
        together = model(**batch, use_cache=False).logits
        for row, sample in enumerate(dataset):
            single = collate([sample])
            alone = model(**single, use_cache=False).logits[0]
            torch.testing.assert_close(together[row][batch["attention_mask"][row].bool()], alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_control_tokens_stay_words_when_users_write_them(
    tmp_path: Path, any_processor: MoAIProcessor, forgery: str
) -> None:
    question = [{"type": "image"}, {"type": "text", "text": f"Read {forgery} aloud."}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"It says {forgery}"}]
    plain = json.loads(json.dumps(messages).replace(json.dumps(forgery)[1:-1], "x"))
    row = {"images": ["0.png"], "messages": messages}
    dataset = build(write_rows(tmp_path, [row, row | {"messages": plain}]), any_processor)
    batch = dataset.collator(list(dataset))
    steering = any_processor.encoder.guard.forbidden_ids
    counts = [sum(int(token) in steering for token in ids[mask.bool()]) for ids, mask in _rows(batch)]
    assert counts[0] == counts[1]
    assert (batch["mm_token_type_ids"] == 1).sum(1).tolist() == [any_processor.num_image_tokens] * 2


def _rows(batch: dict[str, torch.Tensor]) -> list:
    return list(zip(batch["input_ids"], batch["attention_mask"], strict=True))


def bad_rows() -> list[tuple[object, str]]:
    """A row that cannot be trained on, and what the report says of it."""
    good = llava_rows()[1]
    ask, reply = good["conversations"]
    return [
        ("{not json", "expected a JSON object"),
        ("[1, 2]", "expected a JSON object, got a list"),
        ({"image": "0.png"}, "`conversations` or `messages`"),
        (good | {"image": "absent.png"}, "absent.png"),
        (good | {"image": "broken.png"}, "broken.png"),
        (good | {"image": 7}, "path of an image"),
        (good | {"image": ["0.png", "1.png"]}, "2 images and 1 mentions"),
        (good | {"conversations": [ask]}, "at least one answer"),
        (good | {"conversations": [reply, ask]}, "user first"),
        (good | {"conversations": [ask, reply | {"value": "  "}]}, "expected words from the assistant"),
        (good | {"conversations": [ask, reply | {"from": "robot"}]}, "human, gpt or system"),
        (good | {"conversations": [ask, reply | {"value": ["x"]}]}, "expected text"),
    ]


@pytest.mark.parametrize(("row", "reason"), bad_rows())
def test_bad_row_is_named_and_skipped_when_the_limit_allows(
    tmp_path: Path, processor: MoAIProcessor, row: object, reason: str
) -> None:
    path = write_rows(tmp_path, [llava_rows()[1], row, llava_rows()[2]])
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    dataset = build(path, processor, max_bad_rows=1)
    assert [sample.answer for sample in dataset] == ["STOP", "yes"]
    (problem,) = dataset.report.problems
    assert problem.place == "train.jsonl:2" and reason in problem.reason
    with pytest.raises(ValueError, match=r"at most 0 bad rows.*\n  train\.jsonl:2: "):
        build(path, processor)


def test_bad_row_is_named_by_its_index_when_the_file_is_a_list(tmp_path: Path, processor: MoAIProcessor) -> None:
    good = llava_rows()[1]
    path = write_rows(tmp_path, [json.dumps(good, indent=1), good | {"image": "absent.png"}], "train.json")
    (problem,) = build(path, processor, max_bad_rows=1).report.problems
    assert problem.place == "train.json[1]"
    path.write_text(path.read_text().replace("]\n}", "]\n} x", 1))
    with pytest.raises(ValueError, match=r"train\.json.*',' or '\]'.*line \d+"):
        build(path, processor)


def test_verbalizing_and_training_read_the_same_rows_when_a_file_has_byte_order_marks(
    tmp_path: Path, processor: MoAIProcessor
) -> None:
    good = llava_rows()[1]
    path = write_rows(tmp_path, [good], "train.jsonl")
    path.write_bytes(2 * (b"\xef\xbb\xbf" + path.read_bytes().rstrip(b"\n") + b"\n"))  # two such files, joined
    assert len(build(path, processor)) == 2
    assert [source.path for source in read_sources(path)] == 2 * [good["image"]]


def test_too_long_sample_is_named_by_its_turn_when_only_it_exceeds_the_limit(
    tmp_path: Path, processor: MoAIProcessor
) -> None:
    path = write_rows(tmp_path, llava_rows())
    lengths = build(path, processor).lengths
    limit = max(lengths) - 3
    dataset = build(path, processor, max_length=limit, max_bad_rows=1)
    assert len(dataset) == len(lengths) - 1
    (problem,) = dataset.report.problems
    assert problem.place == "train.jsonl:1 turn 4" and f"at most {limit} tokens" in problem.reason


def test_truncated_image_is_replaced_and_counted_when_it_is_decoded(tmp_path: Path, processor: MoAIProcessor) -> None:
    path = write_rows(tmp_path, llava_rows())
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    dataset = build(path, processor, max_bad_rows=1)
    assert len(dataset) == 4 and not dataset.report.problems  # its header is fine
    assert dataset[2].answer == "yes"  # the next readable one
    assert dataset[2].answer == "yes" and len(dataset.report.problems) == 1
    assert "1.png" in dataset.report.problems[0].reason
    with pytest.raises(ValueError, match="at most 0 bad rows"):
        build(path, processor)[2]
    assert len(build(path, processor, max_bad_rows=1, check_images="decode")) == 3


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tiff", "gif"])
def test_image_is_read_when_its_format_is_a_common_one(tmp_path: Path, processor: MoAIProcessor, suffix: str) -> None:
    path = write_rows(tmp_path, [llava_rows()[1] | {"image": f"image.{suffix}"}])
    draw_image(5).save(tmp_path / f"image.{suffix}")
    (sample,) = build(path, processor)
    assert sample.images[0].size == (80, 60)


def test_leak_would_be_seen_when_answers_were_mixed(
    tmp_path: Path, processor: MoAIProcessor, model: MoAIForConditionalGeneration
) -> None:
    """The control of the tests of leaks: with the answer in the language stream an earlier logit does move."""
    dataset = build(write_rows(tmp_path, llava_rows()), processor)
    batch = dataset.collator([dataset[0]])
    is_answer = batch.pop("labels") != -100  # with labels the model would keep it out
    batch["mm_token_type_ids"] = torch.where(is_answer, 2, batch["mm_token_type_ids"])
    changed = {key: value.clone() for key, value in batch.items()}
    changed["input_ids"][0, -2] = 300
    with torch.no_grad():
        before, after = (model(**inputs, use_cache=False).logits[0, :-2] for inputs in (batch, changed))
    assert not torch.equal(before, after)
