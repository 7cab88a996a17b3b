"""``python -m moai`` is the command ``moai``."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import NoReturn

__all__ = ["main"]

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
#: Commands that write whole files and talk to no tracker: their process ends without taking torch apart.
_QUICK_COMMANDS = ("ask", "verbalize", "plan")
#: Thresholds of the garbage collector: importing torch and transformers makes a million objects that stay, and with the
#: default of 700 going over them again and again would take a seventh of a first question's time.
_QUICK_THRESHOLDS = (50_000, 10, 10)
#: Names of threads that run foreign code (verbalizers, generation) and may still do so at the end.
_WORKING_THREADS = ("verbalizer-", "moai-answer")


def main() -> NoReturn:
    """Run the command line, and leave with its exit code: 130 after Ctrl-C, 143 after SIGTERM."""
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by who started this process
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        sys.stdout.reconfigure(errors="backslashreplace")  # letters that a terminal lacks are no error
        if sys.argv[1:2] and sys.argv[1] in _QUICK_COMMANDS:
            gc.set_threshold(*_QUICK_THRESHOLDS)
        from moai.cli import app

        app(prog_name="moai")
        code = 0
    except KeyboardInterrupt:  # while modules were being imported
        code = EXIT_INTERRUPTED
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    _leave(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends as Ctrl-C does: files are closed, workers are ended, what is done stays done."""
    raise SystemExit(EXIT_TERMINATED)


def _leave(code: int) -> NoReturn:
    """End the process."""
    try:
        sys.stdout.flush()
    except OSError:  # the reader of the pipe has gone: Python would complain once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if any(thread.name.startswith(_WORKING_THREADS) for thread in threading.enumerate()):
        # Python would end while a library's native code still runs in the thread, which aborts the process.
        sys.stderr.flush()
        os._exit(code)
    is_alone = all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
    if sys.argv[1:2] and sys.argv[1] in _QUICK_COMMANDS and is_alone:
        atexit._run_exitfuncs()  # worker processes, temporary files, logs
        with suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
