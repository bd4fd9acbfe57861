"""Section 3.3: which labels the model confuses, predicted from the keys of the label words."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from anchorlens.figures.marks import undefined
from anchorlens.figures.style import (
    PALETTE,
    Table,
    choose,
    finish,
    grid,
    line,
    number,
    panels,
    rows,
    spread,
    text,
    ticks,
)

_COLUMNS = ("seed", "layer", "n_components", "label_a", "label_b")
_USUAL_COMPONENTS = 10
_SCALE = ["0 = confused", "0.25", "0.5", "0.75", "1 = told apart"]


def confusion(
    frame: pd.DataFrame,
    agreement: pd.DataFrame | None = None,
    layer: int | None = None,
    n_components: int | None = None,
    words: Sequence[str] | None = None,
) -> go.Figure:
    """Predicted confusion from distances between keys, beside the confusion that was observed (figure 6).

    Dark cells are confused, 1 is told apart; the diagonal is 1 by convention; cells are means over seeds. ``layer``
    counts from 0: two thirds of the way through the model where the frame has several. ``n_components``: 10 as in the
    paper where the frame has several. ``words`` are the labels' words in class order. Needs columns seed, layer,
    n_components, label_a, label_b, confusion_predicted, confusion_observed; ``agreement`` (seed, layer, n_components,
    spearman, why) puts the rank correlation above.
    """
    table = rows("confusion", frame, (*_COLUMNS, "confusion_predicted", "confusion_observed"))
    layer = choose("confusion", table, "layer", layer, _two_thirds(table))
    here = table[table["layer"] == layer]
    n_components = choose("confusion", here, "n_components", n_components, _USUAL_COMPONENTS)
    here = here[here["n_components"] == n_components]
    names = _names("confusion", here, words)
    side, room = _sizes(names, 330, 62)
    width = 2 * (side + room) + 140
    figure = panels(("predicted from keys", "observed"), horizontal_spacing=room / (width - room - 140))
    notes = [f"Layer {layer + 1}, {n_components} principal components."]
    for col, value in enumerate(("confusion_predicted", "confusion_observed"), start=1):
        if _heat(figure, here, value, names, row=1, col=col):
            notes.append(f"n/a in {('predicted', 'observed')[col - 1]}: not defined for this pair of labels.")
    if agreement is not None:
        notes[0] += " " + _correlation(agreement, layer, n_components)
    margin = {"l": room, "r": 140, "b": room}
    return finish(figure, width=width, height=side + room + 80, notes=notes, margin=margin)


def _correlation(agreement: pd.DataFrame, layer: int, n_components: int) -> str:
    table = rows("confusion (agreement)", agreement, ("seed", "layer", "n_components", "spearman", "why"))
    here = table[(table["layer"] == layer) & (table["n_components"] == n_components)]
    values = number(here["spearman"]).dropna()
    if values.empty:
        why = "; ".join(sorted({str(each) for each in here["why"]} - {""})) or "not computed for this layer"
        return f"Rank correlation undefined: {why}."
    several = f" (from {values.min():.2f} to {values.max():.2f} over {len(values)} seeds)" if len(values) > 1 else ""
    return f"Rank correlation {values.mean():.2f}{several}."


def confusion_sweep(frame: pd.DataFrame, layer: int | None = None, words: Sequence[str] | None = None) -> go.Figure:
    """Predicted confusion for every number of principal components, one heat map each (figure 14).

    Similar maps: the prediction hardly depends on that number. Cells are means over seeds. ``layer`` and ``words`` as
    in ``confusion``. Needs columns seed, layer, n_components, label_a, label_b, confusion_predicted.
    """
    table = rows("confusion_sweep", frame, (*_COLUMNS, "confusion_predicted"))
    layer = choose("confusion_sweep", table, "layer", layer, _two_thirds(table))
    here = table[table["layer"] == layer]
    names = _names("confusion_sweep", here, words)
    tried = sorted(here["n_components"].unique())
    lines = -(-len(tried) // 3)
    cols = -(-len(tried) // lines)
    side, room = _sizes(names, 220, 46)
    width, height = cols * (side + room) + 140, lines * (side + room + 30) + 30
    titles = [f"{n} component{'' if n == 1 else 's'}" for n in tried]
    figure = panels(
        titles,
        lines=lines,
        horizontal_spacing=room / (width - room - 140),
        vertical_spacing=(room + 30) / (height - room - 60),
    )
    notes = [f"Confusion predicted from keys in layer {layer + 1}."]
    undefined_cells = [
        _heat(
            figure, here[here["n_components"] == n], "confusion_predicted", names, row=i // cols + 1, col=i % cols + 1
        )
        for i, n in enumerate(tried)
    ]
    if any(undefined_cells):
        notes.append("n/a: not defined for this pair of labels.")
    margin = {"l": room, "r": 140, "b": room}
    return finish(figure, width=width, height=height, notes=notes, margin=margin)


def agreement(frame: pd.DataFrame) -> go.Figure:
    """Rank correlation between predicted and observed confusion by layer, a line for each number of components.

    1: the pairs of labels come in the same order; 0: no relation. Lines are means over the seeds for which a layer is
    defined, bands go from the lowest to the highest of them; where it is not defined a mark tells why. Needs columns
    seed, layer, n_components, spearman, why.
    """
    table = rows("agreement", frame, ("seed", "layer", "n_components", "spearman", "why"))
    figure = panels(("predicted against observed confusion",))
    for n, (tried, group) in enumerate(table.groupby("n_components")):
        if number(group["spearman"]).notna().any():
            words = f"{tried} component{'' if tried == 1 else 's'}"
            line(figure, spread(group, "spearman", ["layer"]), words, PALETTE[n % len(PALETTE)], shift=1, legend=True)
    undefined(figure, table, "spearman", floor=-1.08, who={"seed": "seed", "n_components": "components:"})
    figure.add_hline(0, line={"color": "#999999", "dash": "dot", "width": 1})
    last = int(table["layer"].max()) + 1
    figure.update_xaxes(title_text="layer (1 = first)", tickvals=ticks(last), range=[0.5, last + 0.5])
    figure.update_yaxes(title_text="rank correlation (Spearman, -1 to 1)", range=[-1.08, 1.08])
    return finish(figure, width=760, height=430)


def _two_thirds(frame: Table) -> int:
    """The layer that the paper looks at, as a share of the model's depth: 32 of 48."""
    return round(2 * (int(frame["layer"].max()) + 1) / 3)


def _names(figure: str, frame: Table, words: Sequence[str] | None) -> list[str]:
    """What stands beside the cells, in class order."""
    labels = sorted({*frame["label_a"], *frame["label_b"]})
    if words is None:
        return [f"label {label}" for label in range(int(labels[-1]) + 1)]
    if len(words) <= labels[-1]:
        raise ValueError(f"{figure}: {len(words)} words for labels up to {labels[-1]}; give one word for each label.")
    return [text(word) for word in words]


def _heat(figure: go.Figure, frame: Table, value: str, names: list[str], *, row: int, col: int) -> bool:
    """One heat map with its values written in; whether some cell off the diagonal is undefined."""
    z = grid(frame, value, "label_a", "label_b", (len(names), len(names)))
    z = np.where(np.eye(len(names), dtype=bool) & np.isnan(z), 1.0, z)
    empty = np.isnan(z)
    heat = go.Heatmap(
        z=z,
        text=np.where(empty, "", np.char.mod("%.2f", np.nan_to_num(z))),
        texttemplate="%{text}",
        customdata=[[f"{a} – {b}" for b in names] for a in names],
        hovertemplate="%{customdata}: %{z:.3g}<extra></extra>",
        colorscale="Blues_r",
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        showscale=row == 1 and col == 1,
        colorbar={"tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": _SCALE, "thickness": 14, "len": 0.9},
    )
    figure.add_trace(heat, row=row, col=col)
    for a, b in np.argwhere(empty):
        figure.add_annotation(text="n/a", x=b, y=a, showarrow=False, font_color="#555555", row=row, col=col)
    # positions are numbers: words as categories would merge equal words
    ticks = {"tickvals": list(range(len(names))), "ticktext": names, "ticks": "", "showline": False}
    size = len(names) - 0.5
    figure.update_xaxes(**ticks, range=[-0.5, size], tickangle=40 if len(names) > 2 else 0, row=row, col=col)
    figure.update_yaxes(**ticks, range=[size, -0.5], row=row, col=col)
    return bool(empty.any())


def _sizes(names: Sequence[str], least: int, cell: int) -> tuple[int, int]:
    """Pixels for one map's side, and for the names beside it."""
    side = max(least, (cell if len(names) <= 8 else 40) * len(names))
    return side, 45 + 7 * max(len(html.unescape(name)) for name in names)
