"""``moai verbalize DATASET --out DIR``: what the command takes, prints, and leaves on disk."""

import json
import shutil

import pytest

pytest.importorskip("pyarrow")

import cache_verbalizers  # noqa: F401 - registers segmentation/two_halves and others
from pipeline_builders import draw_image
from typer.testing import CliRunner

from moai.cli import app
from moai.cli.dataset import selects_dataset
from verbalizers import VerbalizationCache

FAKES = ("--verbalizers", "segmentation/two_halves,detection/mean_colour", "--workers", 0)


def run(*arguments):
    result = CliRunner().invoke(app, ["verbalize", *(str(argument) for argument in arguments)])
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of two images and a damaged one, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        draw_image(seed).save(tmp_path / "images" / name)
    (tmp_path / "images" / "damaged.jpg").write_bytes(b"no image at all")
    return tmp_path / "images"


def test_folder_becomes_a_cache_when_out_is_given(images):
    result = run("images", "--out", "cache", *FAKES)
    cache = VerbalizationCache("cache")
    assert result.exit_code == 3 and result.stdout.strip() == str(cache.folder)
    assert "3 images: 2 verbalized, 1 unreadable" in result.stderr and "errors.jsonl" in result.stderr
    assert [entry.path for entry in cache] == ["a.png", "b.png"]
    (error,) = cache.errors()
    assert error["path"] == "damaged.jpg" and "expected an image" in error["reason"]


def test_heic_files_are_counted_and_listed_when_nothing_reads_them(images, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("moai.import_utils._is_package_available", lambda name: True)
    for name in ("c.heic", "d.HEIF", "e.hif"):
        (images / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + name.encode())
    result = run("images", "--out", "cache", *FAKES)
    assert "6 images: 2 verbalized, 4 unreadable" in result.stderr
    reasons = {row["path"]: row["reason"] for row in VerbalizationCache("cache").errors()}
    assert all("pip install pillow-heif" in reasons[name] for name in ("c.heic", "d.HEIF", "e.hif"))


def test_report_is_json_and_nothing_is_done_twice_when_run_again(images):
    (images / "damaged.jpg").unlink()
    assert run("images", "--out", "cache", *FAKES, "--json").exit_code == 0
    result = run("images", "--out", "cache", *FAKES, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and report["fingerprint"] == VerbalizationCache("cache").fingerprint
    assert (report["num_known"], report["num_verbalized"], report["num_errors"]) == (2, 0, 0)


def test_json_forms_and_images_share_one_cache_when_they_name_the_same_images(images):
    (images / "list.jsonl").write_text('{"image": "a.png"}\n{"image": "b.png", "id": "second"}\n')
    shutil.copy(images / "a.png", "elsewhere.png")
    (images.parent / "mix.json").write_text('[{"id": "x", "image": "b.png", "conversations": []}]')
    assert run(images / "list.jsonl", "--out", "cache", *FAKES).exit_code == 0
    assert run("mix.json", "--image-folder", "images", "--out", "cache", *FAKES).exit_code == 0
    assert run("elsewhere.png", images / "b.png", "--out", "cache", *FAKES).exit_code == 0
    cache = VerbalizationCache("cache")
    assert len(cache) == 2 and cache["second"] == cache["x"] == cache["b.png"] and cache["elsewhere.png"].id == "a.png"


def test_command_says_what_is_missing_when_it_cannot_begin(images):
    (images.parent / "empty").mkdir()
    for arguments, message in (
        (["images"], "expected --out DIR"),
        (["images", "--out", "cache", "--verbalizers", "none"], "expected at least one verbalizer"),
        (["empty", "--out", "cache", *FAKES], "expected images in empty, got none"),
        (["images", "--out", "cache", *FAKES, "--engine", "abacus"], "must be one of ('local', 'ray')"),
        (["images", "--out", "cache", *FAKES, "--show"], "--show and --overlay with images only"),
        (["absent.jsonl", "--out", "cache", *FAKES], "does not exist"),
        (["images", "--out", images / "a.png", *FAKES], "got the file"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1 and message in result.stderr, result.stderr


@pytest.mark.parametrize(("package", "extra"), [("ray", "cluster"), ("pyarrow", "train")])
def test_package_is_named_when_it_is_missing(images, monkeypatch, package, extra):
    from moai import import_utils

    monkeypatch.setattr(import_utils, "_is_package_available", lambda name: name != package)
    result = run("images", "--out", "cache", *FAKES, "--engine", "ray")
    assert result.exit_code == 1 and f'pip install "moai-vlm[{extra}]"' in result.stderr


def test_images_are_still_told_at_once_when_no_data_set_is_named(images):
    assert not selects_dataset(["images/a.png", "absent.png"], None)
    result = run("images/a.png", "--verbalizers", "segmentation/two_halves")
    assert result.exit_code == 0 and "left" in result.stdout and not list(images.parent.glob("*/*.parquet"))


@pytest.mark.slow
def test_worker_process_reads_text_as_the_image_command_does(images, repo_root):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    shutil.copy(repo_root / "examples" / "street.jpg", images)
    assert run("images", "--out", "cache", "--verbalizers", "ocr", "--workers", 1).exit_code == 3
    entry = VerbalizationCache("cache")["street.jpg"]
    fresh = json.loads(run("images/street.jpg", "--verbalizers", "ocr", "--json").stdout)
    assert entry.scene.text_lines.texts and entry.scene.to_dict() == fresh["scene"] and entry.text == fresh["words"]
