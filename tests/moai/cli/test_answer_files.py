"""``moai ask --questions --out``: one file holds the answers of one setting, whoever writes, whatever breaks off."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_processes import ForkedProcess, run_module
from pipeline_builders import build_scene, draw_image, write_tiny_checkpoint
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.cli import app
from moai.cli.answer_settings import _hash_model
from moai.data.question_files import AnswerFile
from verbalizers.core.durable_files import append_to_file, hold_name

ROWS = [
    {"id": "one", "image": "a.png", "question": "What is it?"},
    {"id": "two", "image": "b.png", "question": "How many dogs are there?", "scene": "scene.json"},
    {"image": "a.png", "question": "Where is the cat?", "scene": build_scene(word="OPEN").to_dict()},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings = {"verbalizers": [], "kinds": ["detection", "ocr"]}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), settings)


@pytest.fixture
def workplace(tmp_path, monkeypatch, folder):
    """A folder with a checkpoint, two images, findings and three questions; commands run inside it."""
    enter(monkeypatch, tmp_path, folder)
    return tmp_path


def enter(monkeypatch, place, folder):
    monkeypatch.chdir(place)
    monkeypatch.setenv("MOAI_MODEL", "model")
    shutil.copytree(folder, place / "model")
    for seed, name in enumerate(("a.png", "b.png")):
        draw_image(seed).save(name)
    (place / "scene.json").write_text(json.dumps(build_scene().to_dict()))
    write_questions(*ROWS)


@pytest.fixture(scope="module")
def answered(tmp_path_factory, folder):
    """Such a folder whose questions are answered; to be copied."""
    place = tmp_path_factory.mktemp("answered")
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, place, folder)
        assert ask("--out", "o.jsonl").exit_code == 0
    return place


def write_questions(*rows) -> None:
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ask(*arguments):
    words = ["ask", "--questions", "q.jsonl", *(str(argument) for argument in arguments)]
    result = CliRunner().invoke(app, words if "--max-new-tokens" in words else [*words, "--max-new-tokens", "4"])
    assert "Traceback" not in result.output
    return result


def change_weights() -> None:
    tensors = load_file("model/model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})


def change_json(path, **values) -> None:
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | values))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, ["--max-new-tokens", "3"], "max_new_tokens was 4, now 3"),
        (None, ["--option", "routing=uniform"], 'options.routing was nothing, now "uniform"'),
        (None, ["--num-beams", 2], "num_beams was 1, now 2"),
        (None, ["--dtype", "bfloat16"], 'dtype was null, now "bfloat16"'),
        (None, ["--json"], "json was false, now true"),
        (None, ["--timeout", "5"], "timeout was 60.0, now 5.0"),
        (None, ["--verbalizers", "ocr"], "verbalizers.ocr was nothing, now"),
        (change_weights, [], "model.model.safetensors was"),
        (lambda: change_json("model/verbalizers.json", words={"text_threshold": 0.1}), [], "words.text_threshold was"),
        (lambda: draw_image(7).save("a.png"), [], "'one' about other content ('a.png'): image_hash was"),
        (
            lambda: change_json("scene.json", failures={"ocr": "x"}),
            [],
            "'two' about other content ('b.png'): scene_hash",
        ),
        (lambda: write_questions({**ROWS[0], "scene": "scene.json"}, *ROWS[1:]), [], "scene_hash was nothing, now"),
        (
            lambda: write_questions({**ROWS[0], "question": "Why?"}, *ROWS[1:]),
            [],
            "another question under the id 'one'",
        ),
        (lambda: write_questions(*ROWS[1:]), [], "questions that are not asked now, the first 'one'"),
        (lambda: os.remove("o.jsonl.settings.json"), [], "o.jsonl.settings.json beside it, which records"),
    ],
)
def test_answers_refuse_other_settings_when_continued(answered, tmp_path, monkeypatch, change, options, message):
    shutil.copytree(answered, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOAI_MODEL", "model")
    lines = Path("o.jsonl").read_text().splitlines(keepends=True)
    if change is not None:
        change()
    for kept in (lines, [lines[1]] if "'two'" in message else lines[:1]):
        Path("o.jsonl").write_text("".join(kept))
        result = ask("--out", "o.jsonl", *options)
        assert result.exit_code == 1 and message in result.stderr and "--overwrite" in result.stderr
        assert Path("o.jsonl").read_text() == "".join(kept)


def test_answers_begin_anew_when_overwriting_is_asked_for(workplace):
    assert ask("--out", "o.jsonl").exit_code == 0
    before = Path("o.jsonl").read_bytes()
    assert ask("--out", "o.jsonl", "--overwrite", "--max-new-tokens", "3").exit_code == 0
    assert Path("o.jsonl").read_bytes() != before
    assert ask("--out", "o.jsonl", "--max-new-tokens", "3").exit_code == 0
    assert "max_new_tokens was 3, now 4" in ask("--out", "o.jsonl").stderr


def test_answers_go_on_when_what_changed_decides_nothing(workplace):
    write_questions(*ROWS[:2])
    assert ask("--out", "o.jsonl").exit_code == 0
    before = Path("o.jsonl").read_text()
    write_questions(*ROWS)  # more questions
    draw_image(0).save("other.png")
    os.replace("other.png", "a.png")  # another file of the same content
    shutil.copytree("model", "elsewhere/model")
    os.remove("b.png")  # answered already
    result = ask("--out", "o.jsonl", "--batch-size", 1)
    assert result.exit_code == 0 and Path("o.jsonl").read_text().startswith(before)
    assert "2 of 3 questions are answered" in result.stderr


def test_answers_have_one_writer_when_two_begin(workplace):
    with hold_name(workplace / "o.jsonl"):
        result = ask("--out", "./o.jsonl")
    assert result.exit_code == 1 and f"process {os.getpid()} on" in result.stderr and "o.jsonl" in result.stderr
    assert not Path("o.jsonl").exists()
    assert ask("--out", "o.jsonl").exit_code == 0
    assert sorted(path.name for path in workplace.glob("*o.jsonl*")) == ["o.jsonl", "o.jsonl.settings.json"]


def test_question_file_is_answered_when_it_holds_half_a_pair(workplace):
    half = (
        '{"id": "\\ud83d", "image": "a.png", "question": "What is \\ud83d?"}\n{"image": "b.png", "question": "Who?"}\n'
    )
    Path("q.jsonl").write_text(half)
    for _ in range(2):  # a second run finds its own answers
        assert ask("--out", "o.jsonl").exit_code == 0
    rows = [json.loads(line) for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["question"] for row in rows] == ["What is \ufffd?", "Who?"] and rows[0]["id"] == "\ufffd"
    assert len(ask().stdout.splitlines()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
def test_image_is_read_when_its_name_is_no_utf8(workplace):
    name = os.fsdecode(b"caf\xe9.png")
    draw_image(3).save(name)
    write_questions({"image": name, "question": "What?"})
    for _ in range(2):
        assert ask("--out", "o.jsonl").exit_code == 0
    (row,) = [json.loads(line) for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row["image"] == "caf\ufffd.png" and row["answer"]
    for option in ((), ("--json",)):
        result = CliRunner().invoke(app, ["ask", name, "What \udce9?", "--max-new-tokens", "4", *option])
        assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["question"] == "What \ufffd?"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("/dev/full", "a device or a pipe"),
        ("fifo", "a device or a pipe"),
        ("model", "the folder"),
        ("/proc/answers.jsonl", "answers can be written to"),
        ("a.png/answers.jsonl", "answers can be written to"),
        ("q.jsonl", "than their input"),
        ("b.png", "than their input"),
        ("scene.json", "than their input"),
        ("link.png", "than their input"),
    ],
)
def test_out_is_refused_when_it_cannot_hold_answers(workplace, out, message):
    os.mkfifo("fifo")
    os.link("a.png", "link.png")
    before = {path: path.read_bytes() for path in workplace.glob("*.*")}
    for options in ((), ("--overwrite",)):
        result = ask("--out", out, *options)
        assert result.exit_code == 1 and message in result.stderr, result.stderr
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("/dev/full", "a regular file for --overlay"),
        ("fifo.png", "regular file"),
        ("a.gif", "expected one of .png"),
        ("b.png", "replace the input"),
        ("scene.json", "expected one of .png"),
        ("q.jsonl/x.png", "can be written to"),
    ],
)
def test_overlay_is_refused_when_it_cannot_be_saved(workplace, monkeypatch, overlay, message):
    os.mkfifo("fifo.png")
    # A method of a class, and no module's function: modules that are first imported meanwhile would keep it.
    monkeypatch.setattr(VerbalizerSettings, "load_pretrained", lambda *names: pytest.fail("something was loaded"))
    monkeypatch.setattr("moai.cli.answer_settings.find_checkpoint", lambda name: pytest.fail("something was loaded"))
    image = "b.png" if overlay == "b.png" else "a.png"
    for command in (["ask", image, "What?", "--scene", "scene.json"], ["verbalize", image]):
        result = CliRunner().invoke(app, [*command, "--overlay", overlay])
        assert result.exit_code == 1 and message in result.stderr, result.stderr


def test_full_disk_names_the_file_and_keeps_it_whole(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_bytes(b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        with pytest.raises(OSError, match=r"o\.jsonl"):
            append_to_file(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == b"first\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "What?", "--out", "o.jsonl"], "--out with --questions only"),
        (["a.png", "What?", "--overwrite"], "--overwrite with --questions only"),
        (["--questions", "q.jsonl", "--show"], '--show with IMAGE... "QUESTION" only'),
        (["--questions", "q.jsonl", "--scene", "scene.json"], '--scene with IMAGE... "QUESTION" only'),
    ],
)
def test_option_is_refused_when_it_would_do_nothing(workplace, arguments, message):
    result = CliRunner().invoke(app, ["ask", *arguments])
    assert result.exit_code == 2 and message in result.stderr


@pytest.mark.parametrize("arguments", [["nowhere.png", "What?"], ["a.png", "What?", "--model", "nowhere"]])
def test_wrong_paths_are_told_when_neither_torch_nor_transformers_is_loaded(workplace, arguments):
    code = (
        "import sys\nfrom moai.cli import app\n"
        f"try: app({['ask', *arguments]!r})\n"
        "except SystemExit as leaving: print(leaving.code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.strip() == "1 []" and "nowhere" in result.stderr


def test_missing_images_are_told_before_the_model_is_loaded_when_they_are_too_many(workplace, monkeypatch):
    write_questions(*ROWS, {"image": "nowhere.png", "question": "What?"})
    monkeypatch.setattr("moai.cli.answer_settings.silence_libraries", lambda: pytest.fail("the model was loaded"))
    result = ask("--out", "o.jsonl", "--max-errors", 0)
    assert result.exit_code == 1 and "q.jsonl:4: expected the path of an image" in result.stderr


@pytest.mark.parametrize("place", ["questions", "scene", "option"])
def test_input_is_refused_when_it_never_ends(workplace, place):
    Path("zero").symlink_to("/dev/zero")
    rows = [{"image": "a.png", "question": "What?"} | ({"scene": "zero"} if place == "scene" else {})]
    write_questions(*rows)
    words = {"questions": ["--questions", "zero"], "scene": ["--questions", "q.jsonl", "--max-errors", "0"]}
    words["option"] = ["a.png", "What?", "--scene", "zero"]
    result = CliRunner().invoke(app, ["ask", *words[place], *(["--out", "o.jsonl"] if place != "option" else [])])
    assert result.exit_code == 1 and "zero" in result.stderr and "device" in result.stderr


def test_answer_is_bound_to_the_base_when_the_model_is_an_adapter(workplace):
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "model"}))
    before = _hash_model("adapter")
    change_weights()
    names = {name for name, value in _hash_model("adapter").items() if before[name] != value}
    assert names == {"base model.safetensors"} and "adapter_config.json" in before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_answers_are_kept_and_continued_when_the_process_is_stopped(workplace, number, code):
    rows = [{"id": index, "image": "a.png", "question": f"What is {index}?"} for index in range(400)]
    write_questions(*rows)
    words = ["ask", "--questions", "q.jsonl", "--out", "o.jsonl", "--batch-size", "2", "--max-new-tokens", "4"]
    process = ForkedProcess(lambda: run_module("moai", *words), workplace)
    while not (Path("o.jsonl").exists() and Path("o.jsonl").stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    complaint, _ = process.communicate(timeout=60)
    assert process.returncode == code and "terminate" not in complaint and "Traceback" not in complaint
    content = Path("o.jsonl").read_bytes()
    ids = [json.loads(line)["id"] for line in content.splitlines()]
    assert content.endswith(b"\n") and ids == list(range(len(ids))) and len(ids) < 400
    write_questions(
        *({"id": index, "image": "a.png", "question": f"What is {index}?"} for index in range(len(ids) + 1))
    )
    assert ask("--out", "o.jsonl").exit_code == 0
    assert Path("o.jsonl").read_bytes().startswith(content)


@pytest.mark.slow
def test_command_ends_quietly_when_nobody_reads_or_stdout_is_ascii_or_full(workplace):
    words = ["ask", "--questions", "q.jsonl", "--batch-size", "1", "--max-new-tokens", "4"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-m", "moai", *words], **pipes)
    process.stdout.close()
    assert process.wait(timeout=120) == 1
    assert "Exception ignored" not in process.stderr.read()

    def ask_in_ascii() -> None:  # as with PYTHONIOENCODING=ascii
        sys.stdout.reconfigure(encoding="ascii")
        run_module("moai", "ask", "é.png", "Où?", "--json", "--max-new-tokens", "4")

    Path("é.png").write_bytes(Path("a.png").read_bytes())
    printed, _ = ForkedProcess(ask_in_ascii, workplace).communicate()
    (answer,) = [line for line in printed.splitlines() if line.startswith("{")]
    assert answer.isascii() and json.loads(answer)["image"] == "é.png"

    def ask_where_nothing_fits() -> None:
        sys.stdout = open("/dev/full", "w")
        run_module("moai", "ask", "a.png", "What?", "--max-new-tokens", "4")

    process = ForkedProcess(ask_where_nothing_fits, workplace)
    complaint, _ = process.communicate()
    assert process.returncode == 1 and "standard output" in complaint


def test_answer_file_repairs_its_end_when_a_line_is_half_written(workplace):
    assert ask("--out", "o.jsonl").exit_code == 0
    whole = Path("o.jsonl").read_bytes()
    for cut in (1, 30, len(whole.splitlines(keepends=True)[-1]) - 1):
        Path("o.jsonl").write_bytes(whole[:-cut])
        with AnswerFile("o.jsonl", "model", json.loads(Path("o.jsonl.settings.json").read_text())):
            content = Path("o.jsonl").read_bytes()
            assert whole.startswith(content) and content.endswith(b"\n")
            assert {json.loads(line)["id"] for line in content.splitlines()} >= {"one", "two"}


def test_process_ends_with_its_code_when_a_verbalizer_is_still_at_work():
    """Python aborts where native code still runs in a daemon thread; Ctrl-C leaves verbalizers in that state."""
    code = (
        "import threading, time, torch\nfrom moai.__main__ import _leave\n"
        "def work():\n    values = torch.randn(300, 300)\n    while True: values = (values @ values).softmax(-1)\n"
        "threading.Thread(target=work, name='verbalizer-ocr', daemon=True).start()\ntime.sleep(0.5)\n"
        "print('told')\n_leave(130)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "told\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_shown_on_the_error_terminal_only_when_there_is_one(is_terminal):
    code = (
        "from moai.cli.rendering import note, print_json, progress_bar\n"
        "with progress_bar('answering', 3) as show:\n    show(2, 'two done')\n    print_json({'a': 1})\n"
        "    note('told')"
    )
    master, terminal = os.openpty()
    words, stderr = [sys.executable, "-c", code], terminal if is_terminal else subprocess.PIPE
    environment = os.environ | {"TERM": "xterm"}
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=stderr, env=environment, timeout=120, check=False)
    os.close(terminal)
    shown = os.read(master, 65536) if is_terminal else result.stderr
    os.close(master)
    assert result.stdout == b'{"a": 1}\n' and b"told" in shown
    assert [text in shown for text in (b"answering", b"2/3", b"two done")] == [is_terminal] * 3
