"""What the figures share: colours, a check of the frame, seeds averaged, lines with a band, bars with whiskers."""

import html
import textwrap
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito's palette: told apart with any colour vision.
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, GREY, BLACK = "#56B4E9", "#CC79A7", "#737373", "#111111"
# A DataFrame or a Series: type checkers lose track of what selecting from them gives.
Table: TypeAlias = Any
_CELL = 720  # pixels that a notebook's cell has at least, on a small screen
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)


def rows(figure: str, frame: pd.DataFrame, columns: Iterable[str], **known: Iterable[object]) -> Table:
    """``frame``, once it has all ``columns``, at least one row, and in the ``known`` columns only known values."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"{figure}: the frame has no column {', '.join(map(repr, missing))}; "
            f"it holds {', '.join(map(str, frame.columns)) or 'none'}. Give the table as the store holds it."
        )
    if frame.empty:
        raise ValueError(f"{figure}: the frame has no rows; there is nothing to draw. Give a finished run's table.")
    for column, values in known.items():
        strange = sorted(set(frame[column].map(str)) - set(map(str, values)))
        if strange:
            raise ValueError(
                f"{figure}: column {column!r} holds {', '.join(map(repr, strange))}; "
                f"it may hold {', '.join(map(str, values))}. Leave other rows out first."
            )
    return frame


def choose(figure: str, frame: Table, column: str, wanted: int | None, usual: int | None) -> int:
    """One value of ``column``: the ``wanted`` one, else the only one, else the ``usual`` one where the frame has it."""
    held = sorted(int(value) for value in frame[column].unique())
    if wanted is None:
        wanted = held[0] if len(held) == 1 else usual
    if wanted not in held:
        said = f"{column}={wanted} is not in" if wanted is not None else f"say {column}=, one of those in"
        raise ValueError(f"{figure}: {said} this frame; it holds {column} {', '.join(map(str, held))}.")
    return int(wanted)


def spread(frame: Table, value: str, by: Sequence[str]) -> Table:
    """Mean over rows for each seed, then over seeds: columns mean, low, high, seeds, indexed by ``by``."""
    finite = frame.assign(**{value: number(frame[value])})
    return over_seeds(finite.groupby(["seed", *by])[value].mean(), by)


def grid(frame: Table, value: str, down: str, across: str, shape: tuple[int, int]) -> np.ndarray:
    """Means as ``spread`` gives them, in rows ``down`` and columns ``across``, both counted from 0."""
    cells = np.full(shape, np.nan)
    mean = spread(frame, value, [down, across])["mean"]
    for (i, j), each in mean.items():
        cells[i, j] = each
    return cells


def over_seeds(each: Table, by: Sequence[str]) -> Table:
    """``spread`` of a series that has one value for each seed and ``by`` already."""
    return each.groupby(list(by)).agg(mean="mean", low="min", high="max", seeds="count")


def number(values: Table) -> Table:
    """As float64, with NaN for None, infinities and what is missing."""
    if values.dtype == object:
        values = values.map(lambda each: np.nan if pd.isna(each) else float(each))
    numbers = values.astype(float)
    return numbers.where(np.isfinite(numbers))


def panels(titles: Sequence[str], *, lines: int = 1, **how: Any) -> go.Figure:
    """An empty figure with a panel for each title, in ``lines`` rows."""
    cols = -(-len(titles) // lines)
    return make_subplots(rows=lines, cols=cols, subplot_titles=[text(title, 60) for title in titles], **how)


def finish(
    figure: go.Figure,
    *,
    width: int,
    height: int,
    notes: Sequence[str] = (),
    margin: Mapping[str, int] = MappingProxyType({}),
    **layout: Any,
) -> go.Figure:
    """The look of every figure; ``notes`` are sentences above it."""
    said = [line for note in notes for line in textwrap.wrap(note, max(30, min(width, _CELL) // 8))]
    style = {
        "template": "simple_white",
        "width": width,
        "height": height + 18 * len(said),
        "margin": {"t": (58 if said else 45) + 18 * len(said), "b": 110} | dict(margin),
        "legend": {"orientation": "h", "y": -0.22, "x": 0},
    }
    if said:
        style["title"] = {
            "text": "<br>".join(html.escape(line) for line in said),
            "font_size": 13,
            "x": 0.01,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 12 if len(said) == 1 else 20},
        }
    return figure.update_layout({**style, **layout})


def line(
    figure: go.Figure,
    table: Table,
    name: str,
    colour: str,
    *,
    col: int = 1,
    shift: int = 0,
    dash: str = "solid",
    thin: bool = False,
    symbol: str | None = "circle",
    band: bool = True,
    legend: bool | None = None,
) -> None:
    """The mean over seeds with a band from the lowest to the highest; ``table`` as ``spread`` gives it.

    A point whose neighbours are undefined has no band beside it: it gets whiskers.
    """
    table = table.sort_index()
    x = table.index.to_numpy() + shift
    several = band and bool((table["seeds"] > 1).any())
    whole = table[["mean", "low", "high"]].notna().all(axis=1).to_numpy()
    runs = [
        run for run in np.split(np.arange(len(x)), np.flatnonzero(np.diff(whole)) + 1) if len(run) and whole[run[0]]
    ]
    alone = np.zeros(len(x), dtype=bool)
    for run in runs if several else []:
        if len(run) == 1:
            alone[run] = True
            continue
        for edge, fill in (("high", None), ("low", "tonexty")):
            figure.add_trace(
                go.Scatter(
                    x=x[run],
                    y=table[edge].to_numpy()[run],
                    mode="lines",
                    line_width=0,
                    fill=fill,
                    fillcolor=faint(colour),
                    showlegend=False,
                    hoverinfo="skip",
                    legendgroup=name,
                ),
                row=1,
                col=col,
            )
    figure.add_trace(
        go.Scatter(
            x=x,
            y=table["mean"],
            name=name,
            mode="lines+markers" if symbol else "lines",
            marker={"symbol": symbol or "circle", "size": 7},
            line={"color": colour, "dash": dash, "width": 1.5 if thin else 2.5},
            error_y=whiskers(table.where(pd.Series(alone, index=table.index))) if alone.any() else None,
            hovertemplate="%{y:.3g}",
            showlegend=col == 1 if legend is None else legend,
            legendgroup=name,
        ),
        row=1,
        col=col,
    )


def whiskers(table: Table) -> dict[str, object] | None:
    """Error bars from the lowest to the highest seed, where there is more than one."""
    if not (table["seeds"] > 1).any():
        return None
    up, down = (table["high"] - table["mean"]).clip(lower=0), (table["mean"] - table["low"]).clip(lower=0)
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5, "width": 4}


def bars(
    figure: go.Figure,
    table: Table,
    places: Sequence[float],
    name: str,
    colour: str,
    *,
    col: int = 1,
    width: float | Sequence[float] = 0.36,
    flat: bool = False,
    hollow: bool = False,
    names: Sequence[str] | None = None,
    legend: bool | None = None,
) -> None:
    """Bars at ``places``, one for each row of ``table`` (as ``spread`` gives it), with their values and whiskers.

    Lying ones with ``flat``. Where the mean is undefined the place says so.
    """
    mean = table["mean"].to_numpy()
    along = {"x": mean, "y": places} if flat else {"x": places, "y": mean}
    figure.add_trace(
        go.Bar(
            **along,
            width=[width] * len(mean) if isinstance(width, float) else width,
            orientation="h" if flat else "v",
            name=name,
            legendgroup=name,
            showlegend=col == 1 if legend is None else legend,
            marker={
                "color": colour,
                "line": {"color": colour, "width": 1},
                "pattern": {"shape": "/" if hollow else "", "bgcolor": "white", "fgcolor": colour},
            },
            error_x=whiskers(table) if flat else None,
            error_y=None if flat else whiskers(table),
            customdata=list(names) if names is not None else None,
            hovertemplate=("%{customdata}<br>" if names is not None else "") + ("%{x:.3g}" if flat else "%{y:.3g}"),
        ),
        row=1,
        col=col,
    )
    drawn: Any = figure.data[-1]
    look = {"showarrow": False, "font": {"size": 11}, "bgcolor": "rgba(255,255,255,0.75)", "borderpad": 0}
    look |= {"xref": drawn.xaxis or "x", "yref": drawn.yaxis or "y", "xshift": 3 if flat else 0}
    written = []  # beyond the whisker, where nothing covers it
    for place, value, tip in zip(places, mean, table["high"].to_numpy(), strict=True):
        said, end = ("undefined", 0.0) if np.isnan(value) else (f"{value:.2f}", max(value, tip))
        at = {"x": end, "y": place, "xanchor": "left"} if flat else {"x": place, "y": end, "yanchor": "bottom"}
        written.append(go.layout.Annotation({**look, **at, "text": said}))
    layout: Any = figure.layout
    layout.annotations += tuple(written)  # at once: each addition checks all that are there already


def say(figure: go.Figure, said: str, *, col: int = 1, row: int = 1, wide: int = 40) -> None:
    """A sentence in the middle of a panel that has nothing to draw."""
    middle = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.5}
    broken = "<br>".join(html.escape(part) for part in textwrap.wrap(said, wide))
    # a subplot without a trace has no axes to stand on
    figure.add_trace(go.Scatter(x=[None], y=[None], showlegend=False, hoverinfo="skip"), row=row, col=col)
    figure.add_annotation(text=broken, showarrow=False, font={"size": 13, "color": GREY}, row=row, col=col, **middle)


def named(figure: go.Figure) -> set[str]:
    """The names of the traces so far, for a legend that names each thing once."""
    traces: Any = figure.data
    return {trace.name for trace in traces if trace.name}


def missing(frame: Table, columns: dict[str, str]) -> list[str]:
    """A sentence for each of ``columns`` (name: its words) that lacks numbers in some rows, for ``finish``."""
    lacking = {words: int(number(frame[column]).isna().sum()) for column, words in columns.items()}
    return [f"{n} of {len(frame)} rows have no {words}; they are left out." for words, n in lacking.items() if n]


def ranges(numbers: Iterable[int]) -> str:
    """1, 2, 3, 7 as "1–3, 7"."""
    held = np.unique(np.fromiter(numbers, dtype=int))
    runs = np.split(held, np.flatnonzero(np.diff(held) > 1) + 1)
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def ticks(n: int, most: int = 12) -> list[int]:
    """Whole numbers from 1 to ``n`` for an axis, at most ``most`` and 1."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, n) if n <= most * step)
    return sorted({1, *range(step, n + 1, step)})


def text(said: Hashable, most: int = 18) -> str:
    """Any text as one short line that plotly shows as it is: a label word may look like HTML."""
    one_line = str(said).strip().replace("\n", "⏎") or repr(said)
    return html.escape(one_line if len(one_line) <= most else one_line[: most - 1] + "…")


def faint(colour: str, alpha: float = 0.18) -> str:
    """The colour #rrggbb, see-through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
