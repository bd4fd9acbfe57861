"""Sections 2.2 and 3.2: how loyal the model stays when label words are isolated, or when little else is kept."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from anchorlens.figures.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    VERMILLION,
    Table,
    bars,
    choose,
    finish,
    line,
    missing,
    named,
    number,
    over_seeds,
    panels,
    rows,
    say,
    spread,
)

ISOLATED = {"label": "label words isolated", "random": "random tokens isolated (control)"}
ENDS = {"first": BLUE, "last": VERMILLION}
LOYALTIES = {"label_loyal": "label loyalty", "word_loyalty": "word loyalty"}
ARMS = {
    "icl": "whole prompt",
    "hidden_anchor": "kept: label words and template",
    "hidden_random": "kept: random tokens and template",
    "hidden_random_top": "kept: best random draw and template",
    "format_only": "kept: template only",
    "label_only": "kept: label words only",
    "text_anchor": "label words and template as text",
}
POSITIONS = {
    "none": ("nothing injected", GREY),
    "restart": ("query positions restart at 0", BLUE),
    "continue": ("query positions continue", ORANGE),
}
_UNITS = {
    "label_loyal": "share of prompts, 0 to 1",
    "word_loyalty": "overlap of next words, 0 to 1",
    "correct": "share of prompts, 0 to 1",
}


def isolation(frame: pd.DataFrame, depth: int | None = None) -> go.Figure:
    """Label loyalty and word loyalty when tokens are isolated in the first or the last layers (figures 4, 12).

    ``depth`` layers at each end: 5 as in the paper where the frame has it, else the most it has. Low bars: what was cut
    off mattered. Bars are means over seeds, whiskers go from the lowest to the highest seed. Isolating the last layer
    alone changes nothing, so there all bars are 1. Needs columns seed, arm, end, depth, label_loyal, word_loyalty.
    """
    table = _isolated("isolation", frame)
    deepest = int(table["depth"].max())
    depth = choose("isolation", table, "depth", depth, 5 if (table["depth"] == 5).any() else deepest)
    shown = table[table["depth"] == depth]
    figure = panels(list(LOYALTIES.values()), horizontal_spacing=0.12)
    ends = [end for end in ENDS if (shown["end"] == end).any()]
    for col, measure in enumerate(LOYALTIES, start=1):
        means = spread(shown, measure, ["arm", "end"])
        for n, (arm, name) in enumerate(ISOLATED.items()):
            if not (shown["arm"] == arm).any():
                continue
            held = [end for end in ends if (arm, end) in means.index]
            places = [ends.index(end) + (n - 0.5) * 0.4 for end in held]
            colour = BLUE if arm == "label" else GREY
            bars(figure, means.loc[[(arm, end) for end in held]], places, name, colour, col=col, hollow=arm == "random")
        figure.update_yaxes(title_text=_UNITS[measure], range=[0, 1.12], tickvals=np.linspace(0, 1, 6), col=col)
    layers = "layer" if depth == 1 else f"{depth} layers"
    figure.update_xaxes(
        tickvals=list(range(len(ends))),
        ticktext=[f"in the {end} {layers}" for end in ends],
        range=[-0.6, len(ends) - 0.4],
        ticks="",
    )
    return finish(figure, width=960, height=430, notes=missing(shown, LOYALTIES))


def isolation_depths(frame: pd.DataFrame) -> go.Figure:
    """Both loyalties by the number of isolated layers, the first and the last ones (figures 8, 10).

    Label words solid, the random control dashed; lines are means over seeds, bands go from the lowest to the highest
    seed. Needs columns seed, arm, end, depth, label_loyal, word_loyalty.
    """
    table = _isolated("isolation_depths", frame)
    figure = panels(list(LOYALTIES.values()), horizontal_spacing=0.12)
    for col, measure in enumerate(LOYALTIES, start=1):
        means = spread(table, measure, ["arm", "end", "depth"])
        for arm, words in ISOLATED.items():
            for end, colour in ENDS.items():
                if (arm, end) not in means.index.droplevel("depth"):
                    continue
                shown = {"dash": "dash", "thin": True, "symbol": "diamond-open"} if arm == "random" else {}
                line(figure, means.loc[arm, end], f"{words}, {end} layers", colour, col=col, **shown)
        figure.update_yaxes(title_text=_UNITS[measure], range=[0, 1.05], col=col)
    figure.update_xaxes(title_text="how many layers", tickvals=sorted(table["depth"].unique()))
    return finish(figure, width=960, height=450, notes=missing(table, LOYALTIES), hovermode="x unified")


def _isolated(figure: str, frame: pd.DataFrame) -> Table:
    """A frame of isolation, checked; loyalties under two masks are not to be averaged."""
    table = rows(figure, frame, ("seed", "arm", "end", "depth", *LOYALTIES), arm=ISOLATED, end=ENDS)
    masks = sorted(table["mask"].unique()) if "mask" in table.columns else []
    if len(masks) > 1:
        raise ValueError(f"{figure}: the frame holds the masks {', '.join(masks)}; give the rows of one of them.")
    return table


def compression(frame: pd.DataFrame) -> go.Figure:
    """Label loyalty, word loyalty and accuracy of each way to shorten the demonstrations (table 2).

    Colours tell where the query's positions start. Bars are means over seeds, whiskers go from the lowest to the
    highest seed; several draws of random tokens are averaged within a seed. The dotted line is the accuracy of always
    answering the commonest class. Prompts without a known label (gold -1) do not count for accuracy. Needs columns
    example, seed, gold, arm, positions, draw, label_loyal, word_loyalty, correct.
    """
    measures = {**LOYALTIES, "correct": "accuracy"}
    needed = ("example", "seed", "gold", "arm", "positions", "draw", *measures)
    table = rows("compression", frame, needed, arm=ARMS, positions=POSITIONS)
    arms = [arm for arm in ARMS if (table["arm"] == arm).any()]
    known = table[table["gold"] != -1]
    slots = _slots(table, arms)
    figure = panels(list(measures.values()), shared_yaxes=True, horizontal_spacing=0.04)
    for col, measure in enumerate(measures, start=1):
        shown = known if measure == "correct" else table
        if shown.empty:
            say(figure, "no prompt has a known label", col=col, wide=22)
        for rule, (name, colour) in POSITIONS.items():
            here = shown[shown["positions"] == rule]
            present = set(here["arm"])
            held = [arm for arm in arms if arm in present]
            if not held:
                continue
            places, widths = zip(*(slots[arm, rule] for arm in held), strict=True)
            means, names = _over_draws(here, measure).loc[held], [ARMS[arm] for arm in held]
            legend = name not in named(figure)
            bars(figure, means, places, name, colour, col=col, width=widths, flat=True, names=names, legend=legend)
        figure.update_xaxes(title_text=_UNITS[measure], range=[0, 1.18], tickvals=np.linspace(0, 1, 6), col=col)
    if not known.empty:
        examples = known.drop_duplicates(["seed", "example"])
        share = examples.groupby("seed")["gold"].agg(lambda gold: gold.value_counts(normalize=True).max()).mean()
        dotted = {"mode": "lines", "line": {"color": BLACK, "dash": "dot", "width": 1.5}, "hovertemplate": "%{x:.3g}"}
        always = go.Scatter(x=[share, share], y=[-0.5, len(arms) - 0.5], name="always the commonest class", **dotted)
        figure.add_trace(always, row=1, col=3)
    figure.update_yaxes(
        tickvals=list(range(len(arms))),
        ticktext=[_arm(table, arm) for arm in arms],
        range=[len(arms) - 0.5, -0.5],
        ticks="",
    )
    notes = [*missing(table, LOYALTIES), *missing(known, {"correct": "accuracy"})]
    if 0 < len(known) < len(table):
        notes.append(f"{len(table) - len(known)} of {len(table)} rows have no known label: left out of accuracy.")
    return finish(figure, width=1120, height=200 + 52 * len(arms), notes=notes, margin={"l": 230})


def _arm(frame: Table, arm: str) -> str:
    draws = frame.loc[frame["arm"] == arm, "draw"].nunique()
    return f"{ARMS[arm]}<br>(mean of {draws} draws)" if arm == "hidden_random" and draws > 1 else ARMS[arm]


def _slots(frame: Table, arms: list[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """Where each arm's bar under each rule stands, and how thick it is: the arm's rules share its row."""
    held = {tuple(pair) for pair in frame[["arm", "positions"]].drop_duplicates().to_numpy()}
    slots = {}
    for row, arm in enumerate(arms):
        rules = [rule for rule in POSITIONS if (arm, rule) in held]
        share = 0.8 / max(len(rules), 2)
        for n, rule in enumerate(rules):
            slots[arm, rule] = row + (n - (len(rules) - 1) / 2) * share, share - 0.04
    return slots


def _over_draws(frame: Table, measure: str) -> Table:
    """``spread`` by arm; within a seed every draw counts the same."""
    values = frame.assign(**{measure: number(frame[measure])})
    each = values.groupby(["seed", "arm", "draw"], dropna=False)[measure].mean()
    return over_seeds(each.groupby(["seed", "arm"]).mean(), ["arm"])
