"""Draw ``docs/scaling.png`` from ``docs/scaling.json``, which ``python -m tests.benchmarks.scaling`` measures."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import plotly.graph_objects as go

from anchorlens.figures import style

FOLDER = Path(__file__).parent
PANELS = {
    "demonstrations": ("demonstrations", "demonstrations before {queries} queries"),
    "queries": ("queries behind the same demonstrations", "queries behind {demonstrations} demonstrations"),
    "layers": ("layers", "layers; {queries} queries, {demonstrations} demonstrations"),
}
TICKS = [digit * power for power in (0.001, 0.01, 0.1, 1, 10, 100) for digit in (1, 2, 5)]


def figure(told: dict[str, Any]) -> go.Figure:
    """Seconds per query against each of three sizes, beside operations by formula at one rate for all panels."""
    points, size, shape, machine = told["points"], told["size"], told["shape"], told["machine"]
    rate = median(point["operations"] / point["seconds"] for point in points)
    given = {"queries": size["examples"], "demonstrations": size["demonstrations"]}
    drawn = style.panels([title.format(**given) for _, title in PANELS.values()], shared_yaxes=True)
    for col, (panel, (axis, _)) in enumerate(PANELS.items(), start=1):
        own = [point for point in points if point["panel"] == panel]
        x = [point["value"] for point in own]
        for name, key, colour, dash in (
            ("by formula, whole prompts", "whole", style.GREY, "dot"),
            ("by formula, demonstrations once", "operations", style.BLUE, "solid"),
        ):
            y = [point[key] / rate for point in own]
            line = {"color": colour, "dash": dash}
            drawn.add_scatter(x=x, y=y, mode="lines", name=name, line=line, showlegend=col == 1, row=1, col=col)
        drawn.add_scatter(
            x=x,
            y=[point["seconds"] for point in own],
            error_y={
                "type": "data",
                "array": [point["high"] - point["seconds"] for point in own],
                "arrayminus": [point["seconds"] - point["low"] for point in own],
            },
            mode="markers",
            name="measured, demonstrations once",
            marker={"color": style.VERMILLION, "size": 8},
            showlegend=col == 1,
            row=1,
            col=col,
        )
        drawn.update_xaxes(title_text=axis, type="log", tickvals=x, ticktext=[*map(str, x)], row=1, col=col)
        drawn.update_yaxes(type="log", tickvals=TICKS, ticktext=[f"{tick:g}" for tick in TICKS], row=1, col=col)
    drawn.update_yaxes(title_text="CPU seconds per query", row=1, col=1)
    note = (
        f"What the target attends to (section 2.3), per query and with the demonstrations' share: width "
        f"{shape['width']}, {shape['layers']} layers where not said, demonstrations of {size['demo']} and queries of "
        f"{size['query'][0]} tokens, one thread of {machine['cpu']}. Lines: operations, at {rate / 1e9:.0f} billion a "
        "second in all panels."
    )
    return style.finish(drawn, width=1150, height=430, notes=[note])


def draw() -> Path:
    """Write the picture."""
    path = FOLDER / "scaling.png"
    figure(json.loads((FOLDER / "scaling.json").read_text())).write_image(path, scale=2)
    return path
