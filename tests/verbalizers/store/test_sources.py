"""Data sets of images: every form lists the same images, and a bad entry is named."""

import json
import os

import pytest
from PIL import Image

from verbalizers.store.sources import BadSource, Source, is_dataset, read_sources


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "deeper").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("b.PNG", "a.jpg", "deeper/c.webp", ".hidden/d.png", "._a.jpg"):
        Image.new("RGB", (4, 3)).save(root / name, format="PNG")
    (root / "readme.txt").write_text("text")
    return root


def test_folder_lists_its_images_in_order_when_read(folder):
    sources = read_sources(folder)
    assert [source.path for source in sources] == ["a.jpg", "b.PNG", "deeper/c.webp"]
    assert {source.dataset for source in sources} == {"images"} and all(s.id == s.path for s in sources)
    assert sources[2].read() == (folder / "deeper/c.webp").read_bytes()
    assert Source(**json.loads(json.dumps(sources[2].to_dict()))) == sources[2]


def test_jsonl_names_images_and_bad_lines_when_read(folder):
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


def test_llava_json_lists_images_below_the_image_folder_when_read(folder, tmp_path):
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
    (tmp_path / "empty.json").write_text("\n")
    (tmp_path / "two.json").write_text("[]\n[]")
    for name in ("wide.json", "wide.jsonl"):
        (tmp_path / name).write_text("[]", encoding="utf-16")
    for name, message in (
        ("object.json", "got something else. One object per line belongs in a .jsonl"),
        ("broken.json", "expected a JSON list"),
        ("absent", "does not exist"),
        ("empty.json", "got an empty file"),
        ("two.json", r"two\.json.*behind the list: line 2 column 1 \(char 3\)"),
        ("wide.jsonl", "UTF-16"),
        ("wide.json", "UTF-8"),
    ):
        with pytest.raises(ValueError, match=message):
            read_sources(tmp_path / name)


def test_is_dataset_tells_data_sets_from_images(folder):
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


def test_folder_keeps_an_image_when_its_name_is_no_unicode(folder):
    try:
        (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "a.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (source,) = [source for source in read_sources(folder) if source.location.startswith(str(folder / "\udcff"))]
    assert source.path == "\\udcff.png" and source.read() == (folder / "a.jpg").read_bytes()


def test_datasets_folder_lists_its_images_when_read(folder, tmp_path):
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


@pytest.mark.parametrize("name", ["list.jsonl", "list.json"])
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ('{"image": "a.jpg"} {"image": "b.PNG"}', "Extra data"),
        ('{"image": "a.jpg", "score": NaN}', "NaN is no JSON"),
        ('{"image": "a.jpg", "score": -Infinity}', "-Infinity is no JSON"),
        ('{"image": "a.jpg", "image": "b.PNG"}', "the key 'image' stands twice"),
        ('{"image": "a.jpg", "images": ["b.PNG"]}', "got both"),
        ('{"img": "a.jpg", "messages": []}', "got 'a.jpg' under 'img'"),
        ('{"image_path": "a", "conversations": []}', "under 'image_path'"),
        ('{"pictures": ["a"]}', "under 'pictures'"),
        ('{"image_1": "a"}', "under 'image_1'"),
        ('{"file_name": "a.jpg", "messages": []}', "under 'file_name'"),
        ('{"photo": {"bytes": "...", "path": null}}', "under 'photo'"),
        ('{"image_base64": "/9j/4AAQSkZJRg=="}', "under 'image_base64'"),
        ('{"image": "data:image/jpeg;base64,/9j/4AAQSkZJRg=="}', "the path of an image, got 'data:image/jpeg"),
        ('{"image": "' + "/9j/4AAQ" * 600 + '"}', "the path of an image, got '/9j/4AAQ"),
        ("{", "Expecting property name"),
    ],
)
def test_entry_is_named_when_a_part_of_it_would_be_dropped(folder, name, entry, reason):
    """Whoever reads the rest of such a row trains or verbalizes something else than what it says."""
    texts = ['{"image": "a.jpg"}', entry]
    (folder / name).write_text("[" + ",".join(texts) + "]" if name == "list.json" else "\n".join(texts))
    if name == "list.json" and reason in ("Extra data", "Expecting property name"):
        with pytest.raises(ValueError, match=r"list\.json.*line 1 column"):  # where the next element begins is unknown
            read_sources(folder / name)
        return
    good, bad = read_sources(folder / name)
    assert good.path == "a.jpg" and reason in bad.reason
    assert bad.path == {"list.jsonl": "list.jsonl:2", "list.json": "list.json[1]"}[name]


def test_rows_of_text_alone_are_left_out_when_they_mention_images(folder):
    rows = [{"image_id": "17", "image_size": [3, 4], "image": None, "img": "", "messages": []}, {"image": "a.jpg"}]
    (folder / "list.json").write_text(json.dumps(rows))
    assert [source.path for source in read_sources(folder / "list.json")] == ["a.jpg"]


def test_table_lists_its_images_when_its_writer_knew_no_image_type(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": (folder / "a.jpg").read_bytes(), "path": None}]
    datasets.Dataset.from_dict({"img": cells, "imgs": [cells * 2]}).to_parquet(tmp_path / "plain.parquet")
    (source,) = read_sources(tmp_path / "plain.parquet", column="img")
    assert source.read() == cells[0]["bytes"]
    assert [source.read() for source in read_sources(tmp_path / "plain.parquet", column="imgs")] == 2 * [
        cells[0]["bytes"]
    ]
    with pytest.raises(ValueError, match=r"one column of images .* got \['img', 'imgs'\]"):
        read_sources(tmp_path / "plain.parquet")
