"""Data sets of pictures: every form lists the same pictures, and a bad entry is named."""

import json
import os

import pytest
from PIL import Image

from verbalizers.store.sources import BadSource, Source, is_dataset, read_sources


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "deeper").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("b.PNG", "a.jpg", "deeper/c.webp", ".hidden/d.png", "._a.jpg"):
        Image.new("RGB", (4, 3)).save(root / name, format="PNG")
    (root / "readme.txt").write_text("text")
    return root


def test_folder_lists_its_pictures_in_order_when_read(folder):
    sources = read_sources(folder)
    assert [source.path for source in sources] == ["a.jpg", "b.PNG", "deeper/c.webp"]
    assert {source.dataset for source in sources} == {"photos"} and all(s.id == s.path for s in sources)
    assert sources[2].read() == (folder / "deeper/c.webp").read_bytes()
    assert Source(**json.loads(json.dumps(sources[2].to_dict()))) == sources[2]


def test_jsonl_names_pictures_and_bad_lines_when_read(folder):
    lines = [
        json.dumps({"image": "a.jpg", "id": 7, "question": "?"}),
        "",
        "{broken",
        json.dumps({"image": ["b.PNG", "deeper/c.webp"]}),
        json.dumps({"picture": "a.jpg"}),
        json.dumps(["a.jpg"]),
        json.dumps({"image": ""}),
    ]
    (folder / "list.jsonl").write_text("\n".join(lines))
    sources = read_sources(folder / "list.jsonl")
    good = [source for source in sources if isinstance(source, Source)]
    assert [(source.id, source.path) for source in good] == [
        ("7", "a.jpg"),
        ("b.PNG", "b.PNG"),
        ("deeper/c.webp", "deeper/c.webp"),
    ]
    assert all(source.read() for source in good)
    bad = [source.path for source in sources if isinstance(source, BadSource)]
    assert bad == ["list.jsonl:3", "list.jsonl:5", "list.jsonl:6", "list.jsonl:7"]


def test_llava_json_lists_pictures_below_the_image_folder_when_read(folder, tmp_path):
    entries = [
        {"id": "000", "image": "deeper/c.webp", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]},
        {"id": "001", "conversations": [{"from": "human", "value": "no picture"}]},
        "nonsense",
    ]
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    sources = read_sources(tmp_path / "mix.json", image_folder=folder)
    assert [(s.id, s.path) for s in sources] == [("000", "deeper/c.webp"), ("mix.json[2]", "mix.json[2]")]
    assert sources[0].read() == (folder / "deeper/c.webp").read_bytes() and isinstance(sources[1], BadSource)


def test_data_set_is_refused_when_it_is_none(tmp_path):
    (tmp_path / "object.json").write_text('{"image": "a.png"}')
    (tmp_path / "broken.json").write_text("[")
    for name, message in (
        ("object.json", "got something else. One object per line belongs in a .jsonl"),
        ("broken.json", "expected a JSON list"),
        ("absent", "does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            read_sources(tmp_path / name)


def test_is_dataset_tells_data_sets_from_pictures(folder):
    assert is_dataset(folder) and is_dataset("list.JSONL") and is_dataset("mix.json")
    assert not is_dataset(folder / "a.jpg") and not is_dataset("absent.png")


def test_source_says_why_when_it_cannot_be_read(folder):
    def read(image):
        (folder / "list.jsonl").write_text(json.dumps({"image": image}))
        (source,) = read_sources(folder / "list.jsonl")
        return source.read(max_bytes=10_000)

    (folder / "large.png").write_bytes(bytes(10_001))
    for image, message in (
        ("absent.png", "No such file"),
        ("deeper", "no regular file"),
        ("large.png", "at most 10000 bytes, got 10001"),
        ("https://example.org/a.png", "got the address"),
        ("\ud800.png", "surrogates not allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            read(image)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_source_does_not_wait_when_the_file_is_a_pipe(folder):
    os.mkfifo(folder / "pipe.png")
    (source,) = [source for source in read_sources(folder) if source.path == "pipe.png"]
    with pytest.raises(ValueError, match="no regular file"):
        source.read()


def test_folder_keeps_a_picture_when_its_name_is_no_unicode(folder):
    try:
        (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "a.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (source,) = [source for source in read_sources(folder) if source.location.startswith(str(folder / "\udcff"))]
    assert source.path == "\\udcff.png" and source.read() == (folder / "a.jpg").read_bytes()


def test_datasets_folder_lists_its_pictures_when_read(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = [str(folder / "a.jpg"), str(folder / "deeper/c.webp")]
    features = datasets.Features({"picture": datasets.Image(), "question": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"picture": paths, "question": ["?", "!"]}, features=features)
    rows.save_to_disk(tmp_path / "flat")
    datasets.DatasetDict({"train": rows, "test": rows.add_column("id", ["x", "y"])}).save_to_disk(tmp_path / "split")
    flat = read_sources(tmp_path / "flat")
    assert [(s.id, s.path, s.column) for s in flat] == [("0", "", "picture"), ("1", "", "picture")]
    assert flat[1].read() == (folder / "deeper/c.webp").read_bytes()
    split = read_sources(tmp_path / "split")
    assert [s.id for s in split] == ["train/0", "train/1", "x", "y"] and split[3].read() == flat[1].read()
    with pytest.raises(ValueError, match=r"one column of images .* got \['picture'\] but not 'question'"):
        read_sources(tmp_path / "flat", column="question")
