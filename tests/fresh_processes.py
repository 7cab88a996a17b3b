"""Fresh interpreters for the price of a fork: children of one process that has loaded what all stand on, no more."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

# Neither transformers nor moai: how those are first imported is what is tested. Nor huggingface_hub, nor what imports
# it: it reads its environment once, and each child has one of its own.
_PARENT = """
import atexit, gc, importlib, importlib.util, json, os, sys, threading, time, traceback
gc.set_threshold(50_000, 10, 10)
for name in ("torch._dynamo", "torchvision", "scipy.optimize", "tokenizers"):
    if importlib.util.find_spec(name.split(".")[0]):
        importlib.import_module(name)
assert not {"huggingface_hub", "transformers", "moai", "verbalizers"} & set(sys.modules)
gc.freeze()

def work(script, folder, environment, output, errors):
    atexit._clear()  # what the parent's modules want done at its end
    for number, name in ((0, os.devnull), (1, output), (2, errors)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["-c"]
    code = 0
    try:
        exec(compile(script, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if code != leaving.code and code:
            print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # as an interpreter ends: threads are waited for, then come the functions of atexit
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        until = time.monotonic() + 600
        while not (ended := os.waitpid(asked, os.WNOHANG))[0]:
            time.sleep(0.01)
            if time.monotonic() > until:
                os.kill(asked, 9)
        answer = os.waitstatus_to_exitcode(ended[1])
    elif not (answer := os.fork()):
        work(*asked)
    print(json.dumps(answer), flush=True)
"""


class _Parent:
    """The process whose children they are; it ends with this one."""

    def __init__(self) -> None:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-P", "-c", _PARENT]  # -P: this folder is not on its path
        self._process = subprocess.Popen(command, env=variables, **pipes)
        self._owner = os.getpid()
        atexit.register(self._end)

    def _end(self) -> None:
        if os.getpid() == self._owner:  # and not a fork, where a command under test leaves by way of atexit
            self._process.kill()
            self._process.wait()

    def ask(self, question: object) -> int:
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the process whose children are fresh interpreters has ended"
        return json.loads(answer)


_parent = lru_cache(maxsize=1)(_Parent)


class FreshProcess:
    """A script in an interpreter that has imported none of huggingface_hub, transformers and this project.

    Args:
        script: Of Python, as after ``python -c``.
        folder: Where.
        environment: Variables; None = this process's.

    Attributes:
        pid: Number of the process.
    """

    def __init__(self, script: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._files = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115 - till end
        names = [file.name for file in self._files]
        variables = dict(os.environ if environment is None else environment)
        self._ended: tuple[int, str, str] | None = None
        self.pid = _parent().ask([script, str(folder), variables, *names])

    def kill(self) -> None:
        """``kill -9``, unless its end was waited for."""
        if self._ended is None:
            os.kill(self.pid, 9)

    def communicate(self) -> tuple[int, str, str]:
        """Wait for the end: exit code, standard output, standard error."""
        if self._ended is None:
            code = _parent().ask(self.pid)
            self._ended = (code, *(file.read() for file in self._files))
        return self._ended


def run_fresh(script: str, folder: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run a script as a :class:`FreshProcess` that must not fail; lines that it prints."""
    code, output, errors = FreshProcess(script, folder, environment).communicate()
    assert code == 0, f"{script}\n{errors}"
    return output.splitlines()


def run_each(scripts: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run :func:`run_fresh` on scripts, one after the other; lines that they print."""
    return [line for script in scripts for line in run_fresh(script, folder, environment)]
