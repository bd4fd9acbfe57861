"""Section 2.3: how well the target's attention to the label words tells the prediction, by layer."""

import pandas as pd
import plotly.graph_objects as go

from anchorlens.figures.marks import undefined
from anchorlens.figures.style import BLUE, VERMILLION, Table, finish, line, number, panels, rows, spread, ticks


def extraction(summary: pd.DataFrame) -> go.Figure:
    """AUCROC of attention against the prediction by layer, and its contribution R up to a layer (figures 5, 11, 13).

    AUCROC is averaged over the seeds for which a layer is defined, and R is that of the average (equation 5); bands go
    from the lowest to the highest seed. Where a layer is not defined a mark on the axis tells why. R runs from the
    first layer to the last, where it is 1; it may leave 0 to 1 where attention tells less than chance. Needs columns
    seed, layer, auc, contribution, why.
    """
    table = rows("extraction", summary, ("seed", "layer", "auc", "contribution", "why"))
    figure = panels(("attention tells the prediction", "contribution of the layers so far"), horizontal_spacing=0.12)
    shown = (("auc", "AUCROC", BLUE, (0.5,)), ("contribution", "share R of all layers", VERMILLION, (0.0, 1.0)))
    for col, (value, name, colour, marked) in enumerate(shown, start=1):
        values = number(table[value])
        if values.notna().any():
            line(figure, _mean(table, value), name, colour, col=col, shift=1, legend=True)
            for height in marked:
                figure.add_hline(height, line={"color": "#999999", "dash": "dot", "width": 1}, row=1, col=col)  # pyright: ignore
        low, high = min(0.0, values.min()), max(1.0, values.max())
        low, high = (0.0, 1.0) if values.isna().all() else (low, high)
        room = 0.04 * (high - low)
        undefined(figure, table, value, floor=low - room, who={"seed": "seed"}, col=col)
        figure.update_yaxes(range=[low - room, high + room], col=col)
    last = int(table["layer"].max()) + 1
    figure.update_xaxes(title_text="layer (1 = first)", tickvals=ticks(last), range=[0.5, last + 0.5])
    figure.update_yaxes(title_text="AUCROC (0.5 = chance, 1 = always)", col=1)
    figure.update_yaxes(title_text="R (0 = nothing yet, 1 = all of it)", col=2)
    return finish(figure, width=960, height=430)


def _mean(table: Table, value: str) -> Table:
    """Mean and extremes over seeds; the mean of R is taken from that of AUCROC, which the paper averages first."""
    found = spread(table, value, ["layer"])
    gain = spread(table, "auc", ["layer"])["mean"] - 0.5
    if value == "contribution" and len(set(table["seed"])) > 1 and gain.notna().all() and abs(gain.sum()) > 1e-12:
        found["mean"] = gain.cumsum() / gain.sum()
    return found
