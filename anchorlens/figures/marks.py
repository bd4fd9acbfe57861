"""Marks where a measure is undefined: a gap in a line tells its reason."""

import numpy as np
import plotly.graph_objects as go

from anchorlens.figures.style import BLACK, Table, named, number, say, text

_MOST = 3


def undefined(figure: go.Figure, frame: Table, value: str, *, floor: float, who: dict[str, str], col: int = 1) -> None:
    """Where ``value`` is undefined in some layer, mark the axis at ``floor``; the legend names the reason in ``why``.

    A cross: undefined in all rows of that layer; a ring: in some of them, and the line shows the rest. ``who`` names
    the columns, with their words, that tell the rows of a layer apart. Undefined everywhere: a sentence in the middle.
    """
    lost = frame[number(frame[value]).isna()]
    if lost.empty:
        return
    reason = lost["why"].map(lambda why: why if isinstance(why, str) and why.strip() else "no reason was stored")
    if len(lost) == len(frame):
        commonest = reason.value_counts().index[:_MOST]
        say(figure, f"undefined in every layer: {'; '.join(commonest)}", col=col)
        return
    rare = ~reason.isin(list(reason.value_counts().index[:_MOST]))
    whole = lost.groupby("layer").size().reindex(lost["layer"]).to_numpy() == (
        frame.groupby("layer").size().reindex(lost["layer"]).to_numpy()
    )
    told = lost.assign(
        reason=reason.where(~rare, "other reasons (point at a mark)"),
        part=np.where(whole, "undefined", "undefined in part"),
        hover=[
            f"{text(why, 90)} ({', '.join(f'{words} {at}' for words, at in zip(who.values(), each, strict=True))})"
            for why, *each in zip(reason, *(lost[column] for column in who), strict=True)
        ],
    )
    before = named(figure)
    for (part, why), group in told.groupby(["part", "reason"]):
        hover = group.groupby("layer")["hover"].agg("<br>".join)
        name = f"{part}: {text(str(why), 90)}"
        marks = go.Scatter(
            x=hover.index + 1,
            y=[floor] * len(hover),
            name=name,
            legendgroup=name,
            showlegend=name not in before,
            mode="markers",
            marker={
                "symbol": "x" if part == "undefined" else "circle-open",
                "size": 8,
                "color": BLACK,
                "line_width": 1.5 if part != "undefined" else 0,
            },
            cliponaxis=False,
            text=hover,
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_trace(marks, row=1, col=col)
