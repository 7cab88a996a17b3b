"""`moai evaluate`: any model, any test; killed, continued, compared, told."""

import json
import signal
import time
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest
from flamingo_builders import save_flamingo
from forked_processes import ForkedProcess, run_module
from pipeline_builders import draw_image
from prismer_builders import save_prismer
from prompted_builders import save_prompted
from training_builders import write_tiny_checkpoint
from typer.testing import CliRunner

from moai import Pipeline
from moai.cli import app
from moai.evaluation.conditions import resize_scene
from moai.evaluation.evaluate import answer_test
from moai.evaluation.loading import load_test
from moai.evaluation.question_settings import load_test_settings
from moai.evaluation.summary import compare_rows, summarise
from moai.scenes.scenes import Scenes
from verbalizers import Scene
from verbalizers.core.scene import verbalize_scene

TINY_SCENES = ["scenes", "per_kind=2", "image_size=32", "num_objects=[1,3]", "kinds=[existence,reading]"]
TINY_SCENES += ["max_new_tokens=3"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions about three images, in all forms of a row."""
    folder = tmp_path_factory.mktemp("questions")
    for number in range(3):
        draw_image(number).save(folder / f"{number}.png")
    talk = [{"from": "human", "value": "<image>\nIs it red?"}, {"from": "gpt", "value": "yes"}]
    talk += [{"from": "human", "value": "Why <b>so</b>?"}, {"from": "gpt", "value": "paint"}]
    message = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a cat"}]
    rows = [
        {"id": "talk", "image": "0.png", "conversations": talk, "kind": "<script>alert(1)</script>"},
        {"id": "message", "image": "1.png", "messages": message, "kind": "names"},
        {"image": "2.png", "question": "How many?", "answer": 3, "kind": "names", "choices": ["1", "3"]},
        {"image": "2.png", "question": "Colour?", "answers": ["red", "red", "pink"], "choices": ["red", "blue"]},
        {"image": "0.png", "question": "Shape?", "answers": [{"answer": "round"}], "choices": ["round", "flat"]},
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    assert result.exit_code == code, result.output + result.stderr
    return result.output + result.stderr


def rows_of(folder: Path, name: str = "samples.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


MODELS = {
    "moai": write_tiny_checkpoint,
    "llava": lambda folder: save_prompted(folder, "llava"),
    "qwen2_vl": lambda folder: save_prompted(folder, "qwen2_vl"),
    "flamingo": save_flamingo,
    "prismer": save_prismer,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_masks_and_baselines_when_evaluated(name, questions, tmp_path):
    folder, out = MODELS[name](tmp_path / "model"), tmp_path / "out"
    words = [folder, questions, "verbalizations=none", "max_new_tokens=3", "--out", out, "--batch-size", 4]
    baselines = ["image-only", "commonest"] + ["words-in-prompt"] * (name != "prismer")
    run(*words, "--mask-each", *(word for each in baselines for word in ("--baseline", each)))
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert {"model", "without-ocr", "other-scene", "black-image", *baselines} <= set(results["results"])
    assert results["results"]["model"]["all"]["asked"] == 6
    rows = rows_of(out)
    assert results["confidence"]["model"]["asked"] == 6 and "commonest" not in results["confidence"]
    assert all(0 < row["confidence"] < 1 or row["confidence"] == 0 for row in rows)
    assert f", confidence {rows[0]['confidence']:.2f}" in (out / "report.html").read_text("utf-8")
    assert [row["id"] for row in rows[:3]] == ["talk/1", "talk/2", "message"]
    assert rows[1]["earlier"] == [["Is it red?", "yes"]] and rows[4]["answers"] == ["red", "red", "pink"]
    assert all(row["score"] == 1 for row in rows_of(out, "samples.commonest.jsonl")[:1])
    if name == "prismer":
        assert "words-in-prompt" in run(*words, "--baseline", "words-in-prompt", code=1)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_chooses_among_given_answers_when_they_are_ranked(name, questions, tmp_path):
    ranked = tmp_path / "ranked.jsonl"
    rows = [json.loads(line) for line in questions.read_text("utf-8").splitlines()][2:]
    text = "".join(json.dumps(row | {"image": str(questions.parent / row["image"])}) + "\n" for row in rows)
    ranked.write_text(text, encoding="utf-8")
    folder = MODELS[name](tmp_path / "model")
    run(folder, ranked, "ranks=true", "verbalizations=none", "--out", tmp_path / "out")
    for row, wanted in zip(rows_of(tmp_path / "out"), rows, strict=True):
        assert set(row["choices"]) == set(wanted["choices"]) and row["given"] == max(
            row["choices"], key=row["choices"].get
        )
    assert "choices" in run(folder, questions, "ranks=true", "--out", tmp_path / "other", code=1)


def test_ranked_answers_have_the_log_probabilities_of_the_model_when_computed_by_hand(tiny):
    import torch

    pipeline, image = Pipeline.from_pretrained(tiny, []), draw_image(0)
    scene = Scene((image.height, image.width))
    answer = pipeline(image, "Dogs?", scene, options={"choices": "yes,two dogs"}, is_reporting=True)
    prompt = pipeline.answering.prepare(image, "Dogs?", 8)
    found = pipeline.answering.encode_scenes([scene], pipeline.settings)
    for choice, value in answer.report["choices"].items():
        inputs = pipeline.processor(images=[image], text=[prompt], answers=[choice], return_tensors="pt", **found)
        labels = inputs.pop("labels")
        with torch.inference_mode():
            logits = pipeline.model(**inputs).logits[:, :-1].log_softmax(-1)
        kept = labels[:, 1:] >= 0
        wanted = logits[kept].gather(1, labels[:, 1:][kept][:, None]).sum().item()
        assert value == pytest.approx(wanted, abs=1e-4)


def test_answers_do_not_depend_on_the_batch_when_its_size_differs(tiny):
    test = load_test(load_test_settings("scenes", TINY_SCENES[1:]))
    pipeline = Pipeline.from_pretrained(tiny, [])
    small, large = (
        [row for batch in answer_test(pipeline, test, batch_size=size) for row in batch.rows["model"]]
        for size in (1, 4)
    )
    assert [row["given"] for row in small] == [row["given"] for row in large]
    assert [row["verbalization"] for row in small] == [row["verbalization"] for row in large]


def test_killed_evaluation_ends_in_the_same_bytes_when_given_again(tiny, tmp_path):
    words = [str(tiny), *TINY_SCENES, "per_kind=6", "--batch-size", "1", "--baseline", "image-only"]
    run(*words, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    process = ForkedProcess(lambda: run_module("moai", "evaluate", *words, "--out", str(out)))
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "samples.jsonl").is_file() and len(rows_of(out)) >= 3:
            break
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "results.json").is_file()
    with (out / "samples.jsonl").open("ab") as file:  # as a kill while writing leaves it
        file.write(b'{"id": "torn')
    run(*words, "--out", out)
    for name in ("samples.jsonl", "samples.image-only.jsonl", "results.json", "report.html", "settings.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_result_of_other_weights_data_or_settings_is_refused_by_name_when_continued(questions, tmp_path):
    folder, out = write_tiny_checkpoint(tmp_path / "model"), tmp_path / "out"
    words = [folder, questions, "verbalizations=none", "max_new_tokens=2", "--out", out]
    run(*words)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\1")
    assert "model.model.safetensors was" in run(*words, code=1)
    weights.write_bytes(content)
    assert "test.suffix was" in run(*words, "suffix=Short.", code=1)
    assert "options.routing" in run(*words, "--option", "routing=uniform", code=1).replace(
        "options was", "options.routing"
    )
    image = questions.parent / "1.png"
    before = image.read_bytes()
    try:
        draw_image(7).save(image)
        assert "test.images was" in run(*words, code=1)
    finally:
        image.write_bytes(before)
    run(*words)
    run(*words, "suffix=Short.", "--overwrite")


def test_conditions_can_be_added_without_asking_the_model_again_when_a_result_is_there(tiny, questions, tmp_path):
    words = [tiny, questions, "verbalizations=none", "max_new_tokens=2", "--out", tmp_path]
    run(*words)
    before = (tmp_path / "samples.jsonl").stat().st_mtime_ns
    assert "commonest" in run(*words, "--baseline", "commonest")
    assert (tmp_path / "samples.jsonl").stat().st_mtime_ns == before


def test_words_of_another_reader_are_refused_when_a_result_is_continued(tiny, questions, tmp_path):
    words = [tiny, questions, "verbalizations=none", "max_new_tokens=2", "--out", tmp_path / "out"]
    other = write_tiny_checkpoint(tmp_path / "other", "qwen2")
    run(*words, "--baseline", "words-in-prompt")
    told = run(*words, "--baseline", "words-in-prompt", "--reader", other, code=1)
    assert "another reader's" in told and "model.safetensors was nothing, now" in told
    run(*words, "--baseline", "words-in-prompt")
    (tmp_path / "out" / "samples.words-in-prompt.jsonl").unlink()
    run(*words, "--baseline", "words-in-prompt", "--reader", other)


class _Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_report_is_one_page_without_addresses_and_with_escaped_text_when_written(tiny, questions, tmp_path):
    run(tiny, questions, "verbalizations=none", "max_new_tokens=2", "--out", tmp_path)
    page = _Page((tmp_path / "report.html").read_text("utf-8"))
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert not sources and sum(tag == "script" for tag, _ in page.tags) == 2
    images = json.loads(next(text for text in page.texts if text.startswith('{"0": "data:')))
    assert len(images) == 3 and all(source.startswith("data:image/jpeg;base64,") for source in images.values())
    assert [attributes["data-image"] for tag, attributes in page.tags if tag == "img"] == list("001220")
    assert "Why <b>so</b>?" in page.texts
    kinds = [attributes["data-kind"] for tag, attributes in page.tags if tag == "article"]
    assert kinds.count("<script>alert(1)</script>") == 2


def test_two_results_are_compared_pair_by_pair_when_both_are_named(tmp_path):
    def write(name, rights):
        rows = [{"id": k, "kind": "a", "question": "?", "score": float(r), "right": r} for k, r in enumerate(rights)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path / f"{name}.jsonl"

    first, second = write("one", [True] * 9 + [False] * 3), write("two", [True, *[False] * 8, *[True] * 3])
    found = json.loads(run("--compare", first, second, "--json"))["a"]
    assert (found["asked"], found["only_first"], found["only_second"]) == (12, 8, 3)
    assert found["p"] == pytest.approx(0.226562)  # binomial, 3 or fewer or 8 or more of 11
    assert found["difference"] == pytest.approx(-5 / 12, abs=1e-6)
    assert "| a | 12 | 75.0 | 33.3 | -41.7 " in run("--compare", first, second)
    with pytest.raises(ValueError, match="none of whose"):
        compare_rows([{"id": 1}], [{"id": 2}])
    assert "samples.jsonl" in run("--compare", tmp_path, second, code=1)


def test_paraphrases_are_asked_beside_the_question_that_they_fit_when_named(tiny, questions, tmp_path):
    path = tmp_path / "paraphrases.jsonl"
    path.write_text('{"question": "Is it {colour}?", "paraphrases": ["{colour}, is it?", "Tell: {colour}?"]}\n')
    test = load_test(load_test_settings(questions, [f"paraphrases={path}", "suffix=Short."]))
    asked = [(item.id, item.question, item.wording) for item in test.questions]
    assert asked[:3] == [
        ("talk/1", "Is it red? Short.", "original"),
        ("talk/1~1", "red, is it? Short.", "paraphrase"),
        ("talk/1~2", "Tell: red? Short.", "paraphrase"),
    ]
    assert len(asked) == 8 and asked[3][2] == ""
    rows = [{"score": 1.0, "right": True, "given": ""}] * 2 + [{"score": 0.0, "right": False, "given": ""}] * 6
    from moai.evaluation.evaluate import metric_of

    row = summarise(test.questions, rows, metric_of(test))["<script>alert(1)</script>"]
    assert row["wordings"]["original"]["value"] == 1 and row["wordings"]["paraphrase"]["value"] == 0.5
    assert row["right_in_all_wordings"] == 0
    path.write_text('{"question": "Is it {colour}?", "paraphrases": ["{shape}?"]}\n')
    assert "paraphrases.jsonl:1" in run(tiny, questions, f"paraphrases={path}", code=1)


def test_rows_that_cannot_be_asked_are_named_when_a_file_is_read(tiny, questions, tmp_path):
    rows = [
        {"image": str(questions.parent / "0.png"), "question": "What?", "answer": "x"},
        {"image": "gone.png", "question": "What?", "answer": "x"},
        {"image": str(questions.parent / "0.png"), "question": "What?"},
        {"question": "What?", "answer": "x"},
    ]
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = run(tiny, path, "verbalizations=none", "max_new_tokens=2", "--out", tmp_path / "out", code=1)
    assert "bad.jsonl:2" in told and "3 rows" in told
    told = run(tiny, path, "verbalizations=none", "max_new_tokens=2", "--out", tmp_path / "out", "--max-errors", 3)
    assert all(f"bad.jsonl:{line}" in told for line in (2, 3, 4)) and len(rows_of(tmp_path / "out")) == 1
    assert "unknown setting `per_kin`" in run(tiny, "scenes", "per_kin=3", code=1)
    assert "which does not exist" in run(tiny, tmp_path / "none.jsonl", code=1)


def test_scenes_of_rows_are_said_when_their_truth_is_asked_for(tiny, tmp_path):
    scenes = Scenes("test", image_size=64)
    sample = next(s for s in (scenes[k] for k in range(50)) if len(s.truth.detections))
    truth = sample.truth
    PIL.Image.fromarray(sample.image).save(tmp_path / "image.png")
    (tmp_path / "scene.json").write_text(json.dumps(truth.to_dict()), encoding="utf-8")
    row = {"image": "image.png", "question": "What?", "answer": "x"}
    path = tmp_path / "known.jsonl"
    path.write_text("".join(json.dumps({**row, "scene": s}) + "\n" for s in ("scene.json", truth.to_dict())), "utf-8")
    words = [tiny, path, "verbalizations=truth", "max_new_tokens=2", "--out", tmp_path / "out"]
    run(*words)
    first, second = (row["verbalization"] for row in rows_of(tmp_path / "out"))
    assert first == second and all(name in first for name in truth.detections.class_names)
    other = truth.to_dict()
    other["detections"]["class_names"][0] = "teapot"
    (tmp_path / "scene.json").write_text(json.dumps(other), encoding="utf-8")
    run(*words, code=1)
    path.write_text(json.dumps(row), encoding="utf-8")
    assert "under `scene`" in run(*words[:-1], tmp_path / "other", code=1)


def test_settings_file_names_its_questions_and_metric_when_given(tiny, questions, tmp_path):
    text = f"path: {questions.name}\nmetric: vqa\nverbalizations: none\nmax_new_tokens: 2\nlimit: 4\n"
    (questions.parent / "test.yaml").write_text(text, encoding="utf-8")
    told = run(tiny, questions.parent / "test.yaml", "--out", tmp_path / "out")
    assert "VQA accuracy" in told and len(rows_of(tmp_path / "out")) == 5
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert str(questions.parent) not in json.dumps(results)


def test_table_of_images_is_asked_when_it_is_parquet(tiny, questions, tmp_path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    images = [Image.open(questions.parent / f"{k}.png") for k in range(3)]
    rows = {"image": images, "question": ["a?", "b?", "c?"], "truth": [["x"], ["y"], ["z"]], "topic": ["p", "q", "p"]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "table.parquet")
    words = [tiny, tmp_path / "table.parquet", "keys={answers: truth, kind: topic}", "verbalizations=none"]
    run(*words, "max_new_tokens=2", "--out", tmp_path / "out")
    assert [row["kind"] for row in rows_of(tmp_path / "out")] == ["p", "q", "p"]


def test_other_scene_says_the_same_when_it_is_stretched_to_another_image():
    truth = Scenes("test", image_size=64)[3].truth
    stretched = resize_scene(truth, (128, 256))
    assert stretched.image_size_hw == (128, 256)
    assert verbalize_scene(stretched) == verbalize_scene(truth)


def test_masks_change_what_is_read_and_nothing_else_when_asked(tiny, tmp_path):
    run(tiny, *TINY_SCENES, "per_kind=5", "--mask-each", "--out", tmp_path)
    own, silent, other = (
        rows_of(tmp_path, f"samples{name}.jsonl") for name in ("", ".without-segmentation", ".other-scene")
    )
    assert all("verbalization" not in row for row in rows_of(tmp_path, "samples.image-only.jsonl"))
    for part in (silent, other):
        assert sum(row.get("verbalization") != mine["verbalization"] for row, mine in zip(part, own, strict=True)) >= 8
    following = [row["verbalization"] for row in own]
    assert other[0]["verbalization"] in following[1:]


def test_scenes_are_as_many_of_each_kind_and_the_same_again_when_collected(monkeypatch):
    words = ["per_kind=3", "image_size=64", "kinds=[reading,object_relation]", "noise=0"]
    found = load_test(load_test_settings("scenes", words)).questions
    assert sorted(item.kind for item in found) == ["object_relation"] * 3 + ["reading"] * 3
    again = load_test(load_test_settings("scenes", words)).questions
    said = [[verbalize_scene(item.image.read_scene()) for item in each] for each in (found, again)]
    assert said[0] == said[1] and [item.question for item in found] == [item.question for item in again]
    for item, words_said in zip(found, said[0], strict=True):
        if item.kind == "reading":
            assert all(word in words_said for word in item.answers[0].split())
    monkeypatch.setattr("moai.evaluation.scene_questions._PATIENCE", 100)  # in place of thousands
    with pytest.raises(ValueError, match="object_relation.*in 100 scenes"):
        load_test(load_test_settings("scenes", [*words, "num_objects=[0,1]"]))


@pytest.mark.parametrize("probability", [0, 1])
def test_scenes_have_signs_as_often_as_asked_for(probability):
    words = ["per_kind=6", "image_size=64", "kinds=[existence]", "noise=0", f"sign_probability={probability}"]
    for item in load_test(load_test_settings("scenes", words)).questions:
        assert bool(item.image.read_scene().text_lines.texts) == bool(probability)


def test_cached_scenes_are_what_verbalizers_found_when_a_cache_is_named(tiny, tmp_path):
    pytest.importorskip("pyarrow")
    from moai.processing.image_loading import load_image
    from moai.scenes.export import main as export
    from verbalizers.core.registry import build_verbalizer
    from verbalizers.store.building import build_cache
    from verbalizers.store.sources import read_sources

    export(["--split", "test", "--length", "3", "--image-size", "96", "--out", str(tmp_path)])
    sources = read_sources(tmp_path / "questions.jsonl")
    build_cache(sources, [build_verbalizer("ocr")], tmp_path / "cache", load_image, num_workers=0)
    words = [tiny, "scenes", "image_size=96", "kinds=[existence]", f"cache={tmp_path / 'cache'}", "max_new_tokens=2"]
    run(*words, "--out", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert {row["id"].split("-")[0] for row in rows} == {"0", "1", "2"}  # asking ends where the cache does
    scene = build_verbalizer("ocr").predict(
        [Scenes("test", image_size=96, num_questions=7, kinds=("existence",))[0].image]
    )
    for text in scene[0].texts:
        assert text in rows[0]["verbalization"]
    settings = json.loads((tmp_path / "out" / "settings.json").read_text("utf-8"))
    assert len(settings["test.cache"]) == 16 and str(tmp_path) not in json.dumps(settings)
    assert "moai.scenes.export" in run(*words[:2], "image_size=64", *words[3:], code=1)


def test_bundled_model_recognises_and_locates_far_better_when_it_has_a_verbalization(tmp_path):
    words = ["per_kind=30", "image_size=96", "num_objects=[1,6]", "kinds=[localisation,recognition]"]
    run("moai-nano", "scenes", *words, "--baseline", "image-only", "--out", tmp_path)
    against = json.loads((tmp_path / "results.json").read_text("utf-8"))["against_model"]["image-only"]["all"]
    assert against["interval95"][1] < -0.1 and against["p"] < 0.01
