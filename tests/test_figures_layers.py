"""Figures by layer, of confusion and of re-weighting show the numbers of their frame, and no gap without a reason."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anchorlens import figures

NAN = float("nan")
HOSTILE = '<b onclick="x">bad</b>'


def table(names: str, rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=pd.Index(names.split()))


def summary(*rows: tuple[int, int, float, float, str]) -> pd.DataFrame:
    return table("seed layer auc contribution why", list(rows))


def traces(figure: Any) -> list[Any]:
    return list(figure.data)


def named(figure: Any, axis: str = "x") -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.xaxis == axis and trace.name}


def texts(figure: Any) -> list[str]:
    return [note.text for note in figure.layout.annotations]


def test_extraction_shows_means_and_extremes_of_the_seeds_with_layers_counted_from_one():
    figure: Any = figures.extraction(
        summary((0, 0, 0.5, 0.0, ""), (0, 1, 0.7, 1.0, ""), (1, 0, 0.6, 0.25, ""), (1, 1, 0.9, 1.0, ""))
    )
    line = named(figure)["AUCROC"]
    assert list(line.x) == [1, 2]
    np.testing.assert_allclose(line.y, [0.55, 0.8])
    # of the mean AUCROC, 0.05 / (0.05 + 0.3), and not the mean of 0 and 0.25
    np.testing.assert_allclose(named(figure, "x2")["share R of all layers"].y, [1 / 7, 1.0])
    upper, lower = (trace for trace in figure.data if trace.xaxis == "x" and not trace.name)
    np.testing.assert_allclose(upper.y, [0.6, 0.9])
    np.testing.assert_allclose(lower.y, [0.5, 0.7])


def test_an_undefined_layer_is_marked_on_the_axis_with_its_reason():
    figure: Any = figures.extraction(
        summary((0, 0, NAN, NAN, f"only {HOSTILE}"), (0, 1, 0.6, NAN, "sum is 0"), (0, 2, 0.7, 1.0, ""))
    )
    left = named(figure)
    reason = "undefined: only &lt;b onclick=&quot;x&quot;&gt;bad&lt;/b&gt;"
    assert set(left) == {"AUCROC", reason}
    assert list(left[reason].x) == [1]
    assert left[reason].y[0] == figure.layout.yaxis.range[0], "on the axis"
    right = named(figure, "x2")
    assert list(right["undefined: sum is 0"].x) == [2]
    assert [trace.name for trace in figure.data if trace.showlegend].count(reason) == 1
    assert not any("<b" in trace.text[0] for trace in figure.data if trace.text is not None)


def test_a_layer_that_some_seeds_lack_is_drawn_from_the_rest_and_marked_as_such():
    figure: Any = figures.extraction(
        summary((0, 0, 0.6, 0.5, ""), (0, 1, NAN, NAN, "one class"), (1, 0, 0.7, 0.5, ""), (1, 1, 0.9, 1.0, ""))
    )
    shown = named(figure)
    np.testing.assert_allclose(shown["AUCROC"].y, [0.65, 0.9])
    mark = shown["undefined in part: one class"]
    assert (list(mark.x), mark.marker.symbol, mark.text[0]) == ([2], "circle-open", "one class (seed 0)")


def test_a_measure_that_is_undefined_everywhere_says_so_in_the_middle():
    figure: Any = figures.extraction(summary((0, 0, NAN, NAN, "only class 1 was predicted")))
    said = [text.replace("<br>", " ") for text in texts(figure)]
    assert said.count("undefined in every layer: only class 1 was predicted") == 2
    assert not named(figure)


def test_a_gap_in_a_band_is_not_filled():
    figure: Any = figures.extraction(
        summary(*((s, n, NAN if n == 2 else 0.5 + s / 10, 0.0, "x" * (n == 2)) for s in (0, 1) for n in range(5)))
    )
    bands = [list(trace.x) for trace in figure.data if trace.xaxis == "x" and not trace.name]
    assert bands == [[1, 2], [1, 2], [4, 5], [4, 5]]


def test_more_reasons_than_a_legend_can_hold_are_gathered():
    figure = figures.extraction(summary(*((0, n, NAN, NAN, f"why {n}") for n in range(9)), (0, 9, 0.5, 1.0, "")))
    assert len([name for name in named(figure) if name.startswith("undefined")]) == 4
    assert "undefined: other reasons (point at a mark)" in named(figure)


def confusions(seeds: int = 1, layers: tuple[int, ...] = (2,), tried: tuple[int, ...] = (10,)) -> pd.DataFrame:
    """Two labels; predicted 0.1 * (seed + 1) + layer / 100 + components / 1000, observed 0.9 and 0.8."""
    rows = [
        (s, n, m, a, b, 1.0 if a == b else 0.1 * (s + 1) + n / 100 + m / 1000, 1.0 if a == b else 0.9 - a / 10)
        for s, n, m, a, b in product(range(seeds), layers, tried, (0, 1), (0, 1))
    ]
    return table("seed layer n_components label_a label_b confusion_predicted confusion_observed", rows)


def agreements(*rows: tuple[int, int, int, float, str]) -> pd.DataFrame:
    return table("seed layer n_components spearman why", list(rows))


def test_confusion_shows_means_over_seeds_with_rows_for_a_and_columns_for_b():
    predicted, observed = traces(figures.confusion(confusions(seeds=3)))
    np.testing.assert_allclose(predicted.z, [[1, 0.23], [0.23, 1]])
    np.testing.assert_allclose(observed.z, [[1, 0.9], [0.8, 1]])
    assert np.asarray(observed.text).tolist() == [["1.00", "0.90"], ["0.80", "1.00"]]


def test_confusion_takes_two_thirds_of_the_depth_and_ten_components_unless_told():
    frame = confusions(layers=tuple(range(6)), tried=(5, 10))
    usual, chosen = figures.confusion(frame), figures.confusion(frame, layer=0, n_components=5)
    np.testing.assert_allclose([traces(figure)[0].z[0][1] for figure in (usual, chosen)], [0.15, 0.105])
    with pytest.raises(ValueError, match=r"confusion: layer=7 is not in this frame; it holds layer 0, 1, 2, 3, 4, 5"):
        figures.confusion(frame, layer=7)


def test_the_rank_correlation_stands_above_with_its_range_or_the_reason_why_not():
    rank = agreements((0, 2, 10, 0.5, ""), (1, 2, 10, 0.7, ""), (0, 1, 10, -1.0, ""))
    shown: Any = figures.confusion(confusions(), rank)
    assert shown.layout.title.text == (
        "Layer 3, 10 principal components. Rank correlation 0.60 (from 0.50 to 0.70 over 2 seeds)."
    )
    lost: Any = figures.confusion(confusions(), agreements((0, 2, 10, NAN, "anchors <coincide>")))
    assert "Rank correlation undefined: anchors &lt;coincide&gt;." in lost.layout.title.text


def test_label_words_are_ticks_by_position_and_escaped_and_one_short_is_an_error():
    figure: Any = figures.confusion(confusions(), words=[" <i>", " <i>"])
    assert list(figure.layout.xaxis.tickvals) == [0, 1], "equal words are not merged"
    assert list(figure.layout.yaxis2.ticktext) == ["&lt;i&gt;", "&lt;i&gt;"]
    assert "<i>" not in str(np.asarray(figure.data[0].customdata))
    with pytest.raises(ValueError, match=r"confusion: 1 words for labels up to 1"):
        figures.confusion(confusions(), words=["one"])


def test_a_cell_that_is_not_defined_says_so():
    frame = confusions()
    frame.loc[(frame["label_a"] == 1) & (frame["label_b"] == 0), "confusion_observed"] = NAN
    figure: Any = figures.confusion(frame)
    (note,) = (note for note in figure.layout.annotations if note.text == "n/a")
    assert (note.x, note.y, note.xref) == (0, 1, "x2")
    assert "n/a in observed: not defined for this pair of labels." in figure.layout.title.text


def test_the_sweep_has_one_map_for_each_number_of_components():
    figure: Any = figures.confusion_sweep(confusions(layers=(0, 2), tried=(5, 10, 20, 50)), layer=0)
    np.testing.assert_allclose([heat.z[0][1] for heat in figure.data], [0.105, 0.11, 0.12, 0.15])
    assert texts(figure)[:4] == [f"{n} components" for n in (5, 10, 20, 50)]


def test_agreement_has_a_line_for_each_number_of_components_and_marks_what_is_undefined():
    figure = figures.agreement(
        agreements((0, 0, 5, 0.1, ""), (0, 1, 5, NAN, "constant"), (0, 0, 10, 0.3, ""), (0, 1, 10, 0.4, ""))
    )
    shown = named(figure)
    assert list(shown["10 components"].y) == [0.3, 0.4]
    assert shown["undefined in part: constant"].text[0] == "constant (seed 0, components: 5)"


def scores(*rows: tuple[int, str, float, float]) -> pd.DataFrame:
    return table("seed arm accuracy macro_f1", list(rows)).assign(n=10, majority=0.6, class_counts="6 4")


def test_reweighting_compares_arms_with_the_commonest_class():
    figure: Any = figures.reweighting(
        scores((0, "beta", 0.9, 0.8), (0, "vanilla", 0.5, 0.4), (1, "beta", 0.7, 0.6), (1, "vanilla", 0.5, NAN))
    )
    shown = named(figure)
    np.testing.assert_allclose(shown["accuracy"].y, [0.5, 0.8])
    np.testing.assert_allclose(shown["accuracy"].error_y.array, [0, 0.1], atol=1e-12)
    np.testing.assert_allclose(shown["macro-F1"].y, [0.4, 0.7])
    np.testing.assert_allclose(shown["always the commonest class"].y, 0.6)
    assert list(figure.layout.xaxis.ticktext) == ["plain prompt", "label words re-weighted"]
    assert "of each class, in class order: 6 4." in figure.layout.title.text
    assert "1 of 4 rows have no macro-F1" in figure.layout.title.text


def test_a_score_that_is_undefined_is_written_as_such():
    assert "undefined" in texts(figures.reweighting(scores((0, "beta", 0.9, NAN))))


def test_losses_are_averaged_over_the_steps_of_an_epoch_and_then_over_seeds():
    rows = [(0, 0, 0, 1.0), (0, 0, 1, 3.0), (0, 1, 0, 1.0), (1, 0, 0, 4.0), (1, 1, 0, 2.0)]
    figure: Any = figures.losses(table("seed epoch step loss", rows))
    line = named(figure)["mean loss"]
    assert (list(line.x), list(line.y)) == ([1, 2], [3.0, 1.5])
    lost: Any = figures.losses(table("seed epoch step loss", [(0, 0, 0, float("inf"))]))
    assert "no loss is a finite number" in texts(lost)


def betas(demos: int, seeds: int = 1) -> pd.DataFrame:
    rows = [(s, n, h, d, n - h + 10.0 * d + s) for s, n, h, d in product(range(seeds), (0, 1), range(3), range(demos))]
    return table("seed layer head demo beta", rows)


def test_beta_is_a_map_of_layers_and_heads_around_zero_with_one_for_each_of_few_demonstrations():
    figure: Any = figures.beta(betas(2, seeds=3))
    mean, first, second = (np.asarray(heat.z) for heat in figure.data)
    np.testing.assert_allclose(first, [[1, 0, -1], [2, 1, 0]])
    np.testing.assert_allclose(second, first + 10)
    np.testing.assert_allclose(mean, first + 5)
    scale = figure.layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-12, 12)
    assert [len(traces(figures.beta(betas(demos)))) for demos in (1, 6, 7)] == [1, 7, 1]
    assert list(figure.data[0].y) == [1, 2]


def test_untrained_weights_have_a_scale_too():
    scale: Any = figures.beta(betas(1).assign(beta=0.0)).layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-1, 1)


def test_a_flow_that_the_frame_lacks_is_named():
    frame = table("seed layer flow value", [(0, 0, "S_wp", 1.0), (0, 0, "S_ww", 1.0)])
    with pytest.raises(ValueError, match=r"information_flow: the frame has no rows of S_pq"):
        figures.information_flow(frame)


CALLS = {
    "extraction": (figures.extraction, summary((0, 0, 0.5, 1.0, "")), "why"),
    "confusion": (figures.confusion, confusions(), "label_b"),
    "confusion_sweep": (figures.confusion_sweep, confusions(), "confusion_predicted"),
    "agreement": (figures.agreement, agreements((0, 0, 5, 0.1, "")), "spearman"),
    "reweighting": (figures.reweighting, scores((0, "beta", 0.9, 0.8)), "majority"),
    "losses": (figures.losses, table("seed epoch step loss", [(0, 0, 0, 1.0)]), "loss"),
    "beta": (figures.beta, betas(1), "head"),
    "information_flow": (figures.information_flow, table("seed layer flow value", [(0, 0, "S_wp", 1.0)]), "flow"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_frame_without_rows_or_columns_is_refused(name):
    draw, frame, column = CALLS[name]
    with pytest.raises(ValueError, match=rf"{name}: the frame has no rows"):
        draw(frame.iloc[:0])
    with pytest.raises(ValueError, match=rf"{name}: the frame has no column '{column}'; it holds "):
        draw(frame.drop(columns=column))
    with pytest.raises(ValueError, match=rf"{name}: the frame has no column .*; it holds none"):
        draw(pd.DataFrame())
