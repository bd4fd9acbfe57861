"""Figures of isolation, compression and its cost show the numbers of the frame they are given."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anchorlens import figures

LABEL, RANDOM = "label words isolated", "random tokens isolated (control)"


def isolated(values: dict[tuple[int, str, str, int], list[tuple[bool, float]]]) -> pd.DataFrame:
    """Rows of (seed, arm, end, depth), each with label loyalty and word loyalty for every example."""
    rows = [(*at, i, *each) for at, examples in values.items() for i, each in enumerate(examples)]
    names = ["seed", "arm", "end", "depth", "example", "label_loyal", "word_loyalty"]
    return pd.DataFrame(rows, columns=pd.Index(names)).assign(mask="before")


def everywhere(seeds: int = 1, depths: tuple[int, ...] = (1, 5, 7)) -> pd.DataFrame:
    """Word loyalty of seed 0, 1, 2 is 1, 2, 5 over 10 * (1 + depth)."""
    cells = product(range(seeds), ("label", "random"), ("first", "last"), depths)
    return isolated({at: [(True, (1 + at[0] ** 2) / (5 + 5 * at[3])), (False, 0.0)] for at in cells})


def compressed(*rows: tuple[int, str, str, int, int, bool, float, object]) -> pd.DataFrame:
    names = ["seed", "arm", "positions", "draw", "gold", "label_loyal", "word_loyalty", "correct"]
    frame = pd.DataFrame(rows, columns=pd.Index(names))
    return frame.assign(example=frame.groupby(["seed", "arm", "positions", "draw"]).cumcount())


def panel(figure: Any, col: int) -> dict[str, Any]:
    """The named traces of one panel; what has no name is a band."""
    return {trace.name: trace for trace in figure.data if trace.xaxis == f"x{col if col > 1 else ''}" and trace.name}


def texts(figure: Any) -> list[str]:
    return [note.text for note in figure.layout.annotations]


def test_bars_of_isolation_are_means_over_the_examples_of_the_chosen_depth():
    frame = isolated(
        {
            (0, "label", "first", 5): [(True, 0.25), (False, 0.75), (False, 0.5), (False, 0.5)],
            (0, "label", "last", 5): [(True, 1.0), (True, 0.5)],
            (0, "random", "first", 5): [(True, 0.75)],
            (0, "random", "last", 5): [(True, 1.0)],
            (0, "label", "first", 7): [(False, 0.0)],
        }
    )
    figure: Any = figures.isolation(frame)
    label, word = panel(figure, 1), panel(figure, 2)
    assert list(label[LABEL].y) == [0.25, 1.0]
    assert list(word[LABEL].y) == [0.5, 0.75]
    assert list(word[RANDOM].y) == [0.75, 1.0]
    assert list(figure.layout.xaxis.ticktext) == ["in the first 5 layers", "in the last 5 layers"]
    assert {"0.25", "0.75"} <= set(texts(figure)), "values are written beside the bars"
    assert list(panel(figures.isolation(frame, depth=7), 1)[LABEL].y) == [0.0]


def test_isolation_shows_five_layers_where_there_are_five_and_else_the_most():
    five, fewer = figures.isolation(everywhere()), figures.isolation(everywhere(depths=(1, 3)))
    assert [figure.layout.xaxis.ticktext[0] for figure in (five, fewer)] == [
        "in the first 5 layers",
        "in the first 3 layers",
    ]
    with pytest.raises(ValueError, match=r"isolation: depth=2 is not in this frame; it holds depth 1, 3"):
        figures.isolation(everywhere(depths=(1, 3)), depth=2)


def test_whiskers_go_from_the_lowest_to_the_highest_seed_and_one_seed_has_none():
    one, three = figures.isolation(everywhere(1)), figures.isolation(everywhere(3))
    assert panel(one, 2)[LABEL].error_y.array is None
    bar = panel(three, 2)[LABEL]
    np.testing.assert_allclose(bar.y, 8 / 3 / 60)
    np.testing.assert_allclose(bar.error_y.array, (5 - 8 / 3) / 60)
    np.testing.assert_allclose(bar.error_y.arrayminus, (8 / 3 - 1) / 60)


def test_depths_are_drawn_as_solid_label_words_and_dashed_control_with_a_band_over_seeds():
    figure: Any = figures.isolation_depths(everywhere(3))
    shown = panel(figure, 2)
    assert {name: line.line.dash for name, line in shown.items()} == {
        f"{words}, {end} layers": dash
        for words, dash in ((LABEL, "solid"), (RANDOM, "dash"))
        for end in ("first", "last")
    }
    line = shown[f"{LABEL}, first layers"]
    assert list(line.x) == [1, 5, 7]
    np.testing.assert_allclose(line.y, [8 / 3 / 20, 8 / 3 / 60, 8 / 3 / 80])
    upper, lower = (t for t in figure.data if t.xaxis == "x2" and t.legendgroup == line.name and not t.name)
    np.testing.assert_allclose(upper.y, [5 / 20, 5 / 60, 5 / 80])
    np.testing.assert_allclose(lower.y, [1 / 20, 1 / 60, 1 / 80])
    assert lower.fill == "tonexty"
    one: Any = figures.isolation_depths(everywhere(1))
    assert len(one.data) == 8, "one seed has no bands"


def test_one_depth_alone_has_whiskers_where_a_band_would_have_no_width():
    line = panel(figures.isolation_depths(everywhere(3, (1,))), 2)[f"{LABEL}, last layers"]
    np.testing.assert_allclose(line.error_y.array, [(5 - 8 / 3) / 20])


def test_loyalties_under_two_masks_are_not_averaged():
    two = pd.concat([everywhere(), everywhere().assign(mask="after")])
    with pytest.raises(ValueError, match=r"isolation: the frame holds the masks after, before"):
        figures.isolation(two)


def test_rows_without_a_value_are_counted_above_the_figure():
    frame = everywhere()
    frame.loc[0, "word_loyalty"] = np.nan
    figure: Any = figures.isolation_depths(frame)
    assert figure.layout.title.text == "1 of 24 rows have no word loyalty; they are left out."


def test_draws_of_random_tokens_count_the_same_within_a_seed_whatever_their_rows():
    figure = figures.compression(
        compressed(
            (0, "hidden_random", "restart", 0, 1, True, 1.0, True),
            (0, "hidden_random", "restart", 1, 1, False, 0.0, False),
            (0, "hidden_random", "restart", 1, 1, False, 0.5, False),
            (1, "hidden_random", "restart", 0, 1, True, 0.5, True),
        )
    )
    bar = panel(figure, 2)["query positions restart at 0"]
    np.testing.assert_allclose(bar.x, [((1.0 + 0.25) / 2 + 0.5) / 2])
    np.testing.assert_allclose(bar.error_x.array, [0.625 - 0.5625])
    assert figure.layout.yaxis.ticktext[0] == "kept: random tokens and template<br>(mean of 2 draws)"


def test_position_rules_share_an_arms_row_and_have_their_own_colours():
    figure: Any = figures.compression(
        compressed(
            (0, "icl", "none", -1, 0, True, 1.0, True),
            (0, "hidden_anchor", "restart", -1, 0, True, 0.5, True),
            (0, "hidden_anchor", "continue", -1, 0, False, 0.25, False),
        )
    )
    shown = panel(figure, 2)
    assert {name: list(bar.x) for name, bar in shown.items()} == {
        "nothing injected": [1.0],
        "query positions restart at 0": [0.5],
        "query positions continue": [0.25],
    }
    assert list(shown["nothing injected"].y) == [0]
    restart, goes_on = (shown[f"query positions {rule}"] for rule in ("restart at 0", "continue"))
    assert restart.y[0] + goes_on.y[0] == pytest.approx(2), "side by side around row 1"
    assert restart.y[0] + restart.width[0] / 2 < goes_on.y[0] - goes_on.width[0] / 2, "without an overlap"
    assert len({bar.marker.color for bar in shown.values()}) == 3
    assert list(figure.layout.yaxis.ticktext) == ["whole prompt", "kept: label words and template"]


def test_unknown_labels_do_not_count_for_accuracy_but_for_loyalty():
    rows = [
        (0, "icl", "none", -1, 1, True, 1.0, True),
        (0, "icl", "none", -1, 0, True, 1.0, False),
        (0, "icl", "none", -1, 1, True, 1.0, False),
        (0, "icl", "none", -1, -1, False, 1.0, False),
    ]
    figure: Any = figures.compression(compressed(*rows))
    np.testing.assert_allclose(panel(figure, 3)["nothing injected"].x, [1 / 3])
    np.testing.assert_allclose(panel(figure, 1)["nothing injected"].x, [3 / 4])
    np.testing.assert_allclose(panel(figure, 3)["always the commonest class"].x, 2 / 3)
    assert "1 of 4 rows have no known label" in figure.layout.title.text
    none: Any = figures.compression(compressed(rows[-1]))
    assert "no prompt has a known<br>label" in texts(none)
    assert "nothing injected" not in panel(none, 3)


def timed(**seconds: float) -> pd.DataFrame:
    operations = {"icl": 1.0, "icl_cached": 4.0, "hidden_anchor": 8.0}
    rows = [(arm, b, s / b, operations[arm], 2048) for arm, s in seconds.items() for b in (1, 16)]
    return pd.DataFrame(rows, columns=pd.Index(["arm", "batch", "seconds", "flops_ratio", "kv_bytes"]))


def test_cost_compares_with_both_baselines_and_puts_the_ratio_of_operations_beside():
    figure: Any = figures.cost(timed(icl=1.0, icl_cached=0.5, hidden_anchor=0.1))
    seconds = panel(figure, 1)
    assert list(seconds["whole prompt, demonstrations cached (2.0 KiB of keys and values)"].y) == [0.5, 0.5 / 16]
    bars = {(t.xaxis, t.name): t.y for t in figure.data if t.type == "bar"}
    np.testing.assert_allclose(bars["x2", "kept: label words and template"], 10)
    np.testing.assert_allclose(bars["x2", "whole prompt, demonstrations cached"], 2)
    np.testing.assert_allclose(bars["x3", "kept: label words and template"], 5)
    assert len(bars) == 3
    counted = [(t.xaxis, t.legendgroup, *t.y) for t in figure.data if t.name == "by floating-point operations"]
    assert counted == [("x2", "operations", 4, 4), ("x2", "operations", 8, 8), ("x3", "operations", 2, 2)]
    assert list(figure.layout.xaxis.ticktext) == ["1", "16"]


def test_the_time_to_read_the_demonstrations_once_is_told_and_not_drawn():
    once = timed(icl=0.25).assign(arm="demonstrations").head(1)
    figure: Any = figures.cost(pd.DataFrame(pd.concat([timed(icl=1.0, hidden_anchor=0.1), once])))
    assert figure.layout.title.text == "Not counted: reading the demonstrations once, for all queries, takes 250 ms."
    assert len(panel(figure, 1)) == 2
    with pytest.raises(ValueError, match="cost: the frame has no rows"):
        figures.cost(once)


def test_a_baseline_that_was_not_timed_is_named_in_its_panel():
    figure: Any = figures.cost(timed(icl=1.0, hidden_anchor=0.1))
    assert "not measured: no rows of<br>arm icl_cached" in texts(figure)


CALLS = {
    "isolation": (figures.isolation, everywhere),
    "isolation_depths": (figures.isolation_depths, everywhere),
    "compression": (figures.compression, lambda: compressed((0, "icl", "none", -1, 0, True, 1.0, True))),
    "cost": (figures.cost, lambda: timed(icl=1.0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_frame_without_rows_or_columns_or_with_an_unknown_arm_is_refused(name):
    draw, make = CALLS[name]
    frame = make()
    with pytest.raises(ValueError, match=rf"{name}: the frame has no rows"):
        draw(frame.iloc[:0])
    with pytest.raises(ValueError, match=rf"{name}: the frame has no column 'arm'; it holds "):
        draw(frame.drop(columns="arm"))
    with pytest.raises(ValueError, match=rf"{name}: column 'arm' holds 'other'; it may hold "):
        draw(frame.assign(arm="other"))
