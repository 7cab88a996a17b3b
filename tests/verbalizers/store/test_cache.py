"""Cached verbalizations: what goes in comes out, once, under its own fingerprint."""

import json
import multiprocessing

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from cache_verbalizers import BAD_COLOR, MeanColour, PixelValues, TwoHalves, Unsayable, load_small
from PIL import Image

from verbalizers import WordSettings, build_verbalizer, parse_scene, verbalize_scene
from verbalizers.core import verbalizer as verbalizer_module
from verbalizers.store import building, work
from verbalizers.store import cache as cache_module
from verbalizers.store.building import build_cache
from verbalizers.store.cache import VerbalizationCache
from verbalizers.store.recipe import Recipe, is_made_by
from verbalizers.store.rows import hash_content, pack_scene, unpack_scene
from verbalizers.store.sources import Source, read_sources


def draw(path, color, height=6, width=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), color).save(path)
    return path


def build(folder, out, verbalizers=None, **options):
    options = {"num_workers": 0, "load": load_small, **options}
    return build_cache(read_sources(folder), verbalizers or [TwoHalves(), MeanColour()], out, **options)


@pytest.fixture
def images(tmp_path):
    """Five files: four good ones, of which two are the same image, and a damaged one."""
    folder = tmp_path / "images"
    for index, name in enumerate(("a.png", "b.png", "deeper/c.png")):
        draw(folder / name, (200, 10 * index, 0), height=6 + index)
    (folder / "copy_of_a.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "damaged.png").write_bytes((folder / "b.png").read_bytes()[:40])
    (folder / "notes.txt").write_text("no image")
    return folder


# ---------------------------------------------------------------------- packing


def test_scene_is_the_same_when_packed_and_unpacked():
    image = np.full((6, 8, 3), 90, np.uint8)
    scene = parse_scene([image], [TwoHalves(ids=(3, 900)), MeanColour()])[0]
    text, panoptic_png = pack_scene(scene)
    assert unpack_scene(text, panoptic_png) == scene and "run_lengths" not in text
    with pytest.raises(ValueError, match="the panoptic map is missing"):
        unpack_scene(text, None)
    for size in ([8, 6], [100_000, 100_000], [6, 8, 1], "68"):
        with pytest.raises(ValueError, match="expected a scene"):
            unpack_scene(text.replace('[6, 8]}, "segment_ids', f'{json.dumps(size)}}}, "segment_ids'), panoptic_png)


# ---------------------------------------------------------------------- writing and reading


def test_cache_gives_what_fresh_verbalizing_gives_when_read_back(images, tmp_path):
    report = build(images, tmp_path / "cache")
    assert (report.num_sources, report.num_done) == (5, 5)
    assert (report.num_verbalized, report.num_repeated, report.num_errors, report.num_known) == (3, 1, 1, 0)
    cache = VerbalizationCache(tmp_path / "cache")
    assert len(cache) == 3 and cache.folder == report.folder
    for name in ("a.png", "b.png", "deeper/c.png", "copy_of_a.png"):
        data = (images / name).read_bytes()
        fresh = parse_scene([load_small(data)], [TwoHalves(), MeanColour()])[0]
        by_bytes = cache.get(data)
        assert by_bytes.scene == fresh and by_bytes.text == verbalize_scene(fresh) != ""
        assert by_bytes.image_size_hw == fresh.image_size_hw and by_bytes.fingerprint == cache.fingerprint
        assert cache.get(name) == cache.get(images / name) == cache[hash_content(data)] == by_bytes
    assert cache["copy_of_a.png"].path == "a.png"
    assert {row["path"] for row in cache.sources()} == {"a.png", "b.png", "copy_of_a.png", "deeper/c.png"}
    assert [entry.path for entry in cache] == ["a.png", "b.png", "deeper/c.png"]


def test_cache_gives_label_maps_bit_by_bit_when_read_back(images, tmp_path):
    looking = [PixelValues(), MeanColour()]
    build(images, tmp_path / "cache", looking)
    build(images, tmp_path / "other", looking, num_workers=2)
    for folder in ("cache", "other"):
        cache = VerbalizationCache(tmp_path / folder)
        for name in ("a.png", "deeper/c.png"):
            fresh = parse_scene([load_small((images / name).read_bytes())], looking)[0]
            assert cache[name].scene == fresh and not fresh.failures
            found = cache[name].scene.findings["pixels"]
            assert found.values.dtype == np.float32 and found.values.shape == (*fresh.image_size_hw, 3)


def test_cache_says_no_when_the_image_is_not_in_it(images, tmp_path):
    build(images, tmp_path / "cache")
    cache = VerbalizationCache(tmp_path / "cache")
    stranger = draw(tmp_path / "stranger.png", (1, 2, 3))
    for key in ("unknown.png", stranger, stranger.read_bytes(), "f" * 64, "0" * 64):
        assert cache.get(key) is None and key not in cache
    assert 3 not in cache and "a.png" in cache
    with pytest.raises(KeyError, match="unknown.png.*not among the 3 images"):
        cache["unknown.png"]


def test_errors_list_damaged_images_until_they_are_mended(images, tmp_path):
    build(images, tmp_path / "cache")
    (error,) = VerbalizationCache(tmp_path / "cache").errors()
    assert error["path"] == "damaged.png" and error["reason"]
    assert build(images, tmp_path / "cache").num_errors == 1
    assert len(VerbalizationCache(tmp_path / "cache").errors()) == 1
    draw(images / "damaged.png", (0, 0, 99))
    report = build(images, tmp_path / "cache")
    assert (report.num_verbalized, report.num_known, report.num_errors) == (1, 4, 0)
    assert VerbalizationCache(tmp_path / "cache").errors() == []


def test_second_run_looks_at_nothing_when_all_is_known(images, tmp_path):
    log = tmp_path / "calls"
    build(images, tmp_path / "cache", [TwoHalves(log=str(log))])
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.parquet")}
    report = build(images, tmp_path / "cache", [TwoHalves(log=str(log))])
    assert report.num_verbalized == 0 and report.num_known == 4
    assert len(log.read_text().splitlines()) == 3
    assert shards == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.parquet")}


def test_cache_reads_every_row_when_it_spans_shards_and_row_groups(tmp_path):
    colors = [(index, 255 - index, 7) for index in range(50)]
    for index, color in enumerate(colors):
        draw(tmp_path / "many" / f"{index:02d}.png", color)
    build(tmp_path / "many", tmp_path / "cache", shard_rows=20, batch_size=5)
    cache = VerbalizationCache(tmp_path / "cache")
    assert len(list(cache.folder.glob("scenes-*.parquet"))) == 3 and len(cache) == 50
    for index in np.random.default_rng(0).permutation(50):
        found = cache[f"{index:02d}.png"]
        assert found.path == f"{index:02d}.png"
        assert found.scene.detections.confidence[0] == pytest.approx(colors[index][0] / 255, abs=1e-6)
    assert [entry.path for entry in cache] == [f"{index:02d}.png" for index in range(50)]


def test_cache_works_in_another_process_when_sent_there(images, tmp_path):
    build(images, tmp_path / "cache")
    cache = VerbalizationCache(tmp_path / "cache")
    text = cache["a.png"].text  # opens files, which must not travel
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read_text, (cache, "a.png")) == text


def _read_text(cache, key):
    return cache[key].text


# ---------------------------------------------------------------------- fingerprints


def test_fingerprint_changes_when_verbalizer_threshold_or_words_do():
    recipes = [
        Recipe.from_verbalizers([MeanColour()]),
        Recipe.from_verbalizers([MeanColour(threshold=0.1)]),
        Recipe.from_verbalizers([TwoHalves()]),
        Recipe.from_verbalizers([MeanColour(), TwoHalves()]),
        Recipe.from_verbalizers([MeanColour()], WordSettings(detection_threshold=0.4)),
        Recipe.from_verbalizers([MeanColour()], compat=True),
    ]
    assert len({recipe.fingerprint for recipe in recipes}) == len(recipes)
    assert Recipe.from_verbalizers([TwoHalves(), MeanColour()]).fingerprint == recipes[3].fingerprint


def test_fingerprints_lie_side_by_side_when_a_threshold_changes(images, tmp_path):
    first = build(images, tmp_path / "cache", [MeanColour()])
    second = build(images, tmp_path / "cache", [MeanColour(threshold=0.5)])
    assert first.folder != second.folder and second.num_verbalized == 3
    with pytest.raises(ValueError, match=f"holds several: .*{first.folder.name} \\(detection/mean_colour\\)"):
        VerbalizationCache(tmp_path / "cache")
    for report in (first, second):
        for cache in (VerbalizationCache(tmp_path / "cache", report.folder.name), VerbalizationCache(report.folder)):
            assert {entry.fingerprint for entry in cache} == {report.folder.name} and len(cache) == 3
    with pytest.raises(ValueError, match="expected the fingerprint 'nothing'"):
        VerbalizationCache(tmp_path / "cache", "nothing")
    with pytest.raises(ValueError, match="expected verbalizations in .*moai verbalize"):
        VerbalizationCache(images)


def test_recipe_is_refused_when_kinds_repeat_or_nobody_looks():
    with pytest.raises(ValueError, match="at most one per kind"):
        Recipe.from_verbalizers([MeanColour(), MeanColour(threshold=0.5)])
    with pytest.raises(ValueError, match="at least one verbalizer"):
        Recipe.from_verbalizers([])


# ---------------------------------------------------------------------- failures


def test_failure_is_in_the_scene_when_a_verbalizer_chokes(images, tmp_path):
    draw(images / "unlucky.png", BAD_COLOR)
    report = build(images, tmp_path / "cache")
    assert report.failures == {"detection": 1} and report.num_verbalized == 4
    found = VerbalizationCache(tmp_path / "cache")["unlucky.png"]
    assert found.scene.failures == {"detection": "ValueError: this colour is unlucky"}
    assert found.scene.detections is None and found.scene.segments is not None and "left" in found.text
    assert build(images, tmp_path / "cache").num_verbalized == 0
    again = build(images, tmp_path / "cache", is_retrying_failures=True)
    assert again.num_verbalized == 1 and again.num_known == 4
    cache = VerbalizationCache(tmp_path / "cache")
    assert len(cache) == 4 and sorted(e.path for e in cache) == ["a.png", "b.png", "deeper/c.png", "unlucky.png"]


def test_finding_becomes_a_failure_when_it_has_no_words(images, tmp_path):
    report = build(images, tmp_path / "cache", [MeanColour(), Unsayable()])
    assert report.failures == {"oddity": 3}
    entries = list(VerbalizationCache(tmp_path / "cache"))
    assert len(entries) == 3
    for entry in entries:
        assert "got set" in entry.scene.failures["oddity"] and entry.scene.detections is not None


def test_run_stops_when_a_verbalizer_fails_on_everything(tmp_path):
    for index in range(20):
        draw(tmp_path / "bad" / f"{index}.png", BAD_COLOR, height=index + 1)
    with pytest.raises(ValueError, match="'detection' failed on each of the first 16 images.*unlucky"):
        build(tmp_path / "bad", tmp_path / "cache")


def test_settings_are_refused_by_name_when_they_make_no_sense(images, tmp_path):
    for options in ({"engine": "cloud"}, {"num_workers": -1}, {"batch_size": 0}, {"shard_rows": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            build(images, tmp_path / "cache", **options)


def test_writer_refuses_a_folder_when_its_manifest_is_of_another_recipe(images, tmp_path):
    folder = build(images, tmp_path / "cache").folder
    manifest = json.loads((folder / "verbalization.json").read_text())
    (folder / "verbalization.json").write_text(json.dumps({**manifest, "fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match=f"expected verbalizations of {folder.name}.*got 0000"):
        build(images, tmp_path / "cache")


def test_reader_names_the_folder_when_the_manifest_is_of_another_version(images, tmp_path):
    folder = build(images, tmp_path / "cache").folder
    manifest = json.loads((folder / "verbalization.json").read_text())
    assert manifest["verbalizers"][0]["settings"]["ids"] == [1, 2] and manifest["words"]["max_relations"] == 10
    (folder / "verbalization.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ValueError, match="version 1 in .*got moai-verbalizations 99"):
        VerbalizationCache(folder)


# ---------------------------------------------------------------------- what is read once


def count_calls(monkeypatch, owner, name):
    """A list that grows by one at every call of a function or method."""
    calls, original = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs))
    return calls


def test_image_is_read_and_hashed_once_when_many_rows_name_it(images, tmp_path, monkeypatch):
    rows = [{"image": name, "id": index} for index, name in enumerate(("a.png", "b.png", "a.png", "b.png", "a.png"))]
    (images / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read, hashed = count_calls(monkeypatch, Source, "read"), count_calls(monkeypatch, building, "hash_content")
    monkeypatch.setattr(work, "hash_content", lambda data: pytest.fail("hashed again"))
    for counts in ((2, 0), (0, 5)):
        report = build(images / "rows.jsonl", tmp_path / "cache")
        assert (report.num_verbalized, report.num_known) == counts and report.num_errors == 0
        assert len(read) == len(hashed) == 2
        read.clear(), hashed.clear()
    cache = VerbalizationCache(tmp_path / "cache")
    assert len(list(cache.sources())) == 5 and cache["4"] == cache[images / "a.png"]
    hashed = count_calls(monkeypatch, cache_module, "hash_content")
    assert cache.get((images / "a.png").read_bytes()) is not None and len(hashed) == 1


def test_checkpoint_is_read_once_when_a_recipe_is_made(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    verbalizer = build_verbalizer("segmentation", "transformers", checkpoint=tmp_path)
    fingerprint = verbalizer.fingerprint()
    read = count_calls(monkeypatch, verbalizer_module, "fingerprint_checkpoint")
    (entry,) = Recipe.from_verbalizers([verbalizer]).entries
    assert entry.fingerprint == fingerprint and len(read) == 1
    read.clear()
    row = {"kind": "segmentation", "backend": "transformers", "fingerprint": fingerprint}
    assert is_made_by(row, verbalizer) and len(read) == 1
