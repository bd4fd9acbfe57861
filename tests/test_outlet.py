"""Lines for a reader that stands still, or goes: whole where they are read, and never in the way of an end."""

import io
import os
import sys
import threading
import time

import pytest

from anchorlens.sweep import outlet
from anchorlens.sweep.nodes import OfMainThread

LARGE = "x" * 200_000  # three times what a pipe holds


class Pipe:
    """Stdout or stderr as a pipe of which nobody reads until somebody does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, wrapped: bool = False) -> None:
        self.reading, writing = os.pipe()
        self.stream = io.TextIOWrapper(os.fdopen(writing, "wb"), encoding="utf-8")
        monkeypatch.setattr(sys, name, OfMainThread(self.stream) if wrapped else self.stream)

    def read(self, size: int) -> str:
        found = b""
        while len(found) < size:
            found += os.read(self.reading, size - len(found))
        return found.decode()


def told(turn: int = 3):
    turns = iter([None] * turn)

    def heed() -> None:
        if next(turns, "over"):
            raise KeyboardInterrupt

    return heed


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["", "with Ray"])
def test_a_reader_that_stands_still_keeps_nothing_from_its_end_and_misses_nothing_later(monkeypatch, name, wrapped):
    pipe = Pipe(monkeypatch, name, wrapped)
    lines = outlet.Outlet(name, told())
    lines.say("first")
    with pytest.raises(KeyboardInterrupt):
        lines.say(LARGE)
    reader = threading.Thread(target=lambda: found.append(pipe.read(len(LARGE) + 14)))
    found: list[str] = []
    reader.start()
    lines.hurry()
    lines.say("end é")
    reader.join(timeout=30)
    assert found == [f"first\n{LARGE}\nend é\n"[: len(LARGE) + 13]]


def test_at_the_end_a_reader_is_waited_for_a_moment_and_never_again(monkeypatch):
    monkeypatch.setattr(outlet, "_PATIENCE", 0.3)
    pipe = Pipe(monkeypatch, "stdout")
    lines = outlet.Outlet("stdout", told(0))
    lines.hurry()
    began = time.monotonic()
    lines.say(LARGE)
    assert 0.3 <= time.monotonic() - began < 5
    print(LARGE, flush=True)  # as a command does after its sweep
    assert pipe.read(4096) == LARGE[:4096], "what it took before"


def test_a_thread_that_waits_for_a_reader_holds_up_no_other(monkeypatch):
    monkeypatch.setattr(outlet, "_PATIENCE", 0.3)
    Pipe(monkeypatch, "stdout")
    lines = outlet.Outlet("stdout", told())
    other = threading.Thread(target=lines.say, args=(LARGE,), daemon=True)  # in which nothing is raised
    other.start()
    time.sleep(0.2)
    with pytest.raises(KeyboardInterrupt):
        lines.say("mine")
    lines.hurry()
    lines.say("end")
    other.join(timeout=30)
    assert not other.is_alive()


@pytest.mark.parametrize(("name", "raises"), [("stdout", True), ("stderr", False)])
def test_where_nobody_reads_stdout_is_an_error_and_stderr_is_none(monkeypatch, name, raises):
    pipe = Pipe(monkeypatch, name)
    os.close(pipe.reading)
    lines, raised = outlet.Outlet(name, lambda: None), []
    try:
        lines.say("a line")
    except BrokenPipeError:
        raised.append(name)
    assert bool(raised) == raises


def test_what_is_kept_in_memory_is_printed_there(capsys):
    outlet.Outlet("stdout", lambda: None).say("a line")
    outlet.Outlet("stderr", lambda: None).say("another")
    assert capsys.readouterr() == ("a line\n", "another\n")
