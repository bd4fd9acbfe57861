"""Edges of one prompt as one HTML page that holds all it needs and asks no network for anything."""

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from anchorlens.edges import MEASURES, Edges
from anchorlens.figures import FLOWS, ROLES

_SAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
# nothing is fetched, whatever a text may bring
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
_SCRIPTS = ("numbers.js", "picture.js", "explorer.js")  # in one function: they leave no names behind
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="caption">{caption}</p>
<p>Words on the left give, words on the right take in, and a line is as wide as what flows: saliency |Σ A·∂L/∂A| or
attention. Point at a word for its own lines and their numbers; click to hold it; arrow keys walk.</p>
<div class="explorer"></div>
<noscript>This page draws with JavaScript, which is switched off.</noscript>
</main>
<script type="application/json" id="flow">{data}</script>
<script>
"use strict";
(() => {{
{script}}})();
</script>
</body>
</html>
"""


def html(
    edges: Edges,
    tokens: Sequence[str],
    roles: Sequence[str],
    *,
    title: str = "Where information flows",
    caption: str = "",
) -> str:
    """A page of its own, without anything beside it: words on both sides, lines as wide as what flows.

    Args:
        edges: what ``analyses.information_flow.largest_edges`` gives.
        tokens: the text of each token, as ``Prompt.pieces`` gives it; shown as text, whatever is in it.
        roles: what each is, names as in ``figures.ROLES``.
        title, caption: what stands above.

    Raises:
        ValueError: for tokens or roles of another prompt, or a role of another name.
    """
    for name, given in (("tokens", tokens), ("roles", roles)):
        if len(given) != edges.n_tokens:
            raise ValueError(
                f"{name}: {len(given)} were given for the edges of a prompt of {edges.n_tokens} tokens; "
                "take those of the same prompt."
            )
    if unknown := sorted(set(roles) - set(ROLES)):
        raise ValueError(f"roles {', '.join(map(repr, unknown))}: a role may be {', '.join(ROLES)}.")
    return _PAGE.format(
        policy=_POLICY,
        title=escape(title),
        caption=escape(caption),
        style=_asset("explorer.css"),
        data=json.dumps(packed(edges, tokens, roles), separators=(",", ":")).translate(_SAFE),
        script="\n".join(map(_asset, _SCRIPTS)),
    )


def packed(edges: Edges, tokens: Sequence[str], roles: Sequence[str]) -> dict[str, Any]:
    """What the page's script reads: numbers as little-endian arrays in base64, everything else as it is.

    A cell (query, key) is the number query * (query - 1) / 2 + key, which takes two bytes in prompts of up to
    362 tokens.
    """
    n = edges.n_tokens
    wide = n * (n - 1) // 2 > 2**16
    cell = edges.query.astype(np.int64) * (edges.query - 1) // 2 + edges.key
    names = list(dict.fromkeys(role for role in ROLES if role in set(roles)))
    _, n_layers, n_lists = edges.counts.shape
    return {
        "tokens": list(tokens),
        "role": [names.index(role) for role in roles],
        "roles": [[name, ROLES[name][0]] for name in names],
        "flows": [words for words, _ in FLOWS.values()],
        "measures": list(MEASURES),
        "layers": n_layers,
        "heads": n_lists - 1,
        "anchors": list(edges.anchors),
        "wide": wide,
        "counts": _base64(edges.counts, "<u2"),
        "totals": _base64(edges.totals, "<f4"),
        "means": _base64(edges.means, "<f8"),
        "cells": _base64(cell, "<u4" if wide else "<u2"),
        "weights": _base64(edges.weight, "<f4"),
    }


def save(page: str, folder: Path, name: str = "flow") -> Path:
    """Write a page as ``<name>.html`` into a run's folder."""
    path = Path(folder) / f"{name}.html"
    path.write_text(page, encoding="utf-8")
    return path


def show(page: str, folder: Path, name: str = "flow", height: int = 1340) -> None:
    """``save`` a page and show it in a notebook's cell, in a frame of ``height`` pixels.

    The frame holds the whole page, so that the notebook, and whatever is made of it, needs no file beside it; it is a
    document of its own, which shares neither names nor styles with others.
    """
    from IPython.display import HTML, display

    save(page, folder, name)
    style = f"width:100%;height:{int(height)}px;border:0"
    frame = f'<iframe sandbox="allow-scripts" title="information flow" style="{style}" srcdoc="{escape(page)}">'
    display(HTML(f"<div>{frame}</iframe></div>"))  # IPython warns of a frame that stands alone


def _base64(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(values.astype(dtype).tobytes()).decode()


def _asset(name: str) -> str:
    return files("anchorlens.explorer").joinpath(name).read_text(encoding="utf-8")
