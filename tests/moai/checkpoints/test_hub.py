"""From a name on the hub to an answer: fetched, converted, asked, pushed, and used offline afterwards.

The hub is tests/hub_server.py with small models under the published names. Clients are processes of their own, because
huggingface_hub reads its environment once, at import.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import time
from pathlib import Path

import pytest
from fresh_processes import FreshProcess
from hub_server import TOKEN, HubServer
from official_checkpoints import write_release
from pipeline_builders import draw_image
from verbalizer_builders import save_mask2former, save_owlv2

from moai.checkpoints.convert import PublishedVerbalizers, convert
from moai.checkpoints.io.lookup import is_hub_name
from moai.checkpoints.io.published_settings import PUBLISHED_DETECTOR, PUBLISHED_SEGMENTER

pytestmark = pytest.mark.slow

REPO_ROOT = Path(__file__).resolve().parents[3]
RELEASE = "BK-Lee/MoAI-7B"
PIECE = 1 << 16
COMMAND_LINE = "from moai.__main__ import main\nmain()"
#: The command line, downloading in pieces that fit small files; by default they are 10 MB.
IN_SMALL_PIECES = f"""
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = {PIECE}
from moai.cli import app
app()
"""
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Client:
    """Runs commands as a user of the hub would, with a cache and a working folder of its own."""

    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.folder, self.hub = folder, hub

    def start(self, script: str, *arguments: str, **environment: str) -> FreshProcess:
        """Start a script of Python with these arguments."""
        paths = [str(REPO_ROOT), str(REPO_ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        settings = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / "cache"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "HF_TOKEN": TOKEN,
            "CUDA_VISIBLE_DEVICES": "",
        }
        script = f"import sys\nsys.argv += {list(arguments)}\n{script}"
        return FreshProcess(script, self.folder, {**os.environ, **settings, **environment})

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run a script to its end: exit code, standard output, standard error."""
        return self.start(script, *arguments, **environment).communicate()

    def wait_for(self, name: str, file: Path) -> None:
        """Wait until a large file of a repository is whole in the cache."""
        blobs = self.folder / "cache" / "hub" / f"models--{name.replace('/', '--')}" / "blobs"
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        for _ in range(600):
            if blob.exists():
                return
            time.sleep(0.1)
        raise AssertionError(f"{file.name} did not arrive in {blobs}")

    def moai(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run the command line."""
        return self.run(COMMAND_LINE, *arguments, **environment)


def readme_commands() -> list[list[str]]:
    """The commands of the README's section on the published weights."""
    text = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## The published MoAI-7B\n(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)[1]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)[1]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines() if line.startswith("moai ")]


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eyes")
    for name, save in ((PUBLISHED_SEGMENTER, save_mask2former), (PUBLISHED_DETECTOR, save_owlv2)):
        (folder / name).mkdir(parents=True)
        save(folder / name)
    return folder


@pytest.fixture(scope="module")
def hub(release, eyes):
    with HubServer() as server:
        server.add(RELEASE, release)
        for name in (PUBLISHED_SEGMENTER, PUBLISHED_DETECTOR):
            server.add(name, eyes / name)
        yield server


@pytest.fixture(scope="module")
def client(tmp_path_factory, hub):
    client = Client(tmp_path_factory.mktemp("client"), hub)
    draw_image().save(client.folder / "image.jpg")
    return client


@pytest.fixture(scope="module")
def converted(client, hub, release):
    """The README's first command: killed in the middle, typed again, with a connection that breaks once."""
    convert_command, _ = readme_commands()
    is_reached = hub.hold(SHARDS[1])
    process = client.start(COMMAND_LINE, *convert_command)
    if not is_reached.wait(120):
        process.kill()
        pytest.fail(str(process.communicate()))
    client.wait_for(RELEASE, release / SHARDS[0])
    process.kill()
    process.communicate()
    hub.let_go(SHARDS[1])
    assert not (client.folder / convert_command[2]).exists()
    num_before = len(hub.requests)
    hub.cut(SHARDS[1])
    code, output, errors = client.run(IN_SMALL_PIECES, *convert_command, "--json")
    assert code == 0, errors
    return json.loads(output), client.folder / convert_command[2], hub.requests[num_before:], errors


def test_download_goes_on_when_it_was_killed_and_when_the_line_broke(converted, release):
    _, _, requests, errors = converted
    fetched = [(r.path.rsplit("/", 1)[-1], r.range) for r in requests if r.method == "GET" and "/resolve/" in r.path]
    half = (release / SHARDS[1]).stat().st_size // 2
    shards = [(file, range_) for file, range_ in fetched if file in SHARDS]
    begun, resumed = shards  # of the second: the first was whole before the kill
    assert begun == (SHARDS[1], None) and resumed[0] == SHARDS[1]
    # From what was written in whole pieces; a broken line may take the last received ones with it.
    start = int(re.fullmatch(r"bytes=(\d+)-", resumed[1])[1])
    assert 0 < start <= half and start % PIECE == 0
    assert "Fetching" in errors and "Trying to resume" in errors


def test_download_takes_only_what_is_needed_when_weights_are_there_twice(converted, hub):
    files = {request.path.split("/", 5)[-1] for request in hub.fetched(RELEASE)}
    assert files == {*SHARDS, "config.json", "model.safetensors.index.json", "tokenizer.model"}


def test_conversion_from_the_hub_equals_that_of_the_folder(converted, release, hub, tmp_path):
    report, folder, _, _ = converted
    convert(release, tmp_path / "ours")
    for name in ("model.safetensors", "config.json", "verbalizers.json", "processor_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    commit = hub.repositories[RELEASE].branches["main"]
    assert report["source"] == f"{RELEASE} at {commit}"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"base_model: {RELEASE}\n" in card and commit in card and "scene graph (PSGTR) is absent" in card
    assert not any("is not here yet" in note for note in report["notes"])


def test_pipeline_answers_from_the_cache_when_the_hub_is_gone(converted, client, hub):
    pytest.importorskip("bitsandbytes")
    num_before = len(hub.requests)
    _, ask_command = readme_commands()
    options = ("--json", "--max-new-tokens", "5")
    code, output, errors = client.moai(*ask_command, *options, HF_HUB_OFFLINE="1")
    assert code == 0, errors
    row = json.loads(output)
    assert row["answer"] and set(row["missing"]) <= {"scene_graph", "ocr"}  # no weights; an optional package
    assert row["scene"]["segments"] is not None and row["scene"]["detections"] is not None
    code, output, errors = client.moai("convert", RELEASE, "again", HF_HUB_OFFLINE="1")
    assert code == 0 and "tensors read, all consumed" in output, errors
    assert hub.requests[num_before:] == []


def test_convert_says_what_to_do_when_the_hub_does_not_give_it(client, hub, release):
    hub.add("someone/gated", release, is_gated=True)
    hub.add("someone/empty", release / "figures")
    script = """
import sys
from typer.testing import CliRunner
from huggingface_hub import constants
from moai.cli import app

def convert(*arguments):
    result = CliRunner().invoke(app, ["convert", *arguments])
    print(result.exit_code, result.stderr.strip().splitlines()[-1])

convert("someone/nothing", "out")
convert("someone/gated", "out")
convert("BK-Lee/MoAI-7B", "out", "--revision", "of-tomorrow")
convert("someone/empty", "out")
convert("image.jpg", "out", "--revision", "main")
constants.ENDPOINT = "http://127.0.0.1:9"
convert("someone/else", "out")
constants.HF_HUB_OFFLINE = True
convert("someone/else", "out")
"""
    code, output, errors = client.run(script)
    assert code == 0, errors
    expected = (
        "1 error: expected a repository on the hub, got someone/nothing, which is not there or is private. Check the",
        "1 error: expected access to someone/gated, got a gated repository. Accept its terms on the hub, then log in",
        "1 error: expected a branch, tag or commit of BK-Lee/MoAI-7B, got 'of-tomorrow'. Leave it out for the main",
        "1 error: expected weights (*.safetensors, *.bin or *.pt) in someone/empty, got none. Check the name.",
        "1 error: expected a hub name with a revision, got the path 'image.jpg'. Leave the revision out.",
        "1 error: expected someone/else, got no answer from http://127.0.0.1:9 and not all of it in the local cache.",
        "1 error: expected someone/else in the local cache, got HF_HUB_OFFLINE=1 and not all of it there. Unset",
    )
    lines = output.splitlines()
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)
    assert not (client.folder / "out").exists()


def test_auto_classes_and_pipeline_load_by_name_when_pushed(client, hub, release, eyes, tmp_path):
    choice = PublishedVerbalizers(eyes / PUBLISHED_SEGMENTER, vocabulary=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("cat\ndog\n", encoding="utf-8")
    folder = tmp_path / "whole"
    convert(release, folder, verbalizers=choice)
    script = f"""
import json, sys
import torch
import moai
from huggingface_hub import HfApi
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = {str(folder)!r}
local = AutoModelForImageTextToText.from_pretrained(folder)
local.push_to_hub("me/parts")
AutoProcessor.from_pretrained(folder).push_to_hub("me/parts")
HfApi().create_repo("me/whole")
HfApi().upload_folder(repo_id="me/whole", folder_path=folder)

model = AutoModelForImageTextToText.from_pretrained("me/parts")
processor = AutoProcessor.from_pretrained("me/parts")
inputs = processor(images="image.jpg", questions="What is it?")
with torch.no_grad():
    same = torch.equal(model(**inputs).logits, local(**inputs).logits)
pipeline = moai.Pipeline.from_pretrained("me/whole", revision="main")
output = pipeline("image.jpg", "What is it?", max_new_tokens=5)
print(json.dumps({{
    "same": same,
    "answer": output.answer,
    "equal_answer": moai.Pipeline.from_pretrained(folder)("image.jpg", "What is it?", max_new_tokens=5).answer,
    "checkpoints": {{v.kind: getattr(v, "checkpoint", None) for v in pipeline.verbalizers}},
    "vocabulary": [v.vocabulary for v in pipeline.verbalizers if v.kind == "detection"],
    "missing": output.missing,
}}))
"""
    code, output, errors = client.run(script)
    assert code == 0, errors
    told = json.loads(output.splitlines()[-1])
    assert told["same"] and told["answer"] == told["equal_answer"] != ""
    segmenter = Path(told["checkpoints"]["segmentation"])
    assert segmenter.parts[-2:] == ("verbalizers", "segmentation") and segmenter.is_relative_to(client.folder)
    assert told["checkpoints"]["detection"] == PUBLISHED_DETECTOR and told["vocabulary"] == [["cat", "dog"]]
    assert set(told["missing"]) <= {"scene_graph", "ocr"}
    pushed = hub.files("me/whole")
    assert pushed["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert {"config.json", "model.safetensors", "tokenizer.model", "README.md"} <= set(hub.files("me/parts"))


def test_a_folder_wins_when_it_has_the_name_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(RELEASE)
    write_release(tmp_path / RELEASE)
    assert not is_hub_name(RELEASE)
    assert convert(RELEASE, "ours").source == Path(RELEASE)
