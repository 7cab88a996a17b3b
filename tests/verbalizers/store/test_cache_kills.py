"""Runs that are killed: nothing that was finished is lost, nothing is doubled, nobody is left behind."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from cache_verbalizers import BAD_COLOR, MeanColour, TwoHalves, load_small
from PIL import Image

from verbalizers.core.scene import parse_scene
from verbalizers.store.building import build_cache
from verbalizers.store.cache import VerbalizationCache
from verbalizers.store.recipe import Recipe
from verbalizers.store.rows import encode_found, hash_content
from verbalizers.store.sources import read_sources
from verbalizers.store.writing import CacheWriter

REPO_ROOT = Path(__file__).resolve().parents[3]
NUM_IMAGES = 24

SCRIPT = """
import sys
from cache_verbalizers import TwoHalves, load_small
from verbalizers.store.building import build_cache
from verbalizers.store.sources import read_sources

if __name__ == "__main__":
    images, out, log = sys.argv[1:]
    build_cache(read_sources(images), [TwoHalves(log=log, seconds=0.05)], out, load_small,
                num_workers=2, batch_size=2, shard_rows=5)
"""


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(NUM_IMAGES):
        Image.new("RGB", (8, 6), (index, 100, 50)).save(folder / f"{index:02d}.png")
    (folder / "90_copy.png").write_bytes((folder / "03.png").read_bytes())
    (folder / "99_damaged.png").write_bytes(b"\x89PNG nothing")
    return folder


def _start(images, out, log):
    script = out.parent / "run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": f"{REPO_ROOT}{os.pathsep}{REPO_ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, script, images, out, log], env=environment)


def _count_stored(out):
    """Images in shards and in the journal, as a killed run has left them."""
    import pyarrow.parquet as pq

    hashes = []
    for folder in out.glob("*"):
        for path in folder.glob("scenes-*.parquet"):
            hashes += pq.ParquetFile(path).read(["content_hash"]).column(0).to_pylist()
        journal = folder / "journal.jsonl"
        lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
        hashes += [json.loads(line)["scene"]["content_hash"] for line in lines if b'{"scene"' in line[:9]]
    return set(hashes)


def _wait_for_calls(process, log, count):
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= count:
            return
        time.sleep(0.005)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_run_loses_and_doubles_nothing_when_killed_again_and_again(images, tmp_path):
    out, log = tmp_path / "cache", tmp_path / "calls"
    stored = set()
    for count in (3, 11):
        process = _start(images, out, log)
        _wait_for_calls(process, log, count)
        assert process.poll() is None, "the run was over before it could be killed"
        process.kill()
        process.wait()
        assert stored <= _count_stored(out), "what was finished before an earlier kill is gone"
        stored = _count_stored(out)
        _assert_ended({int(line.split()[-1]) for line in log.read_text().splitlines()})
        log_of_kills = log.read_text()
    assert stored and len(stored) < NUM_IMAGES
    assert _start(images, out, log).wait(timeout=240) == 0
    cache = VerbalizationCache(out)
    hashes = [hash_content((images / f"{index:02d}.png").read_bytes()) for index in range(NUM_IMAGES)]
    assert collections.Counter(e.content_hash for e in cache) == collections.Counter(hashes)
    occurrences = collections.Counter(row["path"] for row in cache.sources())
    assert set(occurrences.values()) == {1} and len(occurrences) == NUM_IMAGES + 1
    assert [row["path"] for row in cache.errors()] == ["99_damaged.png"]
    assert (cache.folder / "journal.jsonl").read_bytes() == b"" and not list(cache.folder.glob(".*.tmp"))
    # The last run looked only at what was in no shard and no journal.
    assert len(log.read_text()[len(log_of_kills) :].splitlines()) == NUM_IMAGES - len(stored)


def _assert_ended(pids):
    """No worker outlives its parent."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(_is_running(pid) for pid in pids):
        time.sleep(0.05)
    assert not [pid for pid in pids if _is_running(pid)]


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


# ---------------------------------------------------------------------- every instant of a shard's birth


def _found(images, name):
    (source,) = read_sources(images / name)
    data = source.read()
    scene = parse_scene([load_small(data)], [TwoHalves()])[0]
    return encode_found(hash_content(data), scene, ""), [source]


@pytest.fixture
def recipe():
    return Recipe.from_verbalizers([TwoHalves()])


def _leave(writer):
    """End a writer as a kill does: nothing is flushed, the kernel closes its files."""
    writer._journal.close()
    writer._lock_file.close()


@pytest.mark.parametrize("instant", ["before the shard", "shard written, journal full", "torn line", "torn temporary"])
def test_writer_goes_on_when_killed_at_an_instant(images, tmp_path, recipe, instant):
    writer = CacheWriter(tmp_path / "cache", recipe)
    writer.add_found([_found(images, "00.png"), _found(images, "01.png")])
    journal = (writer.folder / "journal.jsonl").read_bytes()
    if instant == "shard written, journal full":
        writer.flush()
        (writer.folder / "journal.jsonl").write_bytes(journal)
    _leave(writer)
    if instant == "torn line":
        (writer.folder / "journal.jsonl").write_bytes(journal + b'{"scene": {"content_ha')
    if instant == "torn temporary":
        (writer.folder / ".scenes-000000.parquet.tmp").write_bytes(b"PAR1 half")
    with CacheWriter(tmp_path / "cache", recipe) as again:
        assert len(again.known_hashes) == 2
        again.add_found([_found(images, "02.png")])
    cache = VerbalizationCache(tmp_path / "cache")
    assert sorted(entry.path for entry in cache) == ["00.png", "01.png", "02.png"]
    assert sorted(row["path"] for row in cache.sources()) == ["00.png", "01.png", "02.png"]
    assert not list(cache.folder.glob(".*.tmp"))


def test_writer_refuses_a_damaged_journal_when_the_damage_is_not_its_end(images, tmp_path, recipe):
    writer = CacheWriter(tmp_path / "cache", recipe)
    writer.add_found([_found(images, "00.png")])
    _leave(writer)
    journal = writer.folder / "journal.jsonl"
    journal.write_bytes(b"scribble\n" + journal.read_bytes())
    with pytest.raises(ValueError, match="journal.jsonl:1: expected JSON"):
        CacheWriter(tmp_path / "cache", recipe)


def test_second_writer_is_refused_when_one_is_at_work(tmp_path, recipe):
    pytest.importorskip("fcntl")
    with CacheWriter(tmp_path / "cache", recipe):
        with pytest.raises(ValueError, match="another process is writing"):
            CacheWriter(tmp_path / "cache", recipe)
    CacheWriter(tmp_path / "cache", recipe).close()


# ---------------------------------------------------------------------- workers


def test_workers_find_what_one_process_finds_when_they_share_the_work(images, tmp_path):
    sources = read_sources(images)
    for name, num_workers in (("alone", 0), ("together", 2)):
        build_cache(sources, [TwoHalves(), MeanColour()], tmp_path / name, load_small, num_workers=num_workers)
    alone, together = VerbalizationCache(tmp_path / "alone"), VerbalizationCache(tmp_path / "together")
    assert len(together) == NUM_IMAGES and together.fingerprint == alone.fingerprint
    assert {e.content_hash: e for e in together} == {e.content_hash: e for e in alone}


def test_image_that_kills_its_worker_is_reported_and_the_others_are_done(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        Image.new("RGB", (8, 6), BAD_COLOR if index == 2 else (index, 0, 0)).save(folder / f"{index}.png")
    verbalizers = [MeanColour(on_bad_color="die")]
    report = build_cache(read_sources(folder), verbalizers, tmp_path / "cache", load_small, batch_size=3)
    cache = VerbalizationCache(tmp_path / "cache")
    assert report.num_verbalized == 5 and {entry.path for entry in cache} == {f"{i}.png" for i in (0, 1, 3, 4, 5)}
    (error,) = cache.errors()
    assert error["path"] == "2.png" and "worker process died" in error["reason"]


@pytest.mark.slow
def test_two_ray_workers_find_what_one_process_finds(images, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    monkeypatch.setenv("PYTHONPATH", f"{REPO_ROOT}{os.pathsep}{REPO_ROOT / 'tests'}")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's default, 15, starves on a machine that is busy otherwise
    sources = read_sources(images)
    build_cache(sources, [TwoHalves(), MeanColour()], tmp_path / "alone", load_small, num_workers=0)
    log = tmp_path / "calls"
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        options = {"engine": "ray", "num_workers": 2, "batch_size": 4}
        verbalizers = [TwoHalves(log=str(log), seconds=0.2), MeanColour()]
        report = build_cache(sources, verbalizers, tmp_path / "ray", load_small, **options)
        known = build_cache(sources, verbalizers, tmp_path / "ray", load_small, **options)
    finally:
        ray.shutdown()
    assert (report.num_verbalized, report.num_repeated, report.num_errors) == (NUM_IMAGES, 1, 1)
    assert (known.num_verbalized, known.num_known, known.num_errors) == (0, NUM_IMAGES + 1, 1)
    lines = log.read_text().splitlines()
    assert len(lines) == NUM_IMAGES and len({line.split()[-1] for line in lines}) == 2, "both actors looked"
    alone, clustered = VerbalizationCache(tmp_path / "alone"), VerbalizationCache(tmp_path / "ray")
    assert {e.content_hash: e for e in clustered} == {e.content_hash: e for e in alone}
