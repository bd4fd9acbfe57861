"""An executed notebook as parts of a page; its figures apart, to be drawn by the one plotly that all pages share."""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mistune
import nbformat
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from anchorlens.report.formulas import apart, together
from anchorlens.report.markup import harmless

PLOTLY = "application/vnd.plotly.v1+json"
MOST = 2_000_000  # bytes of figures in one run's page, and of any one text
_TRACES = frozenset(["scatter", "scattergl", "bar", "heatmap", "histogram", "box", "violin", "table", "contour", "pie"])
_NAME = re.compile(r"""run\.folder,\s*["'](\w{1,60})["']""")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_BAR = re.compile(r"\d+%\|.*\|")  # a bar of progress
_MARKDOWN = mistune.create_markdown(escape=True, plugins=["table", "strikethrough"])


@dataclass(frozen=True)
class Figure:
    """What plotly draws, as JSON that may stand in a script; ``number`` counts a notebook's from 1."""

    number: int
    name: str
    json: str
    width: int
    height: int


@dataclass(frozen=True)
class Output:
    """``kind`` is text, html, error, figure, image or left; ``said`` is escaped by the page unless it is Markup."""

    kind: str
    said: str = ""
    figure: Figure | None = None
    image: bytes = b""


@dataclass(frozen=True)
class Cell:
    """``kind`` is markdown, code or parameters; ``source`` may stand in a page."""

    kind: str
    source: Markup
    lines: int
    outputs: tuple[Output, ...] = ()


class NotebookError(ValueError):
    """A file that is no notebook."""


def read(path: Path) -> list[Cell]:
    """The cells of an executed notebook.

    Raises:
        NotebookError: if it is none, or cannot be read.
    """
    try:
        book = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        cells = [(str(cell["cell_type"]), str(cell["source"]), cell) for cell in book["cells"]]
    except FileNotFoundError as error:
        raise NotebookError("It ended before its notebook was stored.") from error
    except Exception as error:  # nbformat raises whatever its parsers do
        raise NotebookError(f"{path.name} cannot be read as a notebook ({type(error).__name__}: {error}).") from error
    found, figures, room = [], 0, MOST
    for kind, source, cell in cells:
        if "papermill-error-cell-tag" in ((cell.get("metadata") or {}).get("tags") or ()):
            continue  # papermill's own words on an error, which its cell shows
        if kind == "markdown":
            found.append(Cell(kind, markdown(source), 0))
        elif kind == "code":
            outputs = []
            names = _NAME.findall(source)
            for output in _outputs(cell.get("outputs") or ()):
                if output.kind == "figure" and output.figure is not None:
                    figures += 1
                    name = names.pop(0) if names else f"figure_{figures}"
                    size = len(output.figure.json)
                    if size > room:
                        said = f"The figure {name} takes {size / 1e6:.1f} MB, more than a page of this report may."
                        output = Output("left", said)
                    else:
                        room -= size
                        named = Figure(figures, name, output.figure.json, output.figure.width, output.figure.height)
                        output = Output("figure", figure=named)
                outputs.append(output)
            tags = (cell.get("metadata") or {}).get("tags") or ()
            given = {"parameters", "injected-parameters"} & set(map(str, tags))
            found.append(Cell("parameters" if given else "code", code(source), source.count("\n") + 1, tuple(outputs)))
    return found


def markdown(source: str) -> Markup:
    """Markdown as HTML; HTML in it is shown as text, and formulas become MathML."""
    text, formulas = apart(source)
    return Markup(together(harmless(str(_MARKDOWN(text))), formulas))


def code(source: str) -> Markup:
    """Python with its words marked."""
    shown = highlight(source[:MOST], PythonLexer(stripnl=False), HtmlFormatter(nowrap=True, classprefix="p-"))
    return Markup(shown)


def script(told: Any) -> str:
    """JSON that may stand in a script, whatever texts are in it."""
    text = json.dumps(told, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(text: str) -> str:
    """What a stream shows in the end: what was written over is gone, and so are bars of progress and colours."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in _ANSI.sub("", text).split("\n"))
    return "\n".join(line for line in lines if not _BAR.search(line)).strip("\n")


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> Iterator[Output]:
    streams: dict[str, str] = {}
    for output in outputs:
        kind = output.get("output_type")
        if kind == "stream":
            streams[str(output.get("name"))] = streams.get(str(output.get("name")), "") + str(output.get("text", ""))
            continue
        yield from _streams(streams)
        streams = {}
        if kind == "error":
            trace = output.get("traceback") or [f"{output.get('ename')}: {output.get('evalue')}"]
            yield Output("error", plain("\n".join(map(str, trace)))[:MOST])
        elif isinstance(output.get("data"), Mapping):
            yield _shown(output["data"])
    yield from _streams(streams)


def _streams(streams: Mapping[str, str]) -> Iterator[Output]:
    for said in map(plain, streams.values()):
        if said.strip():
            yield Output("text", said[:MOST])


def _shown(data: Mapping[str, Any]) -> Output:
    """The best of what a cell shows that a page from disk can show, too."""
    if PLOTLY in data:
        figure = _figure(data[PLOTLY])
        if figure is not None:
            return Output("figure", figure=figure)
    if "image/png" in data:
        try:
            return Output("image", image=base64.b64decode(str(data["image/png"])))
        except ValueError:
            return Output("left", "An image cannot be read.")
    if "text/html" in data and "<iframe" in str(data["text/html"])[:200]:
        return Output("left", "What a cell shows here in a frame is a page of its own: see the links at the top.")
    if "text/html" in data:
        return Output("html", harmless(str(data["text/html"])[:MOST]))
    if "text/markdown" in data:
        return Output("html", markdown(str(data["text/markdown"])))
    return Output("text", plain(str(data.get("text/plain", "")))[:MOST])


def _figure(told: Any) -> Figure | None:
    """A figure that loads nothing; None where it is none that this plotly can draw so."""
    if not isinstance(told, Mapping) or not isinstance(told.get("data"), list):
        return None
    if any(not isinstance(trace, Mapping) or trace.get("type", "scatter") not in _TRACES for trace in told["data"]):
        return None
    said: Any = told.get("layout")
    layout = dict(said) if isinstance(said, Mapping) else {}
    for name in ("images", "updatemenus", "sliders"):
        layout.pop(name, None)
    own: Any = layout.get("meta")
    if layout.get("width") is None and isinstance(own, Mapping):
        layout["width"] = own.get("width")  # of one that takes the width of its place
    template = layout.get("template")
    if isinstance(template, Mapping):
        layout["template"] = {"layout": _without_images(template.get("layout")), "data": template.get("data") or {}}
    try:
        text = script({"data": told["data"], "layout": layout})
    except (TypeError, ValueError):
        return None
    sizes = [value if isinstance(value := layout.get(name), int | float) else 0 for name in ("width", "height")]
    width, height = (int(min(max(size or usual, 200), 3000)) for size, usual in zip(sizes, (800, 450), strict=True))
    return Figure(0, "", text, width, height)


def _without_images(layout: Any) -> dict[str, Any]:
    return {name: value for name, value in layout.items() if name != "images"} if isinstance(layout, Mapping) else {}


def lines(text: str) -> Markup:
    """Text with its line breaks."""
    return Markup("<br>").join(escape(line) for line in text.split("\n"))
