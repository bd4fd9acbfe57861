"""How far a sweep is: the cell of each run, the time left from work alone, and both on a terminal."""

import errno
import io
import json
import re
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from anchorlens import cli, sweep
from anchorlens.sweep import events, progress


def running(folder: Path, *states: str) -> str:
    """A run whose code cells, with prose between them, are in these states; returns where its result will be."""
    cells = []
    for state in states:
        cells.append({"cell_type": "markdown", "metadata": {"papermill": {"status": "completed"}}})
        cells.append({"cell_type": "code", "metadata": {"papermill": {"status": state}}})
    partial = folder / "2_2_isolation" / "0123.partial"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "run.ipynb").write_text(json.dumps({"cells": cells}))
    return str(partial.with_name("0123"))


@pytest.mark.parametrize(
    ("states", "want"),
    [
        (("pending", "pending"), (0, 2)),
        (("running", "pending"), (1, 2)),
        (("completed", "pending", "pending"), (1, 3)),
        (("completed", "running", "pending"), (2, 3)),
        (("completed", "completed"), (2, 2)),
        (("completed", "failed", "pending"), (2, 3)),
    ],
)
def test_a_run_is_in_the_code_cell_that_began_last(tmp_path, states, want):
    assert progress.cell(running(tmp_path, *states)) == want


def test_what_cannot_be_read_just_now_is_no_cell_and_no_error(tmp_path, monkeypatch):
    folder = running(tmp_path, "running")
    path = Path(f"{folder}.partial", "run.ipynb")
    whole = path.read_text()
    for said in ("", whole[:20], "[]", '{"cells": [{"cell_type": "code", "metadata": {}}]}', '{"cells": 1}', "null"):
        path.write_text(said)
        assert progress.cell(folder) is None
    path.write_bytes(b"\xff")
    assert progress.cell(folder) is None
    assert progress.cell(str(tmp_path / "none")) is None
    path.write_text(whole)
    monkeypatch.setattr(progress, "_LARGEST", 10)
    assert progress.cell(folder) is None


def test_the_time_left_is_that_of_work_alone(tmp_path, capsys, monkeypatch):
    assert progress.seconds_left(0, 5, 100.0) is None
    assert progress.seconds_left(2, 3, 10.0) == 15.0
    with sweep.Events(tmp_path, 10) as said:
        for n in range(6):
            said.say("cached", job=f"c{n}", folder="")
        assert said._stand() == (6, 0, 0.0), "runs that were there are no work"
        assert sweep.status(tmp_path)["seconds_left"] is None
        said.say("started", job="a", folder="")
        time.sleep(0.02)
        said.say("failed", job="a", folder="", error="by zero")
        ended, worked, seconds = said._stand()
        assert (ended, worked) == (7, 1)
        assert seconds >= 0.02
        monkeypatch.setattr(events, "_since", lambda then, here: 10.0)
        assert sweep.status(tmp_path)["seconds_left"] == 30.0, "three runs like the one"
    assert "[7/10] failed a: by zero" in capsys.readouterr().err


def test_status_shows_the_cell_that_a_run_is_in(tmp_path):
    folder = running(tmp_path, "completed", "running", "pending")
    with sweep.Events(tmp_path, 2, as_json=True) as said:
        said.say("started", job="a", folder=folder)
        said.say("started", job="b", folder=str(tmp_path / "none"))
    assert sweep.status(tmp_path)["cells"] == {"a": (2, 3), "b": None}
    shown = CliRunner().invoke(cli.app, ["status", str(tmp_path)]).output
    assert re.search(r"running for \d s, cell 2/3: a\n  running for \d s: b\n", shown)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_each_run_with_its_cell_and_what_failed_stays(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"COLUMNS": "120", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    odd = "2_2_isolation data=[/red]\x1b[2J.csv seeds=[1]"
    with sweep.Events(tmp_path, 3) as said:
        said.say("cached", job="c", folder="")
        said.say("started", job=odd, folder=running(tmp_path, "completed", "running", "pending"))
        running(tmp_path, "completed", "completed", "running")
        said._bar._draw()
        said.say("failed", job=odd, folder="", error="one\ntwo", seconds=1.0)
        said._bar._draw()
        said.say("started", job="z", folder=str(tmp_path / "none"))
        said.say("finished", failed=1, left=0)
    shown = terminal.getvalue()
    assert "cell 3/3, 0:00" in shown
    assert "runs" in shown
    assert "2/3, about 0:0" in shown, "with the time left after the first that took work"
    assert "data=[/red]\\x1b[2J.csv" in shown, "neither rich nor the terminal takes a value for a command"
    assert "\x1b[2J" not in shown
    assert "failed 2_2_isolation" in shown
    assert "one two" in shown


def test_a_terminal_that_is_gone_changes_nothing_of_a_sweep(tmp_path, monkeypatch):
    class Gone(Terminal):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Gone())
    with sweep.Events(tmp_path, 2) as said:
        Gone.gone = True
        for job in "ab":
            said.say("started", job=job, folder=str(tmp_path / "none"))
            said.say("failed", job=job, folder="", error="wrong")
        said.ending()
        said.say("interrupted")
    assert sweep.status(tmp_path)["failed"] == 2


@given(text=st.text())
def test_what_is_shown_of_a_text_is_one_line_that_no_terminal_obeys(text):
    shown = progress.plain(text)
    assert len(f"{shown}.".splitlines()) == 1
    assert shown.isprintable()


@given(text=st.text(), width=st.integers(2, 40))
def test_a_long_name_keeps_both_ends_and_fits(text, width):
    shown = progress.shortened(text, width)
    assert len(shown) == min(len(text), width)
    assert shown == text or (shown[: width // 2 - 1] + "…" + text[len(text) - width + width // 2 :]) == shown


def test_durations_are_told_as_on_a_clock():
    assert [progress.clock(seconds) for seconds in (0.0, 59.6, 61.0, 3600.0, 90061.0)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "25:01:01",
    ]
