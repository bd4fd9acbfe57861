"""A sweep that is told to end, by Ctrl-C, a closed terminal or a machine that shuts down, ends in good order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Within the block each of these raises KeyboardInterrupt, once: a second may not disturb how a sweep ends.

    One that is ignored, as under ``nohup``, stays so. What is raised wherever the process just is can be lost, as in a
    finaliser, whose errors Python prints and forgets: the block is given a call that raises again what it was told, to
    be made now and then.
    """
    told = False

    def heed() -> None:
        if told:
            raise KeyboardInterrupt

    def stop(*_: object) -> None:
        nonlocal told
        told = True
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _TOLD}
    before = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield heed
    finally:
        for number, was in before.items():
            signal.signal(number, was)
