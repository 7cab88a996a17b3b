"""A cache that was written when fingerprints held module paths (tests/data/legacy_cache) is read and gone on with."""

import json
import shutil

import pytest

pytest.importorskip("pyarrow")

from cache_verbalizers import MeanColour, TwoHalves, load_small
from PIL import Image
from pins import DATA_FOLDER, LEGACY_CACHE

from moai.data.findings import FindingsReader
from verbalizers import WordSettings, build_verbalizer, parse_scene, verbalize_scene
from verbalizers.store.building import build_cache
from verbalizers.store.cache import VerbalizationCache
from verbalizers.store.recipe import _FORMER_CLASSES, MANIFEST_FILE, Recipe, is_made_by, legacy_fingerprint
from verbalizers.store.sources import read_sources

PICTURES = LEGACY_CACHE / "pictures"
NAMES = ("a.png", "b.png")
# Of every verbalizer in this repository, by the code that wrote the cache.
LEGACY_PRINTS = json.loads((DATA_FOLDER / "legacy_fingerprints.json").read_text(encoding="utf-8"))


def build_verbalizers():
    return [TwoHalves(), MeanColour(), build_verbalizer("scene_graph", "geometric")]


def test_old_cache_gives_what_is_found_today_when_read():
    cache = VerbalizationCache(LEGACY_CACHE / "cache")
    assert len(cache) == len(NAMES) and cache.fingerprint == cache.folder.name
    for name in NAMES:
        fresh = parse_scene([load_small((PICTURES / name).read_bytes())], build_verbalizers())[0]
        found = cache[PICTURES / name]
        assert found == cache[name] and found.scene == fresh and found.text == verbalize_scene(fresh) != ""


def copy_old_cache(tmp_path):
    return shutil.copytree(LEGACY_CACHE / "cache", tmp_path / "cache")


def recipe_of(verbalizers):
    return Recipe.from_verbalizers(verbalizers, WordSettings(quote_text=False))


def build(out, verbalizers):
    return build_cache(read_sources(PICTURES), recipe_of(verbalizers), out, load_small, num_workers=0)


def test_old_cache_is_gone_on_with_when_the_same_verbalizers_look(tmp_path):
    out = copy_old_cache(tmp_path)
    (old,) = out.iterdir()
    assert recipe_of(build_verbalizers()).fingerprint != old.name
    report = build(out, build_verbalizers())
    assert report.folder == old and (report.num_known, report.num_verbalized) == (2, 0)
    more = tmp_path / "more"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(shutil.copytree(PICTURES, more) / "c.png")
    report = build_cache(read_sources(more), recipe_of(build_verbalizers()), out, load_small, num_workers=0)
    assert report.folder == old and (report.num_known, report.num_verbalized) == (2, 1)
    cache = VerbalizationCache(out)
    assert len(cache) == 3 and {entry.fingerprint for entry in cache} == {old.name}


@pytest.mark.parametrize("change", ["setting", "version", "another", "fewer", "words", "quotes"])
def test_old_cache_is_left_alone_when_something_else_looks(tmp_path, monkeypatch, change):
    out = copy_old_cache(tmp_path)
    (old,) = out.iterdir()
    halves, colour, graph = build_verbalizers()
    if change == "version":
        monkeypatch.setattr(type(graph), "version", 2)
    looking = {
        "setting": [halves, MeanColour(threshold=0.5), graph],
        "another": [halves, build_verbalizer("detection", "owlv2", checkpoint="some/model", vocabulary=["cat"]), graph],
        "fewer": [halves, colour],
    }.get(change, [halves, colour, graph])
    words = WordSettings(max_relations=3 if change == "words" else 10, quote_text=change == "quotes")
    recipe = Recipe.from_verbalizers(looking, words)
    assert recipe.fingerprint_in(out) == recipe.fingerprint != old.name


def test_folder_of_an_old_name_is_refused_when_it_holds_something_else(tmp_path):
    out = copy_old_cache(tmp_path)
    (old,) = out.iterdir()
    manifest = json.loads((old / MANIFEST_FILE).read_text())
    (old / MANIFEST_FILE).write_text(json.dumps({**manifest, "fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match=f"expected verbalizations of {old.name}.*got 0000"):
        build(out, build_verbalizers())


def test_new_cache_goes_before_an_old_one_when_both_are_there(tmp_path):
    out = tmp_path / "cache"
    folder = build(out, build_verbalizers()).folder
    (old,) = (LEGACY_CACHE / "cache").iterdir()
    shutil.copytree(old, out / old.name)
    assert build(out, build_verbalizers()).folder == folder != out / old.name


# ---------------------------------------------------------------------- single fingerprints


def build_named(name):
    kind, backend = name.split("/")
    settings = LEGACY_PRINTS[name]["settings"]
    return build_verbalizer(kind, backend, **settings, **({"model": len} if backend == "triplets" else {}))


@pytest.mark.parametrize("name", LEGACY_PRINTS)
def test_verbalizer_is_known_by_its_old_fingerprint_when_its_module_moves(name, monkeypatch):
    verbalizer = build_named(name)
    kind, backend = name.split("/")
    before, old = verbalizer.fingerprint(), LEGACY_PRINTS[name]["fingerprint"]
    monkeypatch.setattr(type(verbalizer), "__module__", "verbalizers.backends.elsewhere")
    assert verbalizer.fingerprint() == before != old
    assert legacy_fingerprint(verbalizer) == old
    entries = [{"kind": kind, "backend": backend, "fingerprint": value} for value in (before, old)]
    assert all(is_made_by(entry, verbalizer) for entry in entries)
    for wrong in ({"fingerprint": "0" * 16}, {"kind": "taste"}, {"backend": "other"}):
        assert not any(is_made_by(entry | wrong, verbalizer) for entry in entries)


@pytest.mark.parametrize("name", LEGACY_PRINTS)
def test_fingerprint_changes_when_the_version_is_raised(name, monkeypatch):
    verbalizer = build_named(name)
    before = verbalizer.fingerprint()
    monkeypatch.setattr(type(verbalizer), "version", 2)
    assert verbalizer.fingerprint() != before and legacy_fingerprint(verbalizer) is None
    entry = {"kind": verbalizer.kind, "backend": verbalizer.backend, "fingerprint": LEGACY_PRINTS[name]["fingerprint"]}
    assert not is_made_by(entry, verbalizer)


def test_every_registered_verbalizer_of_ours_has_an_old_fingerprint_when_listed():
    names = {f"{kind}/{backend}" for kind, backend in _FORMER_CLASSES}
    assert names == set(LEGACY_PRINTS)


def test_verbalizer_outside_is_known_by_its_old_fingerprint_when_it_stands_where_it_stood(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "examples" / "colour_verbalizer")
    from moai_colour_verbalizer import ColourVerbalizer

    # By the code before `version`, from `python -c "...; print(ColourVerbalizer().fingerprint())"`.
    assert legacy_fingerprint(ColourVerbalizer()) == "f736c70a26fddfde"
    assert legacy_fingerprint(MeanColour()) == "8b88c163e4c08da9"
    assert legacy_fingerprint(TwoHalves()) == "73e2799290268286"


def test_fingerprint_is_its_own_when_a_subclass_is_not_registered():
    class Redder(MeanColour):
        def predict(self, images):
            return super().predict([255 - image for image in images])

    class Bluer(Redder):
        pass

    assert len({v.fingerprint() for v in (MeanColour(), Redder(), Bluer())}) == 3
    assert len({legacy_fingerprint(v) for v in (MeanColour(), Redder(), Bluer())}) == 3


def test_live_reader_takes_an_old_cache_and_refuses_a_foreign_one(tmp_path):
    out = copy_old_cache(tmp_path)
    (old,) = out.iterdir()
    picture = Image.new("RGB", (9, 9), (1, 2, 3))
    assert FindingsReader(VerbalizationCache(out), is_looking=True).read(b"unknown", picture).scene is not None
    manifest = json.loads((old / MANIFEST_FILE).read_text())
    manifest["verbalizers"][1]["fingerprint"] = "0" * 16
    (old / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="detection/mean_colour is not the one that filled the cache"):
        FindingsReader(VerbalizationCache(out), is_looking=True).read(b"unknown", picture)
