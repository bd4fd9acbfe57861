"""A sweep that is told to end, by Ctrl-C, a closed terminal or a machine that shuts down, ends in good order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block each of these raises KeyboardInterrupt, once: a second may not disturb how a sweep ends.

    One that is ignored, as under ``nohup``, stays so.
    """

    def stop(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _TOLD}
    before = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
