"""Files and folders that appear whole or not at all."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from verbalizers.core.durable_files import append_to_file, atomic_file, atomic_folder, hold_folder


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_is_replaced_when_written_and_kept_when_writing_fails(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic_file(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert path.read_text() == "two" and list_names(path.parent) == ["a.txt"]
    append_to_file(path, b" three")
    assert path.read_text() == "two three"


def test_folder_is_replaced_when_filled_and_kept_when_filling_fails(tmp_path):
    output = tmp_path / "out"
    for text in ("one", "two"):
        with atomic_folder(output, force=True) as temporary:
            (temporary / "deeper").mkdir()
            (temporary / "deeper" / text).write_text(text)
            (temporary / "deeper" / text).chmod(0o600)
    mask = os.umask(0)
    os.umask(mask)
    assert (output / "deeper" / "two").stat().st_mode & 0o777 == 0o666 & ~mask
    with pytest.raises(ZeroDivisionError), atomic_folder(output, force=True) as temporary:
        (temporary / "half").write_text(f"half {1 / 0}")
    assert list_names(output / "deeper") == ["two"] and list_names(tmp_path) == ["out"]
    with pytest.raises(ValueError, match="not empty"), atomic_folder(output):
        pass
    with pytest.raises(ValueError, match="existing file"), atomic_folder(output / "deeper" / "two"):
        pass


def test_threads_do_not_disturb_each_other_when_they_write_one_file(tmp_path):
    barrier = threading.Barrier(4)

    def write(text):
        with atomic_file(tmp_path / "a.txt") as temporary:
            temporary.write_text(text)
            barrier.wait(10)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, [str(index) * 1000 for index in range(4)]))
    assert len(set((tmp_path / "a.txt").read_text())) == 1
    assert list_names(tmp_path) == ["a.txt"]


KILLED = """
import os, signal, sys
from pathlib import Path
from verbalizers.core.durable_files import atomic_file, atomic_folder

out = Path(sys.argv[1])
with atomic_file(out / "file") as one, atomic_folder(out / "folder", force=True) as many:
    one.write_text("half")
    (many / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_old_content_stays_when_the_writer_is_killed(tmp_path, repo_root):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file", tmp_path / "folder" / "a"):
        path.write_text("whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "whole"
    assert [name for name in list_names(tmp_path) if not name.startswith(".")] == ["file", "folder"]


HOLDER = """
import os, sys, time
from verbalizers.core.durable_files import atomic_folder, hold_folder

with {hold}(sys.argv[1]):
    reading, writing = os.pipe()
    if os.fork() == 0:  # a child that outlives its parent, as data workers do for some seconds
        os.write(writing, b".")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no flock")
@pytest.mark.parametrize("hold", ["hold_folder", "atomic_folder"])
def test_folder_is_refused_with_its_holder_named_until_that_process_is_dead(tmp_path, repo_root, hold):
    output, again = tmp_path / "out", {"hold_folder": hold_folder, "atomic_folder": atomic_folder}[hold]
    command = [sys.executable, "-c", HOLDER.format(hold=hold), str(output)]
    holder = subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        pid = holder.stdout.readline().strip()
        with pytest.raises(ValueError, match=rf"out' \(process {pid} on '.+', since 20.*Wait for it"), again(output):
            pass
        holder.kill()
        holder.wait(10)
        with again(output), again(tmp_path / "other"):  # though the child is alive and the lock's file there
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="there is no flock")
def test_folder_is_held_by_one_thread_when_it_asks_twice(tmp_path):
    def ask():
        with pytest.raises(ValueError, match=f"process {os.getpid()} "), hold_folder(tmp_path):
            pass

    with ThreadPoolExecutor(1) as threads:
        with hold_folder(tmp_path):
            with hold_folder(tmp_path / "." / ""):
                threads.submit(ask).result(10)
            threads.submit(ask).result(10)
        with threads.submit(hold_folder, tmp_path).result(10):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="got the file"), hold_folder(tmp_path / "file"):
        pass
