"""A cache that was written when fingerprints held module paths (tests/data/legacy_cache) is read and gone on with."""

import pytest

pytest.importorskip("pyarrow")

from cache_verbalizers import MeanColour, TwoHalves, load_small
from pins import LEGACY_CACHE

from verbalizers import build_verbalizer, parse_scene, verbalize_scene
from verbalizers.cache import VerbalizationCache

PICTURES = LEGACY_CACHE / "pictures"
NAMES = ("a.png", "b.png")


def build_verbalizers():
    return [TwoHalves(), MeanColour(), build_verbalizer("scene_graph", "geometric")]


def test_old_cache_gives_what_is_found_today_when_read():
    cache = VerbalizationCache(LEGACY_CACHE / "cache")
    assert len(cache) == len(NAMES) and cache.fingerprint == cache.folder.name
    for name in NAMES:
        fresh = parse_scene([load_small((PICTURES / name).read_bytes())], build_verbalizers())[0]
        found = cache[PICTURES / name]
        assert found == cache[name] and found.scene == fresh and found.text == verbalize_scene(fresh) != ""
