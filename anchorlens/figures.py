"""Draw stored results: a frame in, a plotly figure out. Never sees a model or a tensor."""

import base64
import html
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

# Okabe and Ito's palette: told apart with any colour vision.
FLOWS = {
    "S_wp": ("text → label word", "#0072B2"),
    "S_pq": ("label word → target", "#D55E00"),
    "S_ww": ("all other pairs", "#737373"),
}
ROLES = {
    "TEXT": ("text", "#ffffff"),
    "TEMPLATE": ("template", "#e3e3e3"),
    "LABEL": ("label word, further tokens", "#a6d3ee"),
    "ANCHOR": ("label word (anchor)", "#56B4E9"),
    "TARGET": ("target", "#E69F00"),
}
_MAC_CHROME = Path("/Applications/Google Chrome.app")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def information_flow(frame: pd.DataFrame, twin: pd.DataFrame | None = None) -> go.Figure:
    """The three flows by layer (figure 3): each one's share, and its mean saliency on a logarithmic axis.

    Each seed is averaged over its examples and, on the left, divided by the sum of the three; the line is the mean over
    seeds, the band from the lowest to the highest seed. ``twin`` is the same frame from the untrained control, dashed.
    Needs columns seed, layer, flow, value. A value of 0 has no place on the right: its point is left out.
    """
    figure = make_subplots(
        cols=2, subplot_titles=("share of the three flows", "mean saliency"), horizontal_spacing=0.12
    )
    for data, control in ((frame, False), (twin, True)):
        if data is None:
            continue
        mean = data.pivot_table(index=["seed", "layer"], columns="flow", values="value", aggfunc="mean")
        share = mean.div(mean.sum(axis=1), axis=0)
        for flow, (name, colour) in FLOWS.items():
            _line(figure, 1, pd.Series(share[flow]), name, colour, control=control)
            _line(figure, 2, pd.Series(mean[flow]), name, colour, control=control)
    figure.update_xaxes(title_text="layer (1 = first)", tickformat="d")
    figure.update_yaxes(title_text="share", range=[0, 1.02], col=1)
    figure.update_yaxes(title_text="mean saliency |Σ A·∂L/∂A|", type="log", exponentformat="power", dtick=1, col=2)
    return figure.update_layout(
        template="simple_white",
        width=960,
        height=430,
        margin={"t": 40, "b": 110},
        legend={"orientation": "h", "y": -0.22, "x": 0},
        hovermode="x unified",
    )


def _line(figure: go.Figure, col: int, series: pd.Series, name: str, colour: str, *, control: bool) -> None:
    """One flow's mean over seeds with a band between the extreme seeds; ``series`` is indexed by seed and layer."""
    by_layer = series.groupby("layer").agg(["mean", "min", "max"])
    layers = by_layer.index + 1
    if col == 2:  # a logarithm has no place for 0
        by_layer = by_layer.where(by_layer > 0)
    several = len(series.index.unique("seed")) > 1
    label = f"{name}, untrained control" if control else name
    group = {"legendgroup": label}
    if several and not control:
        for edge, fill in (("max", None), ("min", "tonexty")):
            band = go.Scatter(
                x=layers, y=by_layer[edge], mode="lines", line_width=0, fill=fill, fillcolor=_faint(colour)
            )
            figure.add_trace(band.update({"showlegend": False, "hoverinfo": "skip", **group}), row=1, col=col)
    line = go.Scatter(
        x=layers,
        y=by_layer["mean"],
        name=label,
        mode="lines" if control else "lines+markers",
        line={"color": colour, "dash": "dash" if control else "solid", "width": 1.5 if control else 2.5},
        hovertemplate="%{y:.3g}",
        showlegend=col == 1,
        **group,
    )
    figure.add_trace(line, row=1, col=col)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def saliency_maps(maps: np.ndarray, tokens: Sequence[str], roles: Sequence[str], layers: Sequence[int]) -> go.Figure:
    """Saliency I_l(i, j) of one prompt for some ``layers``, as heat maps side by side.

    ``maps`` [layer query key]; rows take in information, columns give it; the diagonal is left out, as in the three
    flows. Each layer has its own scale, and colours follow the square root, since few cells hold most of the saliency.
    Label words are marked blue, the target orange.
    """
    titles = [f"layer {layer + 1}" for layer in layers]
    figure = make_subplots(cols=len(layers), subplot_titles=titles, horizontal_spacing=0.02, shared_yaxes=True)
    names = [html.escape(token).replace("\n", "⏎") or "·" for token in tokens]
    marked = {"ANCHOR": "#0072B2", "TARGET": "#D55E00"}
    ticks = [i for i, role in enumerate(roles) if role in marked]
    said = {i: "target" if roles[i] == "TARGET" else names[i] for i in ticks}
    text = [f'<span style="color:{marked[roles[i]]}"><b>{said[i]}</b></span>' for i in ticks]
    hover = [[f"{names[j]} → {names[i]}" for j in range(len(names))] for i in range(len(names))]
    for col, layer in enumerate(layers, start=1):
        lower = np.where(np.tril(np.ones_like(maps[layer], dtype=bool), -1), maps[layer], np.nan)
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

    def box(text: str, role: str) -> str:
        style = f"background:{ROLES[role][1]};color:#111;border-radius:2px;padding:1px 0"
        shown = html.escape(text).replace("\n", "⏎<br>")
        return f'<span style="{style}" title="{ROLES[role][0]}">{shown}</span>'

    legend = " ".join(box(f" {ROLES[role][0]} ", role) for role in ROLES if role in set(roles))
    body = "".join(box(token, role) for token, role in zip(tokens, roles, strict=True))
    return (
        f'<div style="font:13px/1.7 monospace;background:#fff;color:#111;padding:8px;white-space:pre-wrap">{body}'
        f'<div style="margin-top:8px">{legend}</div></div>'
    )


def save(figure: go.Figure, folder: Path, name: str) -> list[Path]:
    """Write ``<name>.html`` into a run's folder and, where a browser and kaleido are installed, ``<name>.png``.

    The page shares plotly.min.js with all runs of the store, two folders up, and opens from disk without a network.
    """
    folder = Path(folder)
    script = folder.parent.parent / "plotly.min.js"
    if not script.is_file():
        with tempfile.NamedTemporaryFile("w", dir=script.parent, delete=False, encoding="utf-8") as file:
            file.write(get_plotlyjs())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(script)  # at once: others share it
    paths = [folder / f"{name}.html"]
    figure.write_html(paths[0], include_plotlyjs="../../plotly.min.js", full_html=True)
    if has_browser():
        paths.append(folder / f"{name}.png")
        figure.write_image(paths[-1], scale=2)
    return paths


def show(figure: go.Figure, folder: Path, name: str) -> None:
    """``save`` the figure and show it in a notebook: live in JupyterLab, elsewhere as the PNG where there is one.

    plotly's own renderers would draw the PNG a second time, or write 5 MB of script into every notebook.
    """
    from IPython.display import display

    shown = {"application/vnd.plotly.v1+json": json.loads(figure.to_json() or "{}")}
    for path in save(figure, folder, name):
        if path.suffix == ".png":
            shown["image/png"] = base64.b64encode(path.read_bytes()).decode()
    display(shown, raw=True)


def has_browser() -> bool:
    """Whether figures can be drawn as PNG: kaleido and a Chromium or Chrome are there."""
    try:
        import kaleido  # noqa: F401
    except ImportError:
        return False
    return any(shutil.which(name) for name in _BROWSERS) or _MAC_CHROME.exists()
