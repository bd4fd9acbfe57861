"""A sweep that is told to end, by Ctrl-C, a closed terminal or a machine that shuts down, ends in good order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Within the block each of these is taken note of alone; a second does not disturb how a sweep ends.

    The block is given a call that raises KeyboardInterrupt when it was told to end, to be made now and then. Nothing is
    raised wherever the process just is: in a finaliser it would be lost, and between two lines of a queue, a pool or a
    lock it leaves them such that whoever waits for them next waits for ever. Nor is any of them ignored from then on:
    a process that is just started would be born so. One that is ignored anyhow, as under ``nohup``, stays so.
    """
    told = False

    def heed() -> None:
        if told:
            raise KeyboardInterrupt

    def stop(*_: object) -> None:
        nonlocal told
        told = True

    before = {number: signal.getsignal(number) for number in _TOLD}
    before = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield heed
    finally:
        for number, was in before.items():
            signal.signal(number, was)
