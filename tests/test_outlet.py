"""Lines for a reader that stands still, or goes: whole where they are read, and never in the way of an end."""

import gzip
import io
import os
import pty
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from anchorlens import outlet, sweep
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


def told():
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["", "with Ray"])
def test_lines_wait_for_their_reader_and_nobody_for_them(monkeypatch, name, wrapped):
    pipe = Pipe(monkeypatch, name, wrapped)
    lines = outlet.Outlet(name)
    for line in ("first", LARGE, "é"):
        lines.say(line)  # which returns though nobody reads
    others = [threading.Thread(target=lines.say, args=(f"other {n}",)) for n in range(9)]
    for each in others:
        each.start()
    want = f"first\n{LARGE}\né\n"
    assert pipe.read(len(want.encode())) == want
    lines.close(told)
    lines.check()
    found = pipe.read(8 * 9)
    assert sorted(found.splitlines()) == [f"other {n}" for n in range(9)], "whole lines"
    print("after it", file=getattr(sys, name), flush=True)
    assert pipe.read(9) == "after it\n"


@pytest.mark.parametrize("heed", [None, told])
def test_at_the_end_a_reader_is_waited_for_a_moment_and_never_again(monkeypatch, heed):
    monkeypatch.setattr(outlet, "_PATIENCE", 0.3)
    pipe = Pipe(monkeypatch, "stdout")
    lines = outlet.Outlet("stdout")
    lines.say(LARGE)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) if heed else nullcontext():
        lines.close(heed)
    assert 0.3 <= time.monotonic() - began < 5
    print(LARGE, flush=True)  # as a command does after its sweep
    assert pipe.read(4096) == LARGE[:4096], "what it took before"


def test_a_slow_reader_is_waited_for_where_nothing_is_to_end(monkeypatch):
    monkeypatch.setattr(outlet, "_PATIENCE", 0.1)
    pipe, found = Pipe(monkeypatch, "stdout"), []
    lines = outlet.Outlet("stdout")
    lines.say(LARGE)
    reader = threading.Timer(0.5, lambda: found.append(pipe.read(len(LARGE) + 1)))
    reader.start()
    lines.close(lambda: None)
    reader.join(timeout=30)
    assert found == [f"{LARGE}\n"]


def test_a_terminal_that_takes_nothing_holds_up_nobody(monkeypatch):
    """Of which the system says that it takes some, and that then takes less than it is given."""
    monkeypatch.setattr(outlet, "_PATIENCE", 0.3)
    reading, writing = pty.openpty()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(os.fdopen(os.dup(writing), "wb"), encoding="utf-8"))
    lines = outlet.Outlet("stdout")
    for _ in range(100):
        lines.say("x" * 300)
    lines.close(None)
    assert lines.behind
    os.close(reading)


@pytest.mark.parametrize(("name", "raises"), [("stdout", True), ("stderr", False)])
def test_where_nobody_reads_stdout_is_an_error_and_stderr_is_none(monkeypatch, name, raises):
    pipe = Pipe(monkeypatch, name)
    os.close(pipe.reading)
    lines = outlet.Outlet(name)
    for _ in range(100):
        lines.say("a line")
    lines.close(lambda: None)
    with pytest.raises(BrokenPipeError) if raises else nullcontext():
        lines.check()
    assert not lines.behind, "nothing is kept for nobody"


def test_a_stream_that_must_not_block_is_written_whole(monkeypatch):
    pipe = Pipe(monkeypatch, "stdout")
    os.set_blocking(sys.stdout.fileno(), False)
    lines = outlet.Outlet("stdout")
    lines.say(LARGE)
    assert pipe.read(len(LARGE) + 1) == f"{LARGE}\n"
    lines.close(told)
    lines.check()


def test_what_is_kept_in_memory_is_printed_there_and_without_a_stream_nothing(capsys, monkeypatch, tmp_path):
    outlet.Outlet("stdout").say("a line")
    outlet.Outlet("stderr").say("another")
    assert capsys.readouterr() == ("a line\n", "another\n")
    with gzip.open(tmp_path / "said.gz", "wt") as packed:
        monkeypatch.setattr(sys, "stdout", packed)
        outlet.Outlet("stdout").say("a line")
    assert gzip.decompress((tmp_path / "said.gz").read_bytes()) == b"a line\n"
    monkeypatch.setattr(sys, "stderr", None)
    outlet.Outlet("stderr").say("nowhere")


def test_whoever_reads_late_reads_all_that_a_sweep_says(tmp_path, monkeypatch):
    pipe = Pipe(monkeypatch, "stdout")
    found: list[str] = []
    with sweep.Events(tmp_path, 2000, as_json=True) as said:
        for n in range(2000):
            said.say("cached", job=f"job {n}", folder="")
        written = said.path.read_text()
        assert said._out.behind
        reader = threading.Timer(0.2, lambda: found.append(pipe.read(len(written))))
        reader.start()
    reader.join(timeout=30)  # what the pipe holds it has still to read
    assert found == [written], "as it is in the file"


def test_a_sweep_whose_reader_has_gone_hears_of_it_between_its_steps(tmp_path, monkeypatch):
    def steps():
        with sweep.Events(tmp_path, 1, as_json=True) as said:
            for _ in range(300):
                time.sleep(0.1)
                said.heed()

    os.close(Pipe(monkeypatch, "stdout").reading)
    with pytest.raises(BrokenPipeError):
        steps()


def test_a_sweep_whose_reader_has_gone_hears_of_it_at_its_end(tmp_path, monkeypatch):
    os.close(Pipe(monkeypatch, "stdout").reading)
    events = sweep.Events(tmp_path, 1, as_json=True)
    events.__enter__()
    with pytest.raises(BrokenPipeError):
        events.__exit__()
