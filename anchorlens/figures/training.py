"""Section 3.1: what re-weighting label words brings, how it was learned, and which heads it changed."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from anchorlens.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    VERMILLION,
    bars,
    finish,
    line,
    missing,
    number,
    panels,
    rows,
    say,
    spread,
)

REWEIGHTED = {
    "vanilla": "as it is",
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
    rows("reweighting", scores, columns, arm=REWEIGHTED)
    arms = [arm for arm in REWEIGHTED if (scores["arm"] == arm).any()]
    figure = panels(("answers on new queries",))
    for n, (measure, (name, colour)) in enumerate(_SCORES.items()):
        places = [i + (n - 0.5) * 0.4 for i in range(len(arms))]
        bars(figure, spread(scores, measure, ["arm"]).loc[arms], places, name, colour)
    majority = number(scores["majority"]).groupby(scores["seed"]).mean().mean()
    dotted = {"mode": "lines", "line": {"color": BLACK, "dash": "dot", "width": 1.5}, "hovertemplate": "%{y:.3g}"}
    figure.add_trace(
        go.Scatter(x=[-0.5, len(arms) - 0.5], y=[majority] * 2, name="always the commonest class", **dotted)
    )
    figure.update_xaxes(
        tickvals=list(range(len(arms))),
        ticktext=[REWEIGHTED[arm] for arm in arms],
        range=[-0.5, len(arms) - 0.5],
        ticks="",
    )
    figure.update_yaxes(title_text="share, 0 to 1", range=[0, 1.12], tickvals=np.linspace(0, 1, 6))
    notes = [_counts(scores), *missing(scores, {name: words for name, (words, _) in _SCORES.items()})]
    return finish(figure, width=760, height=430, notes=notes)


def _counts(scores: pd.DataFrame) -> str:
    """How many queries of each class the scores stand on."""
    each = scores.drop_duplicates(["seed", "n", "class_counts"]).sort_values("seed")
    if each["class_counts"].nunique() == 1:
        return f"Queries per seed: {_range(each['n'])}; of each class, in class order: {each['class_counts'].iloc[0]}."
    said = [f"seed {seed}: {counts}" for seed, counts in zip(each["seed"], each["class_counts"], strict=True)]
    more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
    return f"Queries per seed: {_range(each['n'])}; of each class, in class order: {'; '.join(said[:3])}{more}."


def _range(values: pd.Series) -> str:
    return f"{values.min()}" if values.nunique() == 1 else f"{values.min()} to {values.max()}"


def losses(frame: pd.DataFrame) -> go.Figure:
    """Mean training loss of each epoch of re-weighting.

    The line is the mean over seeds, the band from the lowest to the highest seed. Needs columns seed, epoch (from 0),
    loss.
    """
    rows("losses", frame, ("seed", "epoch", "loss"))
    figure = panels(("training the weights of label words",))
    if number(frame["loss"]).notna().any():
        line(figure, spread(frame, "loss", ["epoch"]), "mean loss", VERMILLION, shift=1)
    else:
        say(figure, "no loss is a finite number")
    last = int(frame["epoch"].max()) + 1
    figure.update_xaxes(title_text="epoch (1 = first)", tickformat="d", range=[0.5, last + 0.5])
    figure.update_yaxes(title_text="mean cross-entropy over label words (nats)", rangemode="tozero")
    return finish(figure, width=640, height=400, notes=missing(frame, {"loss": "finite loss"}), showlegend=False)


def beta(frame: pd.DataFrame) -> go.Figure:
    """The learned β of each layer and head: the target's attention to a label word is multiplied by exp(β).

    Red: attended more than before; blue: less. The first map is the mean over seeds and demonstrations; with at most 6
    demonstrations one map for each follows (mean over seeds, in prompt order; which label comes first may differ by
    seed). Needs columns seed, layer, head, demo, beta.
    """
    rows("beta", frame, ("seed", "layer", "head", "demo", "beta"))
    demos = sorted(frame["demo"].unique())
    maps = {"mean of all demonstrations" if len(demos) > 1 else "the demonstration": frame}
    if 1 < len(demos) <= _MOST_DEMONSTRATIONS:
        maps |= {f"demonstration {demo + 1}": frame[frame["demo"] == demo] for demo in demos}
    layers, heads = int(frame["layer"].max()) + 1, int(frame["head"].max()) + 1
    grids = [
        spread(shown, "beta", ["layer", "head"])["mean"].unstack().reindex(index=range(layers), columns=range(heads))
        for shown in maps.values()
    ]
    extreme = max(float(np.nanmax(np.abs(grid.to_numpy()), initial=0.0)) for grid in grids)
    lines = -(-len(maps) // 4)
    cols = -(-len(maps) // lines)
    height = lines * 330 + 60
    gaps = {"horizontal_spacing": 0.16 / cols, "vertical_spacing": 85 / height if lines > 1 else 0.3}
    figure = panels(list(maps), lines=lines, **gaps)
    for i, grid in enumerate(grids):
        at = {"row": i // cols + 1, "col": i % cols + 1}
        heat = go.Heatmap(
            z=grid.to_numpy(),
            x=np.arange(heads) + 1,
            y=np.arange(layers) + 1,
            coloraxis="coloraxis",
            hovertemplate="layer %{y}, head %{x}: %{z:.3g}<extra></extra>",
        )
        figure.add_trace(heat, **at)
        # a narrow axis would otherwise be ticked between whole numbers
        figure.update_xaxes(title_text="head (1 = first)", tickvals=_ticks(heads, 6), range=[0.5, heads + 0.5], **at)
        figure.update_yaxes(tickvals=_ticks(layers, 9), range=[0.5, layers + 0.5], **at)
        if i % cols == 0:
            figure.update_yaxes(title_text="layer (1 = first)", **at)
    figure.update_layout(
        coloraxis={
            "colorscale": "RdBu_r",
            "cmin": -(extreme or 1),
            "cmax": extreme or 1,
            "colorbar": {"title": "β", "thickness": 14},
        },
        plot_bgcolor="#cccccc",
    )
    notes = missing(frame, {"beta": "finite β"})
    if any(grid.isna().to_numpy().any() for grid in grids):
        notes.append("Grey: no β was learned there.")
    return finish(figure, width=max(460, 260 * cols + 130), height=height, notes=notes, plot_bgcolor="#cccccc")


def _ticks(n: int, most: int) -> list[int]:
    """At most ``most`` whole numbers from 1 to ``n``, evenly apart."""
    step = -(-n // most)
    return list(range(1, n + 1, step))
