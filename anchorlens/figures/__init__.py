"""Draw stored results: a frame in, a plotly figure out. Never sees a model or a tensor."""

import base64
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from anchorlens.browser import has_browser
from anchorlens.figures import painting
from anchorlens.figures.confusions import agreement, confusion, confusion_sweep
from anchorlens.figures.costs import cost
from anchorlens.figures.deep import extraction
from anchorlens.figures.flow import FLOWS, ROLES, information_flow, roles, saliency_maps
from anchorlens.figures.loyalty import compression, isolation, isolation_depths
from anchorlens.figures.training import beta, losses, reweighting

__all__ = [
    "FLOWS",
    "ROLES",
    "agreement",
    "beta",
    "compression",
    "confusion",
    "confusion_sweep",
    "cost",
    "extraction",
    "fluid",
    "has_browser",
    "information_flow",
    "isolation",
    "isolation_depths",
    "losses",
    "reweighting",
    "roles",
    "saliency_maps",
    "save",
    "show",
    "show_all",
]


def save(figure: go.Figure, folder: Path, name: str) -> list[Path]:
    """Write ``<name>.html`` into a run's folder and, where a browser and kaleido are installed, ``<name>.png``.

    The page shares plotly.min.js with all runs of the store, two folders up, and opens from disk without a network. The
    picture is as wide as the figure says, the page's figure as its window.
    """
    return _save(_plain(figure), Path(folder), name)()


def _plain(figure: go.Figure) -> dict[str, Any]:
    return json.loads(figure.to_json() or "{}")


def _save(plain: Mapping[str, Any], folder: Path, name: str) -> Callable[[], list[Path]]:
    """Have the browser draw, and write the page; what is given waits for the picture."""
    drawn = painting.begin(plain) if has_browser() else None
    script = folder.parent.parent / "plotly.min.js"
    if not script.is_file():
        with tempfile.NamedTemporaryFile("w", dir=script.parent, delete=False, encoding="utf-8") as file:
            file.write(get_plotlyjs())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(script)  # at once: others share it
    page, picture = folder / f"{name}.html", folder / f"{name}.png"
    beside: Any = "../../plotly.min.js"  # plotly declares a bool
    page.write_text(
        pio.to_html(fluid(plain), include_plotlyjs=beside, full_html=True, validate=False), encoding="utf-8"
    )

    def written() -> list[Path]:
        if drawn is None:
            return [page]
        picture.write_bytes(drawn())
        return [page, picture]

    return written


def fluid(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A figure in plotly's JSON that takes the width of its place; ``layout.meta.width`` keeps its own."""
    layout = {name: value for name, value in plain["layout"].items() if name != "width"}
    return {**plain, "layout": {**layout, "autosize": True, "meta": {"width": plain["layout"].get("width", 700)}}}


def show(figure: go.Figure, folder: Path, name: str) -> None:
    """``save`` the figure and show it in a notebook: live in JupyterLab, elsewhere as the PNG where there is one.

    plotly's own renderers would draw the PNG a second time, or write 5 MB of script into every notebook.
    """
    show_all(folder, **{name: lambda: figure})


def show_all(folder: Path, /, **figures: Callable[[], go.Figure]) -> None:
    """``show`` what each of ``figures`` (by name) makes; while the browser draws one, the next is made."""
    from IPython.display import display

    begun = []
    try:
        for name, make in figures.items():
            plain = _plain(make())
            begun.append((plain, _save(plain, Path(folder), name)))
    finally:  # those before one that cannot be made are there
        for plain, written in begun:
            shown: dict[str, Any] = {"application/vnd.plotly.v1+json": fluid(plain)}
            for path in written():
                if path.suffix == ".png":
                    shown["image/png"] = base64.b64encode(path.read_bytes()).decode()
            display(shown, raw=True)
