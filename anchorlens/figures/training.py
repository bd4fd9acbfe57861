"""Section 3.1: what re-weighting label words brings, how it was learned, and which heads it changed."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from anchorlens.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    VERMILLION,
    Table,
    bars,
    finish,
    grid,
    line,
    missing,
    number,
    panels,
    rows,
    say,
    spread,
    ticks,
)

REWEIGHTED = {
    "vanilla": "plain prompt",
    "kshot": "more demonstrations",
    "beta": "label words re-weighted",
}
_SCORES = {"accuracy": ("accuracy", BLUE), "macro_f1": ("macro-F1", GREEN)}
_MOST_DEMONSTRATIONS = 6


def reweighting(scores: pd.DataFrame) -> go.Figure:
    """Accuracy and macro-F1 as the prompt is, with more demonstrations, and with label words re-weighted (table 1).

    Bars are means over seeds, whiskers go from the lowest to the highest seed. The dotted line is the accuracy of
    always answering the commonest class, without which an accuracy says little. Needs columns seed, arm (vanilla,
    kshot, beta), n, accuracy, macro_f1, majority, class_counts.
    """
    columns = ("seed", "arm", "n", "accuracy", "macro_f1", "majority", "class_counts")
    table = rows("reweighting", scores, columns, arm=REWEIGHTED)
    arms = [arm for arm in REWEIGHTED if (table["arm"] == arm).any()]
    figure = panels(("answers on new queries",))
    for n, (measure, (name, colour)) in enumerate(_SCORES.items()):
        places = [i + (n - 0.5) * 0.4 for i in range(len(arms))]
        bars(figure, spread(table, measure, ["arm"]).loc[arms], places, name, colour)
    majority = number(table["majority"]).groupby(table["seed"]).mean().mean()
    dotted = {"mode": "lines", "line": {"color": BLACK, "dash": "dot", "width": 1.5}, "hovertemplate": "%{y:.3g}"}
    always = go.Scatter(x=[-0.5, len(arms) - 0.5], y=[majority] * 2, name="always the commonest class", **dotted)
    figure.add_trace(always, row=1, col=1)
    figure.update_xaxes(
        tickvals=list(range(len(arms))),
        ticktext=[REWEIGHTED[arm] for arm in arms],
        range=[-0.5, len(arms) - 0.5],
        ticks="",
    )
    figure.update_yaxes(title_text="share, 0 to 1", range=[0, 1.12], tickvals=np.linspace(0, 1, 6))
    notes = [_counts(table), *missing(table, {name: words for name, (words, _) in _SCORES.items()})]
    return finish(figure, width=760, height=430, notes=notes)


def _counts(scores: Table) -> str:
    """How many queries of each class the scores stand on."""
    each = scores.drop_duplicates(["seed", "n", "class_counts"]).sort_values("seed")
    if len(each["class_counts"].unique()) == 1:
        return f"Queries per seed: {_range(each['n'])}; of each class, in class order: {each['class_counts'].iloc[0]}."
    said = [f"seed {seed}: {counts}" for seed, counts in zip(each["seed"], each["class_counts"], strict=True)]
    more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
    return f"Queries per seed: {_range(each['n'])}; of each class, in class order: {'; '.join(said[:3])}{more}."


def _range(values: Table) -> str:
    return f"{values.min()}" if values.min() == values.max() else f"{values.min()} to {values.max()}"


def losses(frame: pd.DataFrame) -> go.Figure:
    """Mean training loss of each epoch of re-weighting.

    The line is the mean over seeds, the band from the lowest to the highest seed. Needs columns seed, epoch (from 0),
    loss.
    """
    table = rows("losses", frame, ("seed", "epoch", "loss"))
    figure = panels(("training the weights of label words",))
    if number(table["loss"]).notna().any():
        line(figure, spread(table, "loss", ["epoch"]), "mean loss", VERMILLION, shift=1)
    else:
        say(figure, "no loss is a finite number")
        figure.update_yaxes(range=[0, 1], tickvals=[])
    last = int(table["epoch"].max()) + 1
    figure.update_xaxes(title_text="epoch (1 = first)", tickvals=ticks(last), range=[0.5, last + 0.5])
    figure.update_yaxes(title_text="mean cross-entropy (nats)", rangemode="tozero")
    return finish(figure, width=640, height=400, notes=missing(table, {"loss": "finite loss"}), showlegend=False)


def beta(frame: pd.DataFrame) -> go.Figure:
    """The learned β of each layer and head: the target's attention to a label word is multiplied by exp(β).

    Red: attended more than before; blue: less. The first map is the mean over seeds and demonstrations; with at most 6
    demonstrations one map for each follows (mean over seeds, in prompt order; which label comes first may differ by
    seed). Needs columns seed, layer, head, demo, beta.
    """
    table = rows("beta", frame, ("seed", "layer", "head", "demo", "beta"))
    demos = sorted(table["demo"].unique())
    maps = {"mean of all demonstrations" if len(demos) > 1 else "the demonstration": table}
    if 1 < len(demos) <= _MOST_DEMONSTRATIONS:
        maps |= {f"demonstration {demo + 1}": table[table["demo"] == demo] for demo in demos}
    layers, heads = int(table["layer"].max()) + 1, int(table["head"].max()) + 1
    grids = [grid(shown, "beta", "layer", "head", (layers, heads)) for shown in maps.values()]
    extreme = max(float(np.nanmax(np.abs(each), initial=0.0)) for each in grids)
    lines = -(-len(maps) // 4)
    cols = -(-len(maps) // lines)
    tall = 260 * lines + 95 * (lines - 1)
    gaps = {"horizontal_spacing": 0.16 / cols, "vertical_spacing": 95 / tall}
    figure = panels(list(maps), lines=lines, **gaps)
    for i, each in enumerate(grids):
        row, col = i // cols + 1, i % cols + 1
        heat = go.Heatmap(
            z=each,
            x=np.arange(heads) + 1,
            y=np.arange(layers) + 1,
            coloraxis="coloraxis",
            hovertemplate="layer %{y}, head %{x}: %{z:.3g}<extra></extra>",
        )
        figure.add_trace(heat, row=row, col=col)
        # a narrow axis would otherwise be ticked between whole numbers
        figure.update_xaxes(
            title_text="head (1 = first)", tickvals=ticks(heads, 6), range=[0.5, heads + 0.5], row=row, col=col
        )
        figure.update_yaxes(tickvals=ticks(layers, 9), range=[0.5, layers + 0.5], row=row, col=col)
        if i % cols == 0:
            figure.update_yaxes(title_text="layer (1 = first)", row=row, col=col)
    figure.update_layout(
        coloraxis={
            "colorscale": "RdBu_r",
            "cmin": -(extreme or 1),
            "cmax": extreme or 1,
            "colorbar": {"title": "β", "thickness": 14},
        },
        plot_bgcolor="#cccccc",
    )
    notes = missing(table, {"beta": "finite β"})
    if any(np.isnan(each).any() for each in grids):
        notes.append("Grey: no β was learned there.")
    return finish(figure, width=max(460, 260 * cols + 130), height=tall + 110, notes=notes, margin={"b": 65})
