"""Section 2.1: the three flows by layer, saliency of one prompt, a prompt with its roles coloured."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from anchorlens.figures.style import (
    BLUE,
    GREY,
    VERMILLION,
    finish,
    line,
    missing,
    number,
    over_seeds,
    panels,
    ranges,
    rows,
    ticks,
)

FLOWS = {
    "S_wp": ("text → label word", BLUE),
    "S_pq": ("label word → target", VERMILLION),
    "S_ww": ("all other pairs", GREY),
}
ROLES = {
    "TEXT": ("text", "transparent"),
    "TEMPLATE": ("template", "rgba(128,128,128,0.25)"),
    "LABEL": ("label word, further tokens", "#a6d3ee"),
    "ANCHOR": ("label word (anchor)", "#56B4E9"),
    "TARGET": ("target", "#E69F00"),
    "START": ("start token", "#f0c7d8"),
}
_FAINT = ("TEXT", "TEMPLATE")  # whose background lets through what is behind: the page's own ink


def information_flow(frame: pd.DataFrame, twin: pd.DataFrame | None = None) -> go.Figure:
    """The three flows by layer (figures 3, 7, 9): each one's share, and its mean saliency on a logarithmic axis.

    Each seed is averaged over its examples and, on the left, divided by the sum of the three; the line is the mean over
    seeds, the band from the lowest to the highest seed. ``twin`` is the same frame from the untrained control, dashed.
    Needs columns seed, layer, flow, value. A value of 0 has no place on the right: its point is left out, and a
    sentence above says so.
    """
    figure = panels(("share of the three flows", "mean saliency"), horizontal_spacing=0.12)
    notes, zeros, last = [], [], 1
    for data, control in ((frame, False), (twin, True)):
        if data is None:
            continue
        table = rows("information_flow", data, ("seed", "layer", "flow", "value"), flow=FLOWS)
        absent = [flow for flow in FLOWS if not (table["flow"] == flow).any()]
        if absent:
            raise ValueError(
                f"information_flow: the frame has no rows of {', '.join(absent)}; shares need all three flows."
            )
        notes += missing(table, {"value": "value, untrained control" if control else "value"})
        last = max(last, int(table["layer"].max()) + 1)
        values = table.assign(value=number(table["value"]))
        mean = values.pivot_table(index=["seed", "layer"], columns="flow", values="value", aggfunc="mean")
        share = mean.div(mean.sum(axis=1), axis=0)
        for flow, (words, colour) in FLOWS.items():
            name = f"{words}, untrained control" if control else words
            shown = {"dash": "dash", "thin": True, "symbol": None, "band": False} if control else {}
            level = over_seeds(mean[flow], ["layer"])
            zero = level.index[level["mean"] == 0] + 1
            if len(zero):
                zeros.append(f"{name} in layer {ranges(zero)}")
            level = level[["mean", "low", "high"]].where(level > 0).assign(seeds=level["seeds"])
            line(figure, over_seeds(share[flow], ["layer"]), name, colour, col=1, shift=1, **shown)
            line(figure, level, name, colour, col=2, shift=1, **shown)
    if zeros:
        notes.append(f"Not drawn on the right, since 0 has no place on a logarithmic axis: {'; '.join(zeros)}.")
    figure.update_xaxes(title_text="layer (1 = first)", tickvals=ticks(last))
    figure.update_yaxes(title_text="share", range=[0, 1.02], col=1)
    figure.update_yaxes(title_text="mean saliency |Σ A·∂L/∂A|", type="log", exponentformat="power", dtick=1, col=2)
    return finish(figure, width=960, height=430, notes=notes, hovermode="x unified")


def saliency_maps(maps: np.ndarray, tokens: Sequence[str], roles: Sequence[str], layers: Sequence[int]) -> go.Figure:
    """Saliency I_l(i, j) of one prompt for some ``layers``, as heat maps side by side.

    ``maps`` [layer query key]; rows take in information, columns give it; the diagonal is left out, as in the three
    flows. Each layer has its own scale, and colours follow the square root, since few cells hold most of the saliency.
    Label words are marked blue, the target orange. What comes from a start token is left out, as in the three flows.
    """
    titles = [f"layer {layer + 1}" for layer in layers]
    figure = make_subplots(cols=len(layers), subplot_titles=titles, horizontal_spacing=0.02, shared_yaxes=True)
    names = [html.escape(token).replace("\n", "⏎") or "·" for token in tokens]
    marked = {"ANCHOR": "#0072B2", "TARGET": "#D55E00"}
    ticks = [i for i, role in enumerate(roles) if role in marked]
    said = {i: "target" if roles[i] == "TARGET" else names[i] for i in ticks}
    text = [f'<span style="color:{marked[roles[i]]}"><b>{said[i]}</b></span>' for i in ticks]
    own = np.array([role != "START" for role in roles])
    hover = [[f"{names[j]} → {names[i]}" for j in range(len(names))] for i in range(len(names))]
    for col, layer in enumerate(layers, start=1):
        lower = np.where(np.tril(np.ones_like(maps[layer], dtype=bool), -1) & own, maps[layer], np.nan)
        heat = go.Heatmap(
            z=np.sqrt(lower / (np.nanmax(lower) or 1)),
            customdata=lower,
            text=hover,
            hovertemplate="%{text}<br>%{customdata:.2e}<extra></extra>",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            showscale=False,
        )
        figure.add_trace(heat, row=1, col=col)
    # positions are numbers: words as categories would merge repeated tokens
    figure.update_xaxes(tickvals=ticks, ticktext=text, tickangle=60, title_text="from")
    figure.update_yaxes(tickvals=ticks, ticktext=text, autorange="reversed")
    figure.update_yaxes(title_text="to", col=1)
    return figure.update_layout(template="simple_white", width=330 * len(layers), height=420, margin={"t": 40, "b": 90})


def roles(tokens: Sequence[str], roles: Sequence[str]) -> str:
    """A prompt as HTML, each token on the colour of its role (names as in ``ROLES``), with a legend."""

    def box(text: str, role: str, more: str = "") -> str:
        ink = "" if role in _FAINT else "color:#111;"
        style = f"background:{ROLES[role][1]};{ink}border-radius:2px;padding:1px 0{more}"
        shown = html.escape(text).replace("\n", "⏎<br>")
        return f'<span style="{style}" title="{ROLES[role][0]}">{shown}</span>'

    legend = " ".join(box(f" {ROLES[role][0]} ", role, ";white-space:pre") for role in ROLES if role in set(roles))
    body = "".join(box(token, role) for token, role in zip(tokens, roles, strict=True))
    return (  # on whatever is behind it, light or dark
        f'<div style="font:13px/1.7 monospace;padding:8px;white-space:pre-wrap">{body}'
        f'<div style="margin-top:8px">{legend}</div></div>'
    )
