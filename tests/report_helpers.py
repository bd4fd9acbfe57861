"""Stores made by hand, the sites of them, and what a page loads, links to or runs."""

import tempfile
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from anchorlens import report, store
from anchorlens.report import notebooks, pages

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "</title></textarea><svg onload=alert(1)>",
    "javascript:alert(1)",
    '"\' onmouseover="alert(1)',
    "{{ 7 * 7 }}{% raw %}",
    "\u202eright to left\u202c \u2067اقرأ\u2069",
    "👩‍🔬 emoji \u2028 and \u2029 separators",
    "w" * 3000,
    "<!-- <![CDATA[ ]]> -->",
    "&lt;b&gt; &amp;amp;",
)


FLOWS = ("S_wp", "S_pq", "S_ww")


PLOT = {"type": "scatter", "x": [1, 2], "y": [3, 4]}


def flows(values: dict[int, tuple[float, float, float]]) -> pd.DataFrame:
    """A frame of two prompts alike: ``values`` [layer] of S_wp, S_pq, S_ww."""
    rows = [
        (example, 42, layer, flow, v)
        for example in (0, 1)
        for layer, each in values.items()
        for flow, v in zip(FLOWS, each, strict=True)
    ]
    return pd.DataFrame(rows, columns=["example", "seed", "layer", "flow", "value"])


GATHERS = flows({0: (6.0, 1.0, 2.0), 1: (1.0, 8.0, 1.0), 2: (0.0, 9.0, 1.0)})


FLAT = flows({0: (1.0, 1.0, 2.0), 1: (1.0, 1.0, 1.0), 2: (0.0, 1.0, 1.0)})


def figure(**layout) -> dict:
    return {notebooks.PLOTLY: {"data": [PLOT], "layout": {"width": 700, **layout}}, "image/png": "aGVq"}


def book(*cells, **given) -> str:
    return nbformat.writes(new_notebook(cells=list(cells), metadata={"papermill": {"parameters": given}}))


def add(
    root: Path,
    notebook: str = "2_1_information_flow",
    key: str = "0123456789abcdef",
    *,
    cells=(),
    tables=None,
    weights="sha256 0123456789",
    **given,
) -> store.Run:
    """A finished run as a runner leaves one."""
    run = store.Run(root / notebook / key)
    run.partial.mkdir(parents=True)
    values = {"model": "toy", "task": "sst2", "seeds": [42], **given}
    for name, frame in (tables or {"results": GATHERS, "twin": FLAT}).items():
        frame.to_parquet(run.partial / f"{name}.parquet", index=False)
    shown = cells or [
        new_markdown_cell("# Title\n\nflow $S_{wp}$"),
        new_code_cell('figures.show(figure, run.folder, "flow")', outputs=[new_output("display_data", figure())]),
    ]
    (run.partial / "run.ipynb").write_text(book(*shown, **values))
    inputs = {"data": "sha256 1", "pool": "sha256 1"}
    said = {"notebook": notebook, "weights": weights, "inputs": inputs, "ran": "gpt_neox on cpu"}
    said |= {"parameters": {"prompts": "", "limit": 0, **values}, "finished": "2026-01-02T03:04:05+00:00"}
    run.finish({**said, "versions": {"torch": "2.13"}, "seconds": 1.5, "files": ["results.parquet", "run.ipynb"]})
    return run


class Page(HTMLParser):
    """What of a page is loaded, linked or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.hints: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("src", "data-src", "data-plotly", "srcset", "poster") or (tag == "link" and name == "href"):
                self.loaded.append(value)
            elif name == "href":
                self.links.append(value)
            elif name == "title":
                self.hints.append(value)
            elif name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.words.append(data)


def site(root: Path, out: Path, **more) -> dict[str, Page]:
    report.build(root, out, **more)
    return {str(path.relative_to(out)): Page(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}


def words_of(page: Page) -> str:
    """The words of a page, as they are read."""
    return " ".join("".join(page.words).split())


def only(out: Path, folder: str) -> Path:
    (path,) = (out / folder).iterdir()
    return path


def cells_of(*cells) -> list[notebooks.Cell]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "run.ipynb"
        path.write_text(book(*cells))
        return notebooks.read(path)


def compared(**more) -> pd.DataFrame:
    row = {
        **dict.fromkeys(pages.COMPARED, ""),
        **{"section": "2.1", "notebook": "2_1_information_flow", "item": "figure 3", "model": "toy", "claim": "a"},
        **{"value": 0.5, "low": 0.25, "high": np.nan, "n": 12, "holds": "yes", "verdict": "not comparable"},
    }
    return pd.DataFrame([{**row, **more}])
