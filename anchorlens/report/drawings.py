"""Small drawings as SVG: a few bars, or a line over layers. Colours are those of the page, so that they follow it."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

_WIDTH, _ROW = 300, 24


def bars(
    rows: Sequence[tuple[str, float, str]], *, unit: str = "", reference: float | None = None, words: str = ""
) -> Markup:
    """Lying bars from 0: words, value, and class (strong, other); a dashed line at ``reference``, called ``words``.

    Values stand in a column of their own, which neither bars nor the line reach.
    What is undefined has no bar, and says so.
    """
    finite = [value for _, value, _ in rows if np.isfinite(value)]
    top = max([*finite, reference or 0, 1e-12])
    left, room = 118, _WIDTH - 118 - 66
    drawn = []
    for i, (name, value, kind) in enumerate(rows):
        y = 4 + i * _ROW
        long = max(0.0, room * value / top) if np.isfinite(value) else 0.0
        said = _number(value, unit) if np.isfinite(value) else "undefined"
        drawn.append(
            f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="bar {escape(kind)}" x="{left}" y="{y}" width="{long:.1f}" height="17" rx="2"/>'
            f'<text class="value" x="{_WIDTH}" y="{y + 13}" text-anchor="end">{escape(said)}</text>'
        )
    high = 4 + len(rows) * _ROW
    if reference is not None:
        x = left + room * reference / top
        drawn.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{high}"/>')
        drawn.append(f'<text class="small" x="{_WIDTH}" y="{high + 11}" text-anchor="end">┊ {escape(words)}</text>')
        high += 14
    return _svg(drawn, float(high))


def line(values: Sequence[float], *, low: float, high: float, reference: float, words: str) -> Markup:
    """Values over layers; ``reference`` is dashed, and called ``words``; nothing if none is defined."""
    if not np.isfinite(np.asarray(values, dtype=float)).any():
        return Markup()
    left, top, wide, tall = 34, 8, _WIDTH - 34 - 12, 74

    def place(i: int, value: float) -> tuple[float, float]:
        share = min(max((value - low) / (high - low), 0), 1)
        return left + wide * i / max(1, len(values) - 1), top + tall * (1 - share)

    y = place(0, reference)[1]
    drawn = [
        f'<line class="reference" x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}"/>',
        f'<text class="small" x="{left + wide}" y="{y + 12:.1f}" text-anchor="end">{escape(words)}</text>',
        *(
            f'<text class="small" x="{left - 5}" y="{place(0, at)[1] + 4:.1f}" text-anchor="end">{at:g}</text>'
            for at in (low, high)
        ),
        f'<text class="small" x="{left}" y="{top + tall + 16}">layer 1</text>',
        f'<text class="small" x="{left + wide}" y="{top + tall + 16}" text-anchor="end">{len(values)}</text>',
    ]
    points = [place(i, value) for i, value in enumerate(values) if np.isfinite(value)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawn.append(f'<polyline class="curve" points="{path}"/>')
    drawn += [
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{3 if len(points) < 30 else 1.5}"/>' for x, y in points
    ]
    return _svg(drawn, float(top + tall + 22))


def _number(value: float, unit: str) -> str:
    return f"{100 * value:.0f} %" if unit == "%" else f"{value:.2f}{unit}" if abs(value) < 10 else f"{value:.0f}{unit}"


def _svg(drawn: Sequence[str], high: float) -> Markup:
    """What is drawn is said in words beside it, so that it is left out for those who listen."""
    body = "".join(drawn)
    return Markup(f'<svg class="small-figure" viewBox="0 0 {_WIDTH} {high:g}" aria-hidden="true">{body}</svg>')
