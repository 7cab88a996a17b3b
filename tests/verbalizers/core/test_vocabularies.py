import sys
from pathlib import Path

import pytest

from verbalizers.core.vocabularies import (
    COCO_PANOPTIC_NAMES,
    available_vocabularies,
    load_vocabulary,
    read_vocabulary,
)
from verbalizers.core.vocabulary_matching import means_the_same, without_names

# How many classes each data set has; names that occur twice count once (LVIS has two kinds of bow, for example).
NUM_CLASSES = {"lvis": 1203, "objects365": 365, "open_images": 601, "ade20k": 150, "imagenet": 1000}
SHARED_NAMES = {"lvis": 5, "imagenet": 2}


@pytest.mark.parametrize("name", list(NUM_CLASSES))
def test_published_vocabulary_is_whole_when_its_package_is_installed(name):
    if name not in available_vocabularies():
        pytest.skip(f"the package that carries {name} is not installed")
    names = load_vocabulary(name)
    assert len(names) == len(set(names)) == NUM_CLASSES[name] - SHARED_NAMES.get(name, 0)
    assert not any("/" in entry or entry != entry.strip() for entry in names)


def test_load_vocabulary_leaves_out_what_the_segmenter_knows_when_told():
    if "lvis" not in available_vocabularies():
        pytest.skip("ultralytics is not installed")
    left = load_vocabulary("lvis", covered_by="coco_panoptic")
    assert {"sofa", "wineglass", "television set", "person"}.isdisjoint(left)
    assert {"teapot", "armchair", "newspaper"} <= set(left)
    assert left == load_vocabulary(left, covered_by="coco_panoptic")


def test_load_vocabulary_joins_lists_when_given_a_plus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("\ufeff# my things\ngnome\n\n  garden hose \nperson\n", encoding="utf-8")
    names = load_vocabulary("coco_panoptic+mine.txt")
    assert names == (*COCO_PANOPTIC_NAMES, "gnome", "garden hose")
    assert load_vocabulary("mine.txt", covered_by="coco_panoptic") == ("gnome", "garden hose")
    Path("a+b.txt").write_text("cat", encoding="utf-8")
    assert load_vocabulary("a+b.txt") == load_vocabulary(Path("a+b.txt")) == ("cat",)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Traffic Lights", "traffic light"), ("hotdog", "hot dog"), ("sky", "sky-other-merged"), ("buses", "bus"),
        ("horses", "horse"), ("people", "person"), ("knives", "knife"), ("shelves", "shelf"), ("sofa", "couch"),
        ("skis", "ski"), ("glasses", "glass"), ("puppies", "puppy"), ("hair_dryer", "hair drier"), ("ties", "tie"),
        ("mirror (large)", "mirror-stuff"), ("cellular telephone", "cell phones"), ("potatoes", "potato"),
    ],
)  # fmt: skip
def test_names_mean_the_same_when_they_differ_in_form(first, second):
    assert means_the_same(first, second) and means_the_same(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("armchair", "chair"), ("house", "mouse"), ("bus stop", "bus"), ("newspaper", "paper"), ("grass", "glass"),
        ("street light", "traffic light"), ("wood plane", "airplane"), ("car", "card"), ("bear", "teddy bear"),
        ("!", "?"),
    ],
)  # fmt: skip
def test_names_differ_when_they_say_different_things(first, second):
    assert not means_the_same(first, second)


def test_without_names_keeps_order_when_names_repeat():
    assert without_names(("fox", "cats", "fox", "elk"), ("cat",)) == ("fox", "elk")
    assert without_names(("fox", "fox"), ()) == ("fox",)


def test_read_vocabulary_says_what_it_expects_when_the_file_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="one of .*lvis"):
        load_vocabulary("lviss")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(ValueError, match="no names"):
        read_vocabulary(tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_vocabulary(tmp_path / "bytes.txt")
    for wrong in ((), ("cat", ""), ("cat", 3)):
        with pytest.raises(ValueError, match="must hold names"):
            load_vocabulary(wrong)
    with pytest.raises(ValueError, match="covered_by"):
        load_vocabulary(("cat", "dogs"), covered_by=("cats", "dog"))


def test_load_vocabulary_names_the_extra_when_the_package_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(ImportError, match=r"moai-vlm\[segmentation\]"):
        load_vocabulary("imagenet")
