"""Bad rows: all of them at once, whether they are found before training or, in whatever process, while it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cache_verbalizers import MeanColour, TwoHalves
from pipeline_builders import draw_image, write_tiny_checkpoint
from torch.utils.data import DataLoader

from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.data.collator import CollatedBatches
from moai.data.question_files import read_questions
from moai.data.training_data import DataSettings, TrainingDataset, build_training_dataset
from moai.models.moai.collator_moai import MoAICollator
from moai.processing.image_loading import load_image
from verbalizers.store.building import build_cache
from verbalizers.store.recipe import Recipe
from verbalizers.store.sources import read_sources

NUM_ROWS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> MoAIProcessor:
    return MoAIProcessor.from_pretrained(checkpoint)


def talk(question: str = "What?", answer: str = "A thing.") -> list[dict]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Six rows, each with an image of its own; that of the third is cut off behind its header."""
    for index in range(NUM_ROWS):
        draw_image(index).save(tmp_path / f"{index}.jpg")
    whole = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    return write(tmp_path, [{"image": f"{index}.jpg", "conversations": talk()} for index in range(NUM_ROWS)])


def write(folder: Path, rows: list[dict]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build(path: Path, processor: MoAIProcessor, report_file: Path | None = None, **fields: object) -> TrainingDataset:
    settings = DataSettings(str(path), **({"verbalizations": "none"} | fields))
    return build_training_dataset(settings, MoAICollator(processor), report_file=report_file)


def test_all_bad_rows_are_told_at_once_when_there_are_many(tmp_path: Path, processor: MoAIProcessor) -> None:
    draw_image(0).save(tmp_path / "0.jpg")
    good = {"image": "0.jpg", "conversations": talk()}
    path = write(tmp_path, [good, *({"image": f"absent{index}.jpg", "conversations": talk()} for index in range(14))])
    file = tmp_path / "run" / "bad_rows.jsonl"
    with pytest.raises(ValueError, match=r"at most 3 bad rows \(`max_bad_rows`\), got 14") as failed:
        build(path, processor, file, max_bad_rows=3)
    text = str(failed.value)
    assert "absent9.jpg" in text and "absent10.jpg" not in text and "and 4 more" in text and str(file) in text
    listed = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["place"] for row in listed] == [f"rows.jsonl:{number}" for number in range(2, 16)]
    assert all(f"absent{index}.jpg" in row["reason"] for index, row in enumerate(listed))
    assert len(build(path, processor, file, max_bad_rows=14)) == 1 and file.is_file()
    write(tmp_path, [good])
    build(path, processor, file)
    assert not file.exists()  # it would tell of rows that are mended


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_image_is_one_bad_row_when_processes_find_it_again_and_again(
    damaged: Path, processor: MoAIProcessor, num_workers: int
) -> None:
    file = damaged.with_name("bad_rows.jsonl")
    dataset = build(damaged, processor, file, max_bad_rows=1)
    batches = CollatedBatches(dataset, dataset.collator)
    order = [[2, 0], [2, 1], [2, 3], [2, 4]]
    for batch in DataLoader(batches, None, sampler=order, num_workers=num_workers, collate_fn=_unchanged):
        assert isinstance(batch, dict) and batch["input_ids"].shape[0] == 2
    listed = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["place"] for row in listed} == {"rows.jsonl:3 turn 2"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_error_names_row_and_image_in_one_line_when_a_worker_meets_one_bad_row_too_many(
    damaged: Path, processor: MoAIProcessor, num_workers: int
) -> None:
    batches = CollatedBatches(build(damaged, processor), MoAICollator(processor))
    loader = DataLoader(batches, None, sampler=[[0, 1], [2, 3]], num_workers=num_workers, collate_fn=_unchanged)
    good, failure = loader
    assert isinstance(good, dict) and isinstance(failure, ValueError)
    message = str(failure)
    assert message.startswith("expected at most 0 bad rows (`max_bad_rows`), got 1")
    assert "rows.jsonl:3 turn 2: 2.jpg: " in message and "truncated" in message and "`check_images: decode`" in message
    assert "\n" not in message and "Traceback" not in message
    assert "Traceback" in failure.__notes__[0]


def test_damaged_image_is_a_bad_row_when_it_could_not_be_verbalized(damaged: Path, processor: MoAIProcessor) -> None:
    """Not one to verbalize once more: that ends at the same image."""
    cache = damaged.with_name("cache")
    recipe = Recipe.from_verbalizers([TwoHalves(), MeanColour()])
    assert build_cache(read_sources(damaged), recipe, cache, load_image, num_workers=0).num_errors == 1
    fields = {"verbalizations": "cache", "cache": cache}
    with pytest.raises(ValueError, match=r"bad rows.*\n.*rows\.jsonl:3: 2\.jpg.*truncated") as failed:
        build(damaged, processor, **fields)
    assert "moai verbalize" not in str(failed.value)
    assert len(build(damaged, processor, max_bad_rows=1, **fields)) == NUM_ROWS - 1


def test_sample_is_a_bad_row_when_the_model_cannot_read_that_much(
    damaged: Path, processor: MoAIProcessor, checkpoint: Path
) -> None:
    """Whoever holds the words: question, answer, history or images."""
    longest = MoAIForConditionalGeneration.from_pretrained(checkpoint).config.max_positions
    words = "dogs and cats " * longest
    rows = [
        {"image": "0.jpg", "conversations": talk()},
        {"image": "0.jpg", "conversations": talk(words)},
        {"image": "0.jpg", "conversations": talk(answer=words)},
        {"image": "0.jpg", "conversations": [*talk(words, "a"), *talk("b", "c")]},
    ]
    rows[3]["conversations"][2]["value"] = "b"
    path = write(damaged.parent, rows)
    settings = DataSettings(str(path), verbalizations="none", max_bad_rows=9)
    dataset = build_training_dataset(settings, MoAICollator(processor), max_positions=longest)
    assert len(dataset) == 1
    places = [problem.place for problem in dataset.report.problems]
    assert places == ["rows.jsonl:2 turn 2", "rows.jsonl:3 turn 2", "rows.jsonl:4 turn 2", "rows.jsonl:4 turn 4"]
    for problem in dataset.report.problems:
        assert f"at most {longest} tokens" in problem.reason and "the model" in problem.reason
    exact = dataset.collator([dataset[0]])["input_ids"].shape[1]
    narrow = build_training_dataset(settings, MoAICollator(processor), max_positions=exact)
    assert len(narrow) == 1 and len(dataset.report.problems) == 4
    with pytest.raises(ValueError, match="got none"):
        build_training_dataset(settings, MoAICollator(processor), max_positions=exact - 1)


def test_sample_is_a_bad_row_when_its_verbalization_is_longer_than_what_the_model_reads(
    damaged: Path, processor: MoAIProcessor
) -> None:
    path = write(damaged.parent, [{"image": f"{index}.jpg", "conversations": talk()} for index in (0, 1)])
    cache = damaged.with_name("cache")
    build_cache(read_sources(path), Recipe.from_verbalizers([TwoHalves(), MeanColour()]), cache, load_image)
    whole = build(path, processor, verbalizations="cache", cache=cache)
    words = len(processor.tokenizer(whole.collator.describe(whole[0]))["input_ids"])
    assert words > whole.lengths[0] + 2
    fields = {"verbalizations": "cache", "cache": cache, "max_length": words - 2}
    reason = rf"verbalization of at most {words - 2} tokens .*, got "
    with pytest.raises(ValueError, match=rf"got 2:\n  rows\.jsonl:1: 0\.jpg: .*{reason}"):
        build(path, processor, **fields)
    unread = build(path, processor, check_images="path", **fields)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1 turn 2: .*{reason}"):
        unread[0]
    processor.max_auxiliary_length = words - 2  # cut, with the processor's own warning
    try:
        assert len(build(path, processor, **fields)) == 2
    finally:
        processor.max_auxiliary_length = None


def test_row_is_trained_on_when_its_texts_hold_half_a_surrogate_pair(damaged: Path, processor: MoAIProcessor) -> None:
    rows = [{"image": "0.jpg", "id": "\ud800", "conversations": talk("A \ud83d", "B \udc00")}]
    rows.append({"images": ["0.jpg"], "messages": [{"role": "user", "content": [{"type": "text", "text": "\udcff?"}]}]})
    rows[1]["messages"].append({"role": "assistant", "content": "\ud83d\ude00"})
    dataset = build(write(damaged.parent, rows), processor)
    assert [sample.answer for sample in dataset] == ["B \ufffd", "\U0001f600"]
    assert str(dataset[0].prompt).count("A \ufffd") == 1 and str(dataset[1].prompt).count("\ufffd?") == 1
    dataset.collator(list(dataset))


def test_question_is_valid_text_when_its_line_holds_half_a_surrogate_pair(tmp_path: Path) -> None:
    lines = [{"image": "a\udcff.jpg", "question": "What \ud83d?", "id": "\ud800", "scene": {"\ud800": ["\ud800"]}}]
    (tmp_path / "q.jsonl").write_text(
        "\n".join([json.dumps(lines[0]), '{"image": "a", "image": "b", "question": "?"}'])
    )
    (row,), (problem,) = read_questions(tmp_path / "q.jsonl")
    assert (row.question, row.id, row.scene) == ("What \ufffd?", "\ufffd", {"\ufffd": ["\ufffd"]})
    assert row.image == "a\udcff.jpg"  # the name of a file
    assert ":2: " in problem and "'image' stands twice" in problem


def _unchanged(batch: object) -> object:
    return batch


def test_shared_marks_survive_when_a_data_set_is_sent_to_a_spawned_process(
    damaged: Path, processor: MoAIProcessor
) -> None:
    batches = CollatedBatches(build(damaged, processor, max_bad_rows=1), MoAICollator(processor))
    loader = DataLoader(
        batches, None, sampler=[[2, 3]], num_workers=1, collate_fn=_unchanged, multiprocessing_context="spawn"
    )
    (batch,) = loader
    assert isinstance(batch["input_ids"], torch.Tensor)
    assert batches.dataset._is_bad.sum() == 1
