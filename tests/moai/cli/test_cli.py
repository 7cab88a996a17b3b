"""The command line: what it prints where, its exit codes, question files that survive a kill."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from pipeline_builders import build_scene, draw_image, write_tiny_checkpoint
from typer.testing import CliRunner

from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings, build_named_verbalizers
from moai.cli import app
from moai.cli.rendering import printable
from moai.cli.verbalizing import choose_verbalizers
from moai.data.question_files import AnswerFile, read_questions
from recipes.nano.config import SCENES_DOMAIN
from verbalizers import VerbalizationCache


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings = {"verbalizers": [], "kinds": ["detection", "ocr"]}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), settings)


@pytest.fixture
def workplace(tmp_path, monkeypatch, folder):
    """A folder with two images and findings for them; commands run inside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOAI_MODEL", str(folder))
    for seed, name in enumerate(("a.png", "b.png")):
        draw_image(seed).save(name)
    (tmp_path / "scene.json").write_text(json.dumps(build_scene().to_dict()))
    return tmp_path


def run(*arguments: str):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def ask(*arguments: str):
    return run("ask", "--max-new-tokens", 5, *arguments)


def test_ask_prints_only_the_answer_on_stdout_when_piped(workplace):
    result = ask("a.png", "What is it?")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1 and result.stdout.strip()
    assert "answered without detection, ocr: no verbalizer looked for it" in result.stderr


def test_ask_json_holds_everything_when_findings_are_brought(workplace):
    result = ask("a.png", "What is it?", "--json", "--scene", "scene.json")
    row = json.loads(result.stdout)
    assert result.exit_code == 0
    assert row["image"] == "a.png" and row["question"] == "What is it?" and row["answer"]
    assert row["scene"] == build_scene().to_dict() and "STOP" in row["auxiliary_text"] and row["missing"] == {}
    assert row["routing"]
    for layer in row["routing"]:
        for stream in ("image", "language"):
            assert sum(layer[stream].values()) == pytest.approx(1, abs=1e-3)


def test_ask_says_what_is_left_out_when_thousands_of_findings_are_brought(workplace):
    data = build_scene().to_dict()
    found = data["detections"]
    for name in ("boxes_xyxy", "class_names", "confidence"):
        found[name] = found[name] * 3000
    (workplace / "many.json").write_text(json.dumps(data))
    result = ask("a.png", "What is it?", "--json", "--scene", "many.json")
    assert result.exit_code == 0
    assert "3,000 detections are more than a sentence holds: the 200 of highest" in result.stderr
    assert json.loads(result.stdout)["auxiliary_text"].count("dog") < 250
    found["boxes_xyxy"][7] = [30, 10, 10, 30]
    (workplace / "many.json").write_text(json.dumps(data))
    result = ask("a.png", "What is it?", "--scene", "many.json")
    assert result.exit_code == 1
    assert "many.json" in result.stderr and "in row 7" in result.stderr


def test_ask_says_that_words_are_cut_when_the_checkpoint_bounds_them(workplace, folder):
    shutil.copytree(folder, workplace / "short")
    file = workplace / "short" / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_auxiliary_length": 7}))
    result = ask("a.png", "What is it?", "--scene", "scene.json", "--model", "short")
    assert result.exit_code == 0 and "tokens and was cut to its first 7" in result.stderr


def test_ask_needs_no_model_when_no_image_can_be_read(workplace, monkeypatch):
    (workplace / "text.png").write_text("hello")
    whole = (workplace / "a.png").read_bytes()
    (workplace / "cut.png").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr("moai.cli.answer_settings.load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
    result = ask("text.png", "cut.png", "What is it?")
    assert result.exit_code == 1 and "begins with b'hello'" in result.stderr and "cut off" in result.stderr


def test_ask_prints_the_same_answer_when_streaming(workplace):
    plain, streamed = ask("a.png", "What is it?"), ask("a.png", "What is it?", "--stream")
    assert streamed.stdout.strip() == plain.stdout.strip() and streamed.exit_code == 0


@pytest.mark.parametrize("option", ["--stream", "--no-stream"])
def test_ask_shows_panels_when_on_a_terminal(workplace, monkeypatch, option):
    plain = ask("a.png", "What is it?").stdout.strip()
    monkeypatch.setattr("moai.cli.answering.is_terminal", lambda: True)
    result = ask("a.png", "nowhere.png", "What is it?", option)
    assert result.exit_code == 3
    assert plain in result.stdout and "a.png" in result.stdout and "answered without detection, ocr" in result.stdout
    assert "does not exist" in " ".join(result.output.replace("│", " ").split())  # panels wrap their lines


def test_show_saves_an_overlay_when_asked(workplace):
    result = ask("a.png", "b.png", "What is it?", "--show", "--scene", "scene.json", "--scene", "scene.json")
    assert result.exit_code == 0
    for index, name in enumerate(("a", "b")):
        path = workplace / f"{index + 1}_{name}_overlay.png"
        assert path.name in result.output
        overlay, image = Image.open(path), Image.open(workplace / f"{name}.png")
        assert overlay.size == image.size and overlay.tobytes() != image.convert("RGB").tobytes()


def test_overlay_goes_where_it_is_told_when_a_path_is_given(workplace):
    result = ask("a.png", "What is it?", "--overlay", "deep/down.png", "--json")
    assert json.loads(result.stdout)["overlay"] == "deep/down.png"
    assert Image.open("deep/down.png").size == (80, 60)


def test_overlay_never_replaces_its_image_when_named_alike(workplace):
    before = (workplace / "a.png").read_bytes()
    result = ask("a.png", "What is it?", "--overlay", "a.png")
    assert result.exit_code == 1 and "replace the input" in result.stderr
    assert (workplace / "a.png").read_bytes() == before


def test_ask_answers_the_others_when_one_image_is_bad(workplace):
    (workplace / "bad.png").write_text("words")
    result = ask("a.png", "bad.png", "b.png", "What is it?")
    assert result.exit_code == 3
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == ["a.png", "b.png"]
    assert "bad.png" in result.stderr
    rows = [json.loads(line) for line in ask("a.png", "bad.png", "What is it?", "--json").stdout.splitlines()]
    assert rows[0]["answer"] and rows[1]["answer"] is None and "bad.png" in rows[1]["error"]


@pytest.fixture
def unsure_of(workplace, folder, monkeypatch):
    """Lets the checkpoint that is asked doubt answers below a confidence."""

    def choose(threshold):
        shutil.copytree(folder, workplace / "doubting", dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text()) | {"confidence_threshold": threshold}
        (workplace / "doubting" / "config.json").write_text(json.dumps(config))
        monkeypatch.setenv("MOAI_MODEL", "doubting")

    return choose


def test_ask_notes_a_guess_when_its_confidence_is_below_the_checkpoints(workplace, unsure_of):
    unsure_of(1.0)
    (row,) = [json.loads(line) for line in ask("a.png", "What is it?", "--json").stdout.splitlines()]
    assert 0 < row["confidence"] < 1 and row["is_unsure"]
    told = ask("a.png", "What is it?")
    assert told.stderr.splitlines()[-1] == f"may be a guess: confidence {row['confidence']:.2f}"
    assert "may be" not in told.stdout and ask("a.png", "What is it?", "--quiet").stderr == ""
    each = [line for line in ask("a.png", "b.png", "What is it?").stderr.splitlines() if "guess" in line]
    assert [line.split(": may be a guess")[0] for line in each] == ["a.png", "b.png"]
    unsure_of(0.0)
    assert "guess" not in ask("a.png", "What is it?").stderr
    assert not json.loads(ask("a.png", "What is it?", "--json").stdout)["is_unsure"]


def test_question_file_counts_guesses_when_it_is_asked(workplace, unsure_of):
    unsure_of(1.0)
    write_lines(workplace / "q.jsonl", *ROWS)
    told = ask("--questions", "q.jsonl", "--out", "answers.jsonl")
    assert f"{len(ROWS)} of {len(ROWS)} answers may be guesses: is_unsure" in told.stderr and told.stdout == ""
    assert all(row["is_unsure"] and row["confidence"] < 1 for row in read_lines(workplace / "answers.jsonl"))
    assert "guesses" not in ask("--questions", "q.jsonl", "--out", "answers.jsonl").stderr  # nobody is asked
    write_lines(workplace / "q.jsonl", *ROWS, {"image": "nowhere.png", "question": "What?"})
    quiet = ask("--questions", "q.jsonl", "--out", "quiet.jsonl", "-q")
    assert [line.split(":")[0] for line in quiet.stderr.splitlines()] == ["skipped"]  # errors are told
    assert read_lines(workplace / "quiet.jsonl")[:-1] == read_lines(workplace / "answers.jsonl")


def test_bundled_checkpoint_knows_scenes_when_its_configuration_is_read(repo_root):
    config = json.loads((repo_root / "checkpoints" / "moai-nano" / "config.json").read_text())
    assert config["domain"] == SCENES_DOMAIN
    assert json.loads(run("info", "--json").stdout)["what they know"]["moai-nano"] == SCENES_DOMAIN


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.png"], 2, "then a question"),
        (["a.png", "b.png"], 2, "then a question"),
        (["a.png", ""], 1, "expected a question"),
        (["nowhere.png", "What?"], 1, "does not exist"),
        (["a.png", "What?", "--model", "nowhere"], 1, "bundled name"),
        (["a.png", "What?", "--verbalizers", "smell"], 1, "unknown verbalizer kind 'smell'"),
        (["a.png", "What?", "--scene", "nowhere.json"], 1, "nowhere.json"),
        (["a.png", "What?", "--scene", "a.png"], 1, "is no scene"),
        (["a.png", "What?", "--option", "routing=0.5,0.5"], 1, "three weights"),
        (["a.png", "What?", "--option", "routing=magic"], 1, "magic"),
        (["a.png", "What?", "--max-new-tokens", "3000"], 1, "below 2044, got 3000: the model reads 2048 tokens"),
        (["a.png", "b.png", "What?", "--scene", "scene.json"], 1, "one --scene per image"),
        (["a.png", "What?", "--questions", "q.jsonl"], 2, "got both"),
        (["--questions", "nowhere.jsonl"], 1, "nowhere.jsonl"),
    ],
)
def test_ask_prints_one_clear_message_when_used_wrongly(workplace, arguments, code, message):
    result = ask(*arguments)
    assert result.exit_code == code and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_debug_shows_the_traceback_when_asked(workplace):
    result = CliRunner().invoke(app, ["ask", "a.png", "What?", "--model", "nowhere", "--debug"])
    assert result.exit_code == 1 and "Traceback" in result.stderr and "error: " in result.stderr


# ---------------------------------------------------------------------- question files


def write_lines(path, *rows) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ROWS = [
    {"id": "one", "image": "a.png", "question": "What is it?"},
    {"id": "two", "image": "b.png", "question": "How many dogs are there?", "scene": "scene.json"},
    {"image": "a.png", "question": "Where is the cat?", "scene": build_scene(word="OPEN").to_dict()},
]


def test_question_file_equals_single_questions_when_run_as_a_batch(workplace):
    write_lines(workplace / "q.jsonl", *ROWS)
    result = ask("--questions", "q.jsonl", "--out", "answers.jsonl")
    assert result.exit_code == 0, result.output
    rows = read_lines(workplace / "answers.jsonl")
    assert [row["id"] for row in rows] == ["one", "two", 3]
    assert rows[0]["answer"] == ask("a.png", "What is it?").stdout.strip()
    assert "STOP" in rows[1]["auxiliary_text"] and "OPEN" in rows[2]["auxiliary_text"]
    assert "scene" not in rows[0]


def test_question_file_goes_to_stdout_when_no_out_is_named(workplace):
    write_lines(workplace / "q.jsonl", *ROWS)
    rows = [json.loads(line) for line in ask("--questions", "q.jsonl", "--json").stdout.splitlines()]
    assert [row["id"] for row in rows] == ["one", "two", 3] and rows[1]["scene"]["text_lines"]["texts"] == ["STOP"]


def test_question_file_names_file_and_line_when_lines_are_malformed(workplace):
    bad = ["{broken", "[1]", {"image": "a.png"}, {"id": "one", "image": "a.png", "question": "Again?"}]
    write_lines(workplace / "q.jsonl", ROWS[0], *bad, {"image": "nowhere.png", "question": "What?"}, ROWS[1])
    result = ask("--questions", "q.jsonl", "--out", "answers.jsonl", "--max-errors", "5")
    assert result.exit_code == 3
    for line in (2, 3, 4, 5, 6):
        assert f"q.jsonl:{line}: " in result.stderr
    rows = {row["id"]: row for row in read_lines(workplace / "answers.jsonl")}
    assert rows["one"]["answer"] and rows["two"]["answer"] and "nowhere.png" in rows[6]["error"]


def test_question_file_ends_when_errors_exceed_the_bound(workplace):
    write_lines(workplace / "q.jsonl", ROWS[0], "{broken", "{broken")
    result = ask("--questions", "q.jsonl", "--out", "answers.jsonl", "--max-errors", "1")
    assert result.exit_code == 1 and "--max-errors allows 1" in result.stderr
    assert not (workplace / "answers.jsonl").exists()


def test_question_file_continues_without_loss_when_killed_in_the_middle_of_a_line(workplace, monkeypatch):
    write_lines(workplace / "q.jsonl", *ROWS)
    ask("--questions", "q.jsonl", "--out", "whole.jsonl")
    whole = (workplace / "whole.jsonl").read_bytes()
    first_line = whole.index(b"\n") + 1
    (workplace / "answers.jsonl").write_bytes(whole[: first_line + 30])
    shutil.copy("whole.jsonl.settings.json", "answers.jsonl.settings.json")
    asked = []
    from moai.pipeline.pipeline import Pipeline

    original = Pipeline.answer_each
    monkeypatch.setattr(
        Pipeline,
        "answer_each",
        lambda self, images, questions, *a, **k: asked.extend(questions) or original(self, images, questions, *a, **k),
    )
    result = ask("--questions", "q.jsonl", "--out", "answers.jsonl")
    assert result.exit_code == 0 and "1 of 3 questions are answered" in result.stderr
    assert asked == [row["question"] for row in ROWS[1:]]
    assert (workplace / "answers.jsonl").read_bytes() == whole


def test_question_file_loads_no_model_when_everything_is_answered(workplace, monkeypatch):
    write_lines(workplace / "q.jsonl", *ROWS)
    ask("--questions", "q.jsonl", "--out", "answers.jsonl")
    monkeypatch.setattr("moai.cli.answer_settings.silence_libraries", lambda: pytest.fail("the model was loaded"))
    assert ask("--questions", "q.jsonl", "--out", "answers.jsonl").exit_code == 0


def test_answer_file_refuses_when_it_holds_something_else(workplace):
    write_lines(workplace / "q.jsonl", *ROWS)
    rows, _ = read_questions("q.jsonl")
    row = {"id": "one", "image": "a.png", "question": "Another?", "model": "m", "answer": "yes"}
    write_lines(workplace / "out.jsonl", row)
    (workplace / "out.jsonl.settings.json").write_text("{}")
    with (
        pytest.raises(ValueError, match="another question under the id 'one'"),
        AnswerFile("out.jsonl", "m", {}) as answers,
    ):
        answers.select_open(rows)
    for name, message in (
        ("out.jsonl", r"out\.jsonl:1: expected answers of the model 'n'"),
        ("notes.txt", r"notes\.txt:1: expected an answer"),
    ):
        write_lines(workplace / "notes.txt", "my notes", "more")
        with pytest.raises(ValueError, match=message), AnswerFile(name, "n", {}):
            pass
    assert (workplace / "notes.txt").read_text() == "my notes\nmore\n"
    with AnswerFile("notes.txt", "m", {}, is_overwriting=True):
        assert (workplace / "notes.txt").read_text() == ""


def test_answer_file_tries_failed_questions_again_when_continued(workplace):
    write_lines(workplace / "q.jsonl", ROWS[0], {"id": "late", "image": "late.png", "question": "What?"})
    assert ask("--questions", "q.jsonl", "--out", "o.jsonl").exit_code == 3
    draw_image(5).save("late.png")
    assert ask("--questions", "q.jsonl", "--out", "o.jsonl").exit_code == 0
    assert [(row["id"], bool(row["answer"])) for row in read_lines(workplace / "o.jsonl")] == [
        ("one", True),
        ("late", True),
    ]


# ---------------------------------------------------------------------- the other commands


def test_verbalize_reads_words_when_an_image_has_some(workplace, repo_root):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    truth = json.loads((repo_root / "examples" / "street.json").read_text())
    result = run("verbalize", repo_root / "examples" / "street.jpg", "--verbalizers", "ocr", "--json")
    row = json.loads(result.stdout)
    assert result.exit_code == 0
    assert row["scene"]["text_lines"]["texts"] == truth["text_lines"]["texts"]
    assert row["words"].startswith("The image includes text descriptions: ")
    (workplace / "found.json").write_text(result.stdout)
    again = ask(repo_root / "examples" / "street.jpg", "What?", "--scene", "found.json", "--json")
    assert json.loads(again.stdout)["scene"] == row["scene"]


def test_verbalize_says_who_did_not_look_when_nothing_runs(workplace):
    result = run("verbalize", "a.png", "--verbalizers", "none", "--kinds", "ocr,segmentation")
    assert result.exit_code == 0 and result.stdout.strip() == ""
    assert "nobody looked for ocr, segmentation" in result.stderr
    assert run("verbalize", "a.png", "--kinds", "smell").exit_code == 1


def test_convert_reports_the_reason_when_the_source_is_no_checkpoint(workplace):
    result = run("convert", "a.png", "out")
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and not (workplace / "out").exists()


def test_info_lists_backends_when_run():
    report = json.loads(run("info", "--json").stdout)
    assert "rapidocr" in report["verbalizers"]["ocr"] and report["libraries"]["torch"]
    assert set(report["optional packages"]) >= {"bitsandbytes", "peft"}
    assert "bundled checkpoints" in run("info").stdout


def test_version_is_the_distributions_when_printed():
    import moai

    assert run("--version").stdout.strip() == f"moai-vlm {moai.__version__}"


def test_module_runs_as_a_command_when_called_with_python(repo_root):
    command = [sys.executable, "-m", "moai", "ask", "nowhere.png"]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2 and re.match("error: expected one or more images", result.stderr)


def test_printable_text_cannot_steer_a_terminal_when_it_holds_escapes():
    assert printable("a\x1b[2Jb\u202ec\nd\te") == "a\ufffd[2Jb\ufffdc\nd\te"


def test_verbalizers_are_the_checkpoints_own_when_only_their_kind_is_named(workplace, repo_root):
    pytest.importorskip("scipy")
    image = repo_root / "examples" / "street.jpg"
    nano = VerbalizerSettings.load(repo_root / "checkpoints" / "moai-nano")
    (own,) = [entry for entry in nano.verbalizers if entry["kind"] == "detection"]
    (whole,) = build_named_verbalizers(["detection"], nano)
    assert whole.backend == "by_image" and whole.settings() == own["settings"]
    parts = [*own["settings"].values(), own["settings"]["photograph"]["detector"]]
    for part in parts:  # one of its two can be named, too, and one of theirs
        (built,) = build_named_verbalizers([f"detection/{part['backend']}"], nano)
        assert built.checkpoint == part["checkpoint"] and built.threshold == part.get("threshold", built.threshold)
    found = json.loads(run("verbalize", image, "--model", "moai-nano", "--verbalizers", "detection", "--json").stdout)
    assert found["scene"]["detections"]["class_names"] and found["scene"].get("text_lines") is None
    lacking = run("verbalize", "a.png", "--verbalizers", "detection")  # the small checkpoint names none
    assert lacking.exit_code == 1 and "detection/owlv2 needs the settings" in lacking.stderr


def test_verbalizer_brings_whose_findings_it_reads_when_it_is_named_alone(workplace, repo_root):
    pytest.importorskip("timm")
    nano = VerbalizerSettings.load(repo_root / "checkpoints" / "moai-nano")

    def kinds(*names):
        return [verbalizer.kind for verbalizer in build_named_verbalizers(names, nano)]

    assert kinds("scene_graph") == ["scene_graph", "detection", "segmentation"]
    assert kinds("scene_graph", "ocr") == ["scene_graph", "ocr", "detection", "segmentation"]
    assert kinds("segmentation", "scene_graph") == ["segmentation", "scene_graph"]  # who reads, and what, was chosen
    assert kinds("detection", "ocr") == ["detection", "ocr"]
    image = repo_root / "examples" / "street.jpg"
    found = json.loads(run("verbalize", image, "--model", "moai-nano", "--verbalizers", "scene_graph", "--json").stdout)
    assert "car (#1) is driving on road" in found["words"]


def test_verbalizer_of_the_checkpoint_is_named_when_its_files_are_gone(workplace):
    entries = [{"kind": "detection", "backend": "owlv2", "settings": {"checkpoint": "./gone", "vocabulary": "./v.txt"}}]
    (workplace / "model").mkdir()
    (workplace / "model" / "config.json").write_text("{}")
    (workplace / "model" / "verbalizers.json").write_text(json.dumps(entries))
    result = run("verbalize", "a.png", "--model", "model", "--verbalizers", "detection")
    assert result.exit_code == 1 and "detection/owlv2 cannot look" in result.stderr and "gone" in result.stderr


@pytest.mark.parametrize("model", [None, "moai-nano"])
def test_data_set_is_looked_at_by_the_checkpoints_verbalizers_when_none_are_named(workplace, monkeypatch, model):
    pytest.importorskip("pyarrow")
    monkeypatch.delenv("MOAI_MODEL")
    chosen = [] if model is None else ["--model", model]
    assert run("verbalize", "a.png", *chosen, "--out", "cache", "--workers", 0).exit_code == 0
    kinds = {entry["kind"] for entry in VerbalizationCache("cache").manifest["verbalizers"]}
    assert kinds == {verbalizer.kind for verbalizer in choose_verbalizers(None, None, None)[1]}
    assert {"segmentation", "detection", "scene_graph"} <= kinds
