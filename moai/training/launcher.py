"""torchrun that leaves messages to the processes it starts.

torchrun prints a traceback of its own when one of them ends with an error or a signal; what they print says more.
"""

from __future__ import annotations

import logging

__all__ = ["LAUNCHER", "main"]

#: Words between ``python`` and torchrun's.
LAUNCHER = ("-c", "import sys; from moai.training.launcher import main; sys.exit(main())")
EXIT_INTERRUPTED = 130


def main() -> int:
    """Run torchrun's command line.

    Returns:
        Exit code: of the first process that failed; 130 after a signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    logging.disable(logging.CRITICAL)
    try:
        run()
    except SignalException:
        return EXIT_INTERRUPTED
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0
