import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import moai  # noqa: F401
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.findings import FindingsReader
from moai.evaluation.evaluate import answer_questions
from moai.evaluation.scenes_benchmark import (
    AskedQuestion,
    collect_questions,
    evaluate_scenes,
    main,
    markdown_table,
    overall_line,
    summarise,
)
from moai.evaluation.scenes_benchmark import _shown as shown_images
from moai.processing.image_loading import load_image
from verbalizers.core.registry import build_verbalizer
from verbalizers.store.building import build_cache
from verbalizers.store.cache import VerbalizationCache
from verbalizers.store.sources import read_sources


def asked(kind: str, answer: str) -> AskedQuestion:
    return AskedQuestion(kind, "?", answer, None, "", None)


@pytest.fixture(scope="module")
def nano(repo_root_of_module):
    folder = repo_root_of_module / "checkpoints" / "moai-nano"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def repo_root_of_module():
    from pathlib import Path

    return Path(__file__).resolve().parents[3]


def test_collect_questions_gives_as_many_of_each_kind_when_asked():
    found = list(collect_questions(3, image_size=64, kinds=("reading", "object_relation")))
    assert sorted(item.kind for item in found) == ["object_relation"] * 3 + ["reading"] * 3
    again = list(collect_questions(3, image_size=64, kinds=("reading", "object_relation")))
    assert [(i.question, i.answer, i.auxiliary_text) for i in found] == [
        (i.question, i.answer, i.auxiliary_text) for i in again
    ]


def test_collect_questions_says_the_truth_when_noise_is_zero():
    for item in collect_questions(5, noise=0, image_size=64, kinds=("reading",)):
        assert all(word in item.auxiliary_text for word in item.answer.split())


def test_summarise_counts_right_answers_when_kinds_are_mixed():
    pairs = [(asked("existence", "yes"), "Yes"), (asked("existence", "yes"), "no")]
    pairs += [(asked("description", "There is a dog."), "There is a dog.")]
    table = summarise(pairs)
    assert table["existence"]["value"] == 0.5 and table["existence"]["right"] == 1
    low, high = table["existence"]["interval95"]
    assert 0 < low < 0.5 < high < 1
    assert table["description"]["value"] == 1
    assert overall_line("with_auxiliary", table).startswith("with auxiliary: 1 of 2 right (50.0 %, 9.5-90.5); ")
    text = markdown_table({"with_auxiliary": table, "without_auxiliary": table})
    assert "| existence | all | 2 | 50.0" in text and text.count("\n") == 5


def test_summarise_tells_wordings_apart_and_what_was_abstained_from_when_asked():
    new = replace(asked("existence", "no"), is_trained_wording=False)
    pairs = [
        (asked("existence", "yes"), "yes"),
        (new, "There is no dog."),
        (asked("absence", "There is no dog."), "no"),
    ]
    pairs += [(asked("absence", "There is no sofa."), "there is no couch"), (asked("outside", "I can't tell."), "dog")]
    table = summarise(pairs)
    assert table["existence"]["trained"]["value"] == 1 and table["existence"]["never_trained"]["value"] == 0
    assert table["existence"]["abstained"] == 0.5 and table["absence"]["value"] == 0.5
    assert "abstained from 50.0 % of what can be answered" in overall_line("with_auxiliary", table)
    assert "| existence | never trained | 1 | 0.0" in markdown_table({"with_auxiliary": table})


def test_descriptions_pay_for_what_they_repeat_and_make_up_when_summarised():
    wanted = replace(asked("description", "There is a dog. The dog is on the grass."), options=("dog", "grass", "sky"))
    given = [
        "There is a dog. The dog is on the grass.",
        "There is a dog. The dog is on the sky and the dog is on the sky.",
    ]
    rows = [summarise([(wanted, text)])["description"] for text in (*given, "There is a cat.")]
    assert [row["repeated"] for row in rows] == [0, 1, 0]
    assert [row["absent"] for row in rows] == [0, 0, 1]
    assert rows[0]["value"] == 1 > rows[1]["value"] > rows[2]["value"] == 0


def test_wrong_and_black_images_are_shown_when_the_condition_says_so():
    questions = list(collect_questions(4, image_size=96, kinds=("existence", "recognition")))
    for condition in ("wrong_image", "black_image"):
        shown = [item.image for item in shown_images(questions, condition)]
        assert all((a != b.image).any() for a, b in zip(shown, questions, strict=True))
    assert not any(image.any() for image in [item.image for item in shown_images(questions, "black_image")])


def test_collect_questions_gives_up_when_scenes_have_no_such_question():
    with pytest.raises(ValueError, match="object_relation"):
        next(collect_questions(1, image_size=32, num_objects=(0, 1), kinds=("object_relation",)))


def test_second_turns_come_after_their_first_when_asked(nano):
    first = ("Is there a dog?", "yes")
    item = replace(
        next(collect_questions(1, image_size=96, kinds=("existence",))), question="Where is it?", earlier=(first,)
    )
    assert [message["role"] for message in item.messages()] == ["user", "assistant", "user"]
    (prompt,) = nano[1].apply_chat_template([item.messages()], add_generation_prompt=True)
    assert "USER: Is there a dog? ASSISTANT: yes" in prompt and prompt.endswith("USER: Where is it? ASSISTANT:")
    assert answer_questions(*nano, [item], True, 12)[0]


def test_bundled_model_recognises_and_locates_far_better_when_it_has_auxiliary_tokens(nano):
    # moai-nano has learnt the sentences of Scenes 1: of these two kinds it understands enough of the others too.
    kinds = ("localisation", "recognition")
    words = VerbalizerSettings.load(find_checkpoint("moai-nano")).words
    questions = list(collect_questions(40, image_size=96, num_objects=(1, 6), kinds=kinds, words=words))
    answered = evaluate_scenes(*nano, questions, ("with_auxiliary", "without_auxiliary"))
    with_words, without = (summarise(answered[name]) for name in ("with_auxiliary", "without_auxiliary"))
    for kind in kinds:
        assert with_words[kind]["interval95"][0] > without[kind]["interval95"][1]


def test_answers_are_equal_when_questions_come_alone_or_in_a_batch(nano):
    questions = list(collect_questions(2, image_size=96, kinds=("reading", "existence", "ground_relation")))
    together = answer_questions(*nano, questions, True, 12)
    alone = [answer_questions(*nano, [item], True, 12)[0] for item in questions]
    assert together == alone


def test_command_writes_results_when_run(repo_root_of_module, tmp_path):
    folder = repo_root_of_module / "checkpoints" / "moai-nano"
    main(
        ["--model", str(folder), "--per-kind", "2", "--image-size", "64", "--json", str(tmp_path / "r.json")]
        + ["--markdown", str(tmp_path / "r.md"), "--picture-reader", str(folder), "--split", "validation"]
    )
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["settings"]["split"] == "validation"
    assert report["results"]["with_auxiliary"]["reading"]["asked"] == 2
    # The same model in place of one that was trained on pictures alone: it is asked with the picture alone.
    assert report["results"]["trained_without_auxiliary"] == report["results"]["without_auxiliary"]
    assert (tmp_path / "r.md").read_text(encoding="utf-8").startswith("| question | wordings | asked |")


@pytest.fixture(scope="module")
def cached_scenes(tmp_path_factory):
    """Four test scenes that the OCR has read: the cache's folder."""
    pytest.importorskip("pyarrow")
    from moai.scenes.export import main as export

    folder = tmp_path_factory.mktemp("scenes")
    export(["--split", "test", "--length", "4", "--image-size", "96", "--out", str(folder)])
    sources = read_sources(folder / "questions.jsonl")
    build_cache(sources, [build_verbalizer("ocr")], folder / "cache", load_image, num_workers=0)
    return folder / "cache"


def test_cached_findings_equal_fresh_ones_when_scenes_were_verbalized_before(cached_scenes):
    reader = FindingsReader(VerbalizationCache(cached_scenes))
    cached = list(collect_questions(3, image_size=96, kinds=("reading", "existence"), reader=reader))
    looking = [build_verbalizer("ocr")]
    fresh = list(collect_questions(3, image_size=96, kinds=("reading", "existence"), verbalizers=looking))
    assert cached
    for item, other in zip(cached, fresh, strict=True):
        assert (item.question, item.answer, item.auxiliary_text) == (other.question, other.answer, other.auxiliary_text)
        assert (item.auxiliary_image == other.auxiliary_image).all()


def test_report_names_verbalizers_without_paths_when_a_cache_was_asked_about(
    cached_scenes, repo_root_of_module, tmp_path
):
    folder = repo_root_of_module / "checkpoints" / "moai-nano"
    options = ["--per-kind", "1", "--image-size", "96", "--condition", "with_auxiliary", "--kind", "existence"]
    main(["--model", str(folder), "--cache", str(cached_scenes), *options, "--json", str(tmp_path / "r.json")])
    settings = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["settings"]
    assert settings["verbalizers"] == ["ocr/rapidocr"] and len(settings["fingerprint"]) == 16
    assert not any("/" in str(value) for name, value in settings.items() if name != "verbalizers")


def test_command_says_what_to_do_when_the_cache_holds_other_pictures(cached_scenes, repo_root_of_module, capsys):
    folder = repo_root_of_module / "checkpoints" / "moai-nano"
    with pytest.raises(SystemExit):
        main(["--model", str(folder), "--cache", str(cached_scenes), "--per-kind", "1", "--image-size", "64"])
    assert "moai.scenes.export" in capsys.readouterr().err
