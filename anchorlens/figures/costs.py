"""Section 3.2, tables 3 and 6: how much faster a query is when little of the demonstrations is kept."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from anchorlens.figures.loyalty import ARMS
from anchorlens.figures.style import BLACK, GREY, PALETTE, Table, finish, missing, number, panels, rows, say

_CACHED, _ONCE = "icl_cached", "demonstrations"
TIMED = {"icl": "whole prompt", _CACHED: "whole prompt, demonstrations cached"} | ARMS
_COLOURS = {"icl": BLACK, _CACHED: GREY}
_BASELINES = {"icl": "the whole prompt", _CACHED: "cached demonstrations"}


def cost(frame: pd.DataFrame) -> go.Figure:
    """Seconds per query by batch size, and the speed-up over both baselines beside what arithmetic predicts.

    Left: seconds per query, on a logarithmic axis. Middle: times faster than the whole prompt (tables 3 and 6); right:
    times faster than a whole prompt whose demonstrations are cached, the honest baseline. Bars are measured, diamonds
    are ratios of floating-point operations. Reading the demonstrations once is left out, as in the paper: a sentence
    above says how long it takes where the frame has it (arm demonstrations). Needs columns arm (icl, icl_cached and
    what is compared), batch, seconds (per query), flops_ratio (whole prompt to arm), kv_bytes.
    """
    columns = ("arm", "batch", "seconds", "flops_ratio", "kv_bytes")
    timed = rows("cost", frame, columns, arm=(*TIMED, _ONCE))
    once = number(timed.loc[timed["arm"] == _ONCE, "seconds"]).mean()
    cells = rows("cost", timed[timed["arm"] != _ONCE], columns)
    numbers = ("seconds", "flops_ratio", "kv_bytes")
    table = cells.assign(**{column: number(cells[column]) for column in numbers})
    table = table.groupby(["arm", "batch"])[list(numbers)].mean()
    batches = sorted(int(batch) for batch in cells["batch"].unique())
    arms = [arm for arm in TIMED if arm in table.index.get_level_values("arm")]
    colours = _COLOURS | dict(zip([arm for arm in arms if arm not in _COLOURS], PALETTE * 2, strict=False))
    titles = ("time per query", *(f"times faster than {words}" for words in _BASELINES.values()))
    figure = panels(titles, horizontal_spacing=0.08)
    for arm in arms:
        here = table.loc[arm].reindex(batches)
        shown = go.Scatter(
            x=list(range(len(batches))),
            y=here["seconds"],
            name=_named(arm, here["kv_bytes"]),
            legendgroup=arm,
            mode="lines+markers",
            line={"color": colours[arm], "dash": "solid" if arm not in _COLOURS else "dash", "width": 2},
            marker_size=8,
            customdata=here["kv_bytes"].map(_size),
            hovertemplate="%{y:.3g} s, keys and values %{customdata}",
        )
        figure.add_trace(shown, row=1, col=1)
    for col, base in enumerate(_BASELINES, start=2):
        compared = [arm for arm in arms if arm not in list(_BASELINES)[: col - 1]]
        if base not in arms or not compared:
            figure.update_yaxes(range=[0, 1], tickvals=[], col=col)
        if base not in arms:
            say(figure, f"not measured: no rows of arm {base}", col=col, wide=24)
        elif not compared:
            say(figure, "nothing to compare", col=col, wide=24)
        else:
            _faster(figure, table, base, compared, batches, colours, col)
    figure.update_xaxes(
        title_text="queries at a time",
        tickvals=list(range(len(batches))),
        ticktext=[str(batch) for batch in batches],
        range=[-0.5, len(batches) - 0.5],
    )
    marks = [digit * 10.0**power for power in range(-6, 4) for digit in (1, 2, 5)]
    figure.update_yaxes(
        title_text="time per query", type="log", tickvals=marks, ticktext=[_time(mark) for mark in marks], col=1
    )
    for col in (2, 3):
        figure.update_yaxes(title_text="times faster (1 = as fast)", rangemode="tozero", col=col)
    notes = missing(cells, {"seconds": "measured seconds", "flops_ratio": "ratio of operations"})
    if np.isfinite(once):
        notes.append(f"Not counted: reading the demonstrations once, for all queries, takes {once * 1e3:.3g} ms.")
    return finish(figure, width=1180, height=450, notes=notes)


def _faster(
    figure: go.Figure,
    table: Table,
    base: str,
    compared: list[str],
    batches: list[int],
    colours: dict[str, str],
    col: int,
) -> None:
    """Bars: measured speed-up over ``base``; diamonds: the same by floating-point operations."""
    width = 0.8 / max(len(compared), 2)
    base_row = table.loc[base].reindex(batches)
    for n, arm in enumerate(compared):
        here = table.loc[arm].reindex(batches)
        places = np.arange(len(batches)) + (n - (len(compared) - 1) / 2) * width
        measured = base_row["seconds"].to_numpy() / here["seconds"].to_numpy()
        counted = here["flops_ratio"].to_numpy() / base_row["flops_ratio"].to_numpy()
        hidden = {"legendgroup": arm, "showlegend": False}
        bar = go.Bar(
            x=places,
            y=measured,
            width=[width * 0.9] * len(places),
            name=TIMED[arm],
            marker_color=colours[arm],
            hovertemplate="%{y:.3g} times, measured",
            **hidden,
        )
        diamond = go.Scatter(
            x=places,
            y=counted,
            name="by floating-point operations",
            legendgroup="operations",
            showlegend=col == 2 and n == 0,
            mode="markers",
            marker={"symbol": "diamond", "size": 9, "color": "white", "line": {"color": BLACK, "width": 1.5}},
            hovertemplate="%{y:.3g} times, by operations",
        )
        figure.add_trace(bar, row=1, col=col)
        figure.add_trace(diamond, row=1, col=col)
        for place, value in zip(places, measured, strict=True):
            if np.isnan(value):
                figure.add_annotation(text="n/a", x=place, y=0, yanchor="bottom", showarrow=False, row=1, col=col)
    figure.add_hline(1, line={"color": "#999999", "dash": "dot", "width": 1}, row=1, col=col)  # pyright: ignore


def _named(arm: str, sizes: Table) -> str:
    """The arm, and the size of the keys and values it keeps where that is one number."""
    held = sizes.dropna().unique()
    return f"{TIMED[arm]} ({_size(held[0])} of keys and values)" if len(held) == 1 and held[0] > 0 else TIMED[arm]


def _time(seconds: float) -> str:
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    return f"{seconds * scale:.0f} {unit}"


def _size(n_bytes: float) -> str:
    if np.isnan(n_bytes):
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
