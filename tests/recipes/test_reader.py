"""The text reader of equal training: it reads what verbalizers found, packed as in its own prompts."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_verbalizers import MeanColour, TwoHalves, load_small
from transformers import LlamaConfig, LlamaForCausalLM

from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.text_reader import TextReaderAnswering
from moai.scenes.export import main as export_scenes
from moai.training.metrics_logging import MetricsLogger
from recipes.nano.tokenizer import train_nano_tokenizer
from recipes.reader import main, read_questions
from verbalizers import VerbalizationCache
from verbalizers.store.building import build_cache
from verbalizers.store.recipe import Recipe
from verbalizers.store.rows import hash_content
from verbalizers.store.sources import read_sources


def read_words(reader: TextReaderAnswering, words: list[str], questions: list[str]) -> list[str]:
    """Answers of a text reader."""
    inputs = reader.encode([], [(question, ()) for question in questions], {"auxiliary_text": words}, 4)
    return [answer.parts[0] for answer in reader.generate(inputs, {}, False, max_new_tokens=4)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reader, questions about six scenes and what was found in them."""
    folder = tmp_path_factory.mktemp("reader")
    train_nano_tokenizer(folder / "start", vocab_size=640, num_scenes=40)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=640, **sizes)).save_pretrained(folder / "start")
    usual = ["--out", str(folder), "--length", "6", "--image-size", "48"]
    export_scenes([*usual, "--num-questions", "3", "--kinds", "existence,reading,counting"])
    export_scenes([*usual, "--num-questions", "1", "--kinds", "description", "--file", "descriptions.jsonl"])
    recipe = Recipe.from_verbalizers([TwoHalves(), MeanColour()])
    build_cache(read_sources(folder / "questions.jsonl"), recipe, folder / "cache", load_small, num_workers=0)
    return folder


def command(run: Path, out: Path, steps: int) -> list[str]:
    files = ["--questions", str(run / "questions.jsonl"), str(run / "descriptions.jsonl")]
    sizes = ["--num-steps", str(steps), "--batch-size", "3", "--noisy-scenes", "3", "--learning-rate", "0.01"]
    return ["--reader", str(run / "start"), *files, "--cache", str(run / "cache"), "--out", str(out), *sizes]


def test_shard_holds_every_question_beside_what_was_found(run: Path) -> None:
    tokenizer = TextReaderAnswering.from_folder(run / "start").tokenizer
    scenes = read_questions([run / "questions.jsonl", run / "descriptions.jsonl"], run / "cache", tokenizer)
    assert len(scenes) == 6
    cache = VerbalizationCache(run / "cache")
    rows = [json.loads(line) for line in (run / "questions.jsonl").read_text("utf-8").splitlines()]
    more = [json.loads(line) for line in (run / "descriptions.jsonl").read_text("utf-8").splitlines()]
    for number, name in enumerate(dict.fromkeys(row["image"] for row in rows)):
        said = cache.get(hash_content((run / name).read_bytes())).text
        assert scenes[number].auxiliary_ids == tokenizer.sp_model.encode(said) != []
        asked = [row for row in rows + more if row["image"] == name]
        questions = scenes[number].questions
        assert len(questions) == len(asked)
        for held, row in zip(questions, asked, strict=True):
            *turns, answer = (turn["value"] for turn in row["conversations"])
            asked_ids = tokenizer.decode(held.ids, skip_special_tokens=True)
            assert asked_ids.split() == " ".join(_with_headers(turns)).split()
            assert tokenizer.decode(held.answer_ids, skip_special_tokens=True).strip() == answer
            assert held.answer_ids[-1] == tokenizer.eos_token_id


def _with_headers(turns: list[str]) -> list[str]:
    """Question, answer, question as a prompt has them, without what opens the first."""
    headers = ("", "ASSISTANT:", "USER:")
    return [f"{headers[min(k, 1) + (k > 1)]} {text.removeprefix('<image>')}" for k, text in enumerate(turns)]


def test_reader_learns_when_trained_on_findings(run: Path, tmp_path: Path) -> None:
    main(command(run, tmp_path / "whole", 12))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["step"] == 12 and lines[-1]["loss"] < np.log(640)
    before, after = (
        TextReaderAnswering.from_folder(folder) for folder in (run / "start", tmp_path / "whole" / "text-reader")
    )
    assert not torch.equal(before.model.lm_head.weight, after.model.lm_head.weight)
    assert read_words(after, ["nothing"], ["What is there?"])
    written = (tmp_path / "whole" / "log.jsonl").read_bytes()
    main(command(run, tmp_path / "whole", 12))
    assert (tmp_path / "whole" / "log.jsonl").read_bytes() == written  # nothing was left to do


def test_killed_training_goes_on_bit_by_bit_when_started_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    main(command(run, whole, 5))
    record = MetricsLogger.record

    def stop(self, step, *arguments):
        record(self, step, *arguments)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLogger, "record", stop)
    with pytest.raises(SystemExit, match="130"):
        main(command(run, broken, 5))
    assert not (broken / "text-reader").exists()
    monkeypatch.setattr(MetricsLogger, "record", record)
    main(command(run, broken, 5))
    for name in ("text-reader/model.safetensors", "checkpoints/step-00000005/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name


def test_decoder_alone_reads_when_a_whole_model_is_named() -> None:
    folder = Path(__file__).resolve().parents[2] / "checkpoints" / "moai-nano"
    reader, whole = TextReaderAnswering.from_folder(folder), MoAIForConditionalGeneration.from_pretrained(folder)
    assert type(reader.model) is LlamaForCausalLM
    weights = whole.float().state_dict()
    for name, value in reader.model.state_dict().items():
        assert torch.equal(value, weights[name.replace("model.", "model.language_model.", 1)]), name
    assert read_words(reader, ["nothing"], ["Is there a cat?"])[0]


def test_missing_questions_are_told_when_the_file_is_not_there(run: Path, tmp_path: Path, capsys) -> None:
    words = command(run, tmp_path, 2)
    words[words.index(str(run / "questions.jsonl"))] = str(tmp_path / "none.jsonl")
    with pytest.raises(SystemExit):
        main(words)
    assert "which does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ['{"image": "images/train-0-0000000.png", "conv', "[]", '{"image": "x.png", "kind": "reading"}']
)
def test_malformed_line_is_named_when_questions_are_read(run: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n", encoding="utf-8")
    tokenizer = TextReaderAnswering.from_folder(run / "start").tokenizer
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: expected `image`, `kind`"):
        read_questions([tmp_path / "bad.jsonl"], run / "cache", tokenizer)
