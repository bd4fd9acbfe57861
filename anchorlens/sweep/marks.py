"""What a worker has started is known by a mark in its environment, and ended by it: the mark outlives parenthood.

Also run by its path, as a process that follows a worker which no scheduler on this machine looks after.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress

import psutil

NAME = "ANCHORLENS_WORKER"
_LOOK = 0.5  # seconds between looks at whether the followed process lives
_LOOKS = 5  # for processes that are to be ended
_PATIENCE = 5  # seconds for one that was killed to be gone


def end(*marks: str) -> None:
    """Kill what workers have started, and what that has; also where they are gone and those have new parents."""
    for _ in range(_LOOKS):  # one may start another meanwhile
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(NAME) in marks:
                    process.kill()
                    found.append(process)
            except psutil.Error:  # gone, or somebody else's
                continue
        if not found:
            return
        until = time.monotonic() + _PATIENCE
        while any(_lives(process) for process in found) and time.monotonic() < until:
            time.sleep(0.01)


def _lives(process: psutil.Process) -> bool:
    """Also where nobody hears of a process that has ended, as where its new parent is slow, it lives no more."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def follow(mark: str) -> None:
    """Start a process that ends what bears the mark as soon as this process is gone, however it went."""
    environment = {name: value for name, value in os.environ.items() if name != NAME}
    command = [sys.executable, __file__, str(os.getpid()), mark]
    subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)


def _following(process: psutil.Process, mark: str) -> None:
    if os.fork():
        os._exit(0)  # so that it is nobody's child, and not ended with its parent
    os.setsid()
    while _lives(process):
        time.sleep(_LOOK)
    end(mark)


if __name__ == "__main__":
    _following(psutil.Process(int(sys.argv[1])), sys.argv[2])
