"""What a cell prints is kept up to a size, and the rest counted; what it prints over is one line."""

import json
from pathlib import Path

import nbformat
import papermill
import pytest

from anchorlens.warm import cold, printing

CELLS = [
    "print('a' * 8_000_000); print('b' * 8_000_000)",
    "import sys\nfor n in range(50): print(f'\\r{n}', end='', flush=True)",
    "from IPython.display import HTML\ndisplay(HTML('<p>kept</p>'))\ndisplay('c' * 12_000_000)\n'd' * 3_000_000",
    "display(HTML('e' * 11_000_000))\ndisplay(HTML('<p>kept, too</p>'))\n'a value'",
    "'f' * 12_000_000",
]


class Stream:
    """As far as ``printing`` needs one."""

    parent_header = {"msg_id": "1"}  # noqa: RUF012

    def __init__(self) -> None:
        self.text, self.flushed = "", 0

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def limit(monkeypatch):
    monkeypatch.setattr(printing, "KEPT", 10)
    monkeypatch.setattr(printing, "_MESSAGE", 4)
    return printing._Limit(Stream)


def test_what_is_kept_and_what_is_left_out_is_all_that_was_printed(limit):
    stream = Stream()
    assert [limit.write(stream, "abcd"), limit.write(stream, "efghijkl"), limit.write(stream, "mn")] == [4, 8, 2]
    limit.ended(stream)
    assert stream.text.startswith("abcdefghij\n[This cell has printed 10 characters; what follows is left out.]\n")
    assert "\n[4 characters that this cell printed are left out." in stream.text


def test_every_cell_has_room_of_its_own_and_one_that_ends_within_it_says_nothing(limit):
    stream = Stream()
    for _ in range(3):
        limit.write(stream, "abcdefghij")
        limit.ended(stream)
    assert stream.text == "abcdefghij" * 3


def test_progress_goes_on_when_all_else_is_left_out(limit):
    stream = Stream()
    limit.write(stream, "x" * 20)
    limit.write(stream, "\r99 %")
    assert stream.text.endswith("\r99 %")


def test_lines_that_begin_as_progress_and_stay_take_room(limit):
    stream = Stream()
    for _ in range(9):
        limit.write(stream, "\r1234")
        limit.write(stream, "\n")
    limit.write(stream, "\r99 %\n")
    assert stream.text.count("\n\r1234") == 3, "after that each is written over the one before"
    assert "99 %" not in stream.text


def test_messages_without_end_take_room_too(limit):
    stream = Stream()
    for _ in range(9):
        limit.write(stream, "x")
        limit.flush(stream)
    assert stream.text.count("x") < 5
    assert stream.flushed < 4


def test_a_display_that_does_not_fit_is_left_out_and_says_so_once(limit):
    displays = printing._Displays()
    for _ in range(2):
        figure = {"image/png": b"12345", "text/plain": "f"}
        assert displays.kept("1", figure) is figure
        (said,) = displays.kept("1", figure).items()
        assert said == ("text/plain", "[A cell displays 10 characters; what is here beyond them is left out.]")
        assert displays.kept("1", {"application/json": {"a": "bcd"}}) == {}
        assert "[18 characters in 2 displays of this cell are left out." in displays.ended()
        assert displays.ended() == ""


def test_a_text_is_displayed_as_far_as_there_is_room(limit):
    displays = printing._Displays()
    assert displays.kept("1", {"text/plain": "abcdefgh"})["text/plain"].startswith("abcdef\n[A cell displays 10 ")
    assert displays.kept("1", {"text/plain": "i"}) == {}
    assert displays.kept("1", {"text/plain": "now"}, update=True) == {"text/plain": "now"}, "which replaces another"
    assert displays.kept("1", {"text/plain": "far too long"}, update=True) == {}
    assert displays.kept("2", {"text/plain": "j"}) == {"text/plain": "j"}, "of another cell"


def test_a_kernel_of_its_own_has_the_same_bound(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS])
    nbformat.write(notebook, tmp_path / "given.ipynb")
    path = str(tmp_path / "ran.ipynb")
    papermill.execute_notebook(str(tmp_path / "given.ipynb"), path, kernel_name="python3", progress_bar=False, **cold())
    bounded, progress, displayed, drawn, value = json.loads(Path(path).read_text())["cells"]
    text = "".join("".join(output["text"]) for output in bounded["outputs"])
    assert text.count("a") == pytest.approx(8_000_000, abs=100)
    assert text.count("b") == pytest.approx(2_000_000, abs=2000)
    assert "[6,000,002 characters that this cell printed are left out." in text
    assert ["".join(output["text"]) for output in progress["outputs"]] == ["\r49"]
    kept, cut, said = (shown(output) for output in displayed["outputs"])
    assert (kept, cut.count("c")) == ("<p>kept</p>", pytest.approx(10_000_000, abs=2000))
    assert "what is here beyond them is left out" in cut
    assert (
        "in 2 displays of this cell are left out. To have them all, let it write them to a file in the run's folder."
        in said
    )
    first, second, last, told = (shown(output) for output in drawn["outputs"])
    assert (first[:18], second, last) == ("[A cell displays 1", "<p>kept, too</p>", "'a value'")
    assert "[11,000,0" in told
    assert shown(value["outputs"][0]).count("f") == pytest.approx(10_000_000, abs=2000)
    assert "are left out." in shown(value["outputs"][1])


def shown(output: dict) -> str:
    data = output.get("data", {})
    return "".join(data.get("text/html") or data.get("text/plain") or output["text"])
