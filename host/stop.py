"""Being told to end: SIGTERM and Ctrl-C leave as an exception does, so that the machine is reset and its simulator ended."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

INTERRUPTED, TERMINATED = 130, 143


def stoppable(work: Callable[[], int]) -> int:
    """The exit code of `work`, or the one of the signal that ended it."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set signal handlers
        return work()
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return work()
    except KeyboardInterrupt:
        print("host: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 2
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the cleaning up is not disturbed
    raise SystemExit(TERMINATED)
