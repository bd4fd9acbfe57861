"""What stands on the pages of a site: index, a page a section, a page a run, and the files that they refer to."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from anchorlens.report.answers import QUESTIONS, Answer, Question, answers, beside, rank
from anchorlens.report.notebooks import Cell, Figure, NotebookError, read
from anchorlens.report.runs import STATES, TOYS, WHOLE, Over, Stored, called, plainly, slug, toys

# Of the frame of published numbers: what was found, and whether it agrees with the paper.
COMPARED = (
    *("section", "notebook", "item", "model", "task", "claim", "published", "ours"),
    *("value", "low", "high", "n", "holds", "verdict", "why"),
)
MARKS = {
    **{"pass": "✓", "differs": "✗", "not run": "–", "not comparable": "○"},
    **{"yes": "✓", "in part": "~", "no": "✗", "cannot be told": "?"},
    **{"whole": "●", "failed": "✗", "unfinished": "◐", "damaged": "!"},
}  # beside the words, for a look
_TITLES = {"0_tour": "A tour on one prompt"}
_FLOW = "flow.html"  # in a run's folder: a page that stands alone
_MOST_ROWS = 50_000  # of a table, to be given as CSV


class ReportError(ValueError):
    """A store that has nothing to report, or a place where no report may be written."""


@dataclass(frozen=True)
class Table:
    """A stored table: its CSV, or where it lies in the store if that would be too large; or why it has neither."""

    name: str
    rows: int
    columns: tuple[str, ...]
    csv: str = ""
    stored: str = ""
    said: str = ""


@dataclass
class Page:
    """A run with what its page shows."""

    run: Stored
    model: str  # what it is called
    cells: list[Cell] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    said: str = ""  # why there is no notebook on it
    stored: str = ""  # its folder in the store, from a page one folder down
    notebook: str = ""  # likewise its notebook, where there is one
    flow: str = ""  # the live figure of one prompt, where the run has one

    @property
    def title(self) -> str:
        words = [self.model, self.run.value("task")]
        return " · ".join([*(word for word in words if word), self.run.key])

    @property
    def href(self) -> str:
        return f"runs/{self.run.slug}.html"

    @property
    def figures(self) -> list[Figure]:
        return [output.figure for cell in self.cells for output in cell.outputs if output.figure is not None]


def site(
    found: Sequence[Stored], compared: pd.DataFrame | None, out: Path, over: Over = plainly
) -> Iterator[tuple[str, bytes]]:
    """All files of a site but assets: their names in it, and what is in them."""
    if compared is not None and (missing := [name for name in COMPARED if name not in compared]):
        raise ReportError(f"the comparison lacks the columns {missing}; it has {list(compared)}.")
    told = [] if compared is None else [_row(each) for each in compared.to_dict("records")]
    pages: dict[str, Page] = {}
    names = called(found)
    for run in over(found, "reading runs", "run"):
        pages[run.slug] = each = Page(run, names[run.value("model")])
        yield from _files(each, out)
    answered = [
        (question, [beside(each, _held(told, question.notebook, each.model)) for each in answers(question, found)])
        for question in over(QUESTIONS, "answering", "question")
    ]
    for said in (each for _, own in answered for each in own):  # those of other weights have a sum in their names
        model = said.runs[0].value("model")
        names[said.model] = names[model] + said.model.removeprefix(model)
    sections = _sections(found, answered)
    common = {"sections": sections, "marks": MARKS, "any_compared": bool(told), "here": "", "called": names}
    common["toy_is"] = TOYS
    environment = _environment()

    def page(name: str, template: str, **more: Any) -> tuple[str, bytes]:
        up = "../" if "/" in name else ""
        return name, environment.get_template(template).render(**common, **more, up=up).encode()

    ordered = sorted(pages.values(), key=lambda each: _order(each.run.notebook))
    whole = [run for run in found if run.state == WHOLE]
    models = sorted({run.value("model") for run in whole or found} - {""}, key=rank)
    yield page(
        "index.html",
        "index.html",
        pages=ordered,
        answered=answered,
        models=models,
        any_whole=bool(whole),
        toys=toys(found),
        counts={state: n for state in STATES if (n := sum(run.state == state for run in found))},
        versions=_versions(found),
        verdicts=_count(row["verdict"] for row in told),
    )
    for section in over(sections, "writing sections", "page"):
        own = [row for row in told if row["notebook"] == section.notebook]
        name = section.href
        yield page(
            name,
            "section.html",
            section=section,
            compared=own,
            csv=f"data/{slug(section.notebook)}-compared.csv" if own else "",
            pages=[each for each in ordered if each.run.notebook == section.notebook],
            toys=toys(run for run in found if run.notebook == section.notebook),
        )
        if own and compared is not None:
            rows = pd.DataFrame(compared[compared["notebook"] == section.notebook])
            yield f"data/{slug(section.notebook)}-compared.csv", _csv(rows)
    for each in over(ordered, "writing runs", "page"):
        yield page(each.href, "run.html", page=each, toys=toys([each.run]))


def _held(told: Sequence[dict[str, Any]], notebook: str, model: str) -> list[str]:
    """Of each shape of a notebook that can be told of a model, whether it is seen; a comparison names folders alone."""
    named = (model, Path(model).name)
    rows = (row for row in told if row["notebook"] == notebook and row["model"] in named)
    return [row["holds"] for row in rows if row["holds"]]


@dataclass(frozen=True)
class Section:
    """A notebook whose runs are together on a page; ``question`` is None where it is none of the paper's sections."""

    notebook: str
    title: str
    question: Question | None
    answers: tuple[Answer, ...]
    runs: int

    @property
    def number(self) -> str:
        return self.question.section if self.question else ""

    @property
    def href(self) -> str:
        return f"sections/{slug(self.notebook)}.html"


def _sections(found: Sequence[Stored], answered: Sequence[tuple[Question, list[Answer]]]) -> list[Section]:
    """Those of the paper, whether they were run or not, then other notebooks."""
    of = {question.notebook: (question, tuple(said)) for question, said in answered}
    names = sorted({*of, *(run.notebook for run in found)}, key=_order)
    return [
        Section(
            name,
            of[name][0].asked if name in of else _TITLES.get(name, name),
            *(of.get(name) or (None, ())),
            sum(run.notebook == name for run in found),
        )
        for name in names
    ]


def _order(notebook: str) -> tuple[bool, str]:
    return notebook not in _TITLES and notebook not in {question.notebook for question in QUESTIONS}, notebook


def _files(page: Page, out: Path) -> Iterator[tuple[str, bytes]]:
    """Read a run into its page, and give the files that the page refers to."""
    run = page.run
    page.stored = _link(run.folder, out)
    try:
        page.cells = read(run.folder / "run.ipynb")
        page.notebook = _link(run.folder / "run.ipynb", out)
    except NotebookError as error:
        page.said = str(error)
    except OSError:
        page.said = "There is no notebook in its folder: it was stopped before one was written."
    for figure in page.figures:
        name = f"{run.slug}-{figure.number}"
        yield f"figures/{name}.js", f'anchorlens.figure("{name}",{figure.json});\n'.encode()
    if (run.folder / _FLOW).is_file():
        page.flow = f"flows/{run.slug}.html"
        yield page.flow, (run.folder / _FLOW).read_bytes()
    image = 0
    for cell in page.cells:
        for output in cell.outputs:
            if output.kind == "image":
                image += 1
                yield f"figures/{run.slug}-image-{image}.png", output.image
    for path in run.tables():
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:  # of a run from before sums were kept; pyarrow's errors are of these
            why = str(error).replace(f"{run.folder}{os.sep}", "")
            page.tables.append(Table(path.stem, 0, (), said=f"cannot be read ({why}); run it again with --force"))
            continue
        columns = tuple(map(str, frame.columns))
        if len(frame) > _MOST_ROWS:
            page.tables.append(Table(path.stem, len(frame), columns, stored=_link(path, out)))
            continue
        name = f"data/{run.slug}-{slug(path.stem)}.csv"
        page.tables.append(Table(path.stem, len(frame), columns, csv=name))
        yield name, _csv(frame)


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace")


def _link(path: Path, out: Path) -> str:
    """From a page one folder down to something in the store, where it lies now."""
    return quote(os.path.relpath(path.resolve(), out / "runs"))


def _row(told: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of the comparison, its interval in words."""
    numbers = [told[name] for name in ("value", "low", "high")]
    known = [isinstance(value, int | float | np.number) and bool(np.isfinite(value)) for value in numbers]
    interval = f"{numbers[1]:.4g} to {numbers[2]:.4g}" if known[1] and known[2] else ""
    return {**{str(name): value for name, value in told.items()}, "interval": interval}


def _versions(found: Sequence[Stored]) -> list[tuple[str, int]]:
    """What runs were made with, and how many with each."""
    said = [run.manifest.get("versions") for run in found]
    words = [", ".join(f"{name} {at}" for name, at in each.items()) for each in said if isinstance(each, dict)]
    return sorted(_count(words).items())


def _count(words: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


def _breakable(text: str) -> Markup:
    """A text that is rather broken behind a slash than within a word."""
    return escape(text).replace("/", Markup("/<wbr>"))


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("anchorlens.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["breakable"] = _breakable
    return made
