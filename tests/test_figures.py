"""Figures show the numbers of the frame they are given, and open from disk without a network."""

import base64
import json
import math
import os
import re
import sys
from concurrent.futures import CancelledError
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import psutil
import pytest

from anchorlens import figures

NAMES = {name for name, _ in figures.FLOWS.values()}
HOSTILE = '<script>alert("1")</script>'


def frame(values: dict[tuple[int, int, str], list[float]]) -> pd.DataFrame:
    """Rows of (seed, layer, flow) with one value per example."""
    rows = [(*at, example, value) for at, each in values.items() for example, value in enumerate(each)]
    return pd.DataFrame(rows, columns=pd.Index(["seed", "layer", "flow", "example", "value"]))


def random_frame(seeds: range, layers: int = 4) -> pd.DataFrame:
    chance = np.random.default_rng(0)
    at = [(seed, layer, flow) for seed in seeds for layer in range(layers) for flow in figures.FLOWS]
    return frame({each: chance.uniform(0.001, 1, 3).tolist() for each in at})


def traces(figure: Any, side: str) -> list[Any]:
    """The traces on the ``left`` (shares) or ``right`` (means)."""
    return [trace for trace in figure.data if trace.xaxis == {"left": "x", "right": "x2"}[side]]


def lines(figure: Any, side: str) -> dict[str, Any]:
    """The named lines on one side; what has no name is a band."""
    return {trace.name: trace for trace in traces(figure, side) if trace.name}


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_shares_of_the_three_flows_sum_to_one_in_every_layer(seeds):
    shown = lines(figures.information_flow(random_frame(range(seeds))), "left")
    assert set(shown) == NAMES
    np.testing.assert_allclose(sum(np.asarray(line.y) for line in shown.values()), 1, rtol=0, atol=1e-12)


def test_a_share_is_that_of_the_means_and_layers_are_counted_from_one():
    by_hand = frame({(0, 0, "S_wp"): [1, 5], (0, 0, "S_pq"): [0, 2], (0, 0, "S_ww"): [0, 0]})  # means 3, 1, 0
    figure = figures.information_flow(by_hand)
    shares = {name: list(line.y) for name, line in lines(figure, "left").items()}
    assert shares == {"text → label word": [0.75], "label word → target": [0.25], "all other pairs": [0.0]}
    assert [list(line.x) for line in lines(figure, "left").values()] == [[1]] * 3
    assert list(lines(figure, "right")["text → label word"].y) == [3]


def test_seeds_are_normalised_one_by_one_before_they_are_averaged():
    flows = {"S_wp": (1, 0), "S_pq": (0, 100), "S_ww": (1, 100)}
    two = frame({(seed, 0, flow): [values[seed]] for flow, values in flows.items() for seed in (0, 1)})
    shares = {name: list(line.y) for name, line in lines(figures.information_flow(two), "left").items()}
    assert shares == {"text → label word": [0.25], "label word → target": [0.25], "all other pairs": [0.5]}


def test_several_seeds_give_a_band_from_the_lowest_to_the_highest_and_one_seed_none():
    one, three = (figures.information_flow(random_frame(range(n))) for n in (1, 3))
    for side in ("left", "right"):
        assert len(traces(one, side)) == 3
        assert len(traces(three, side)) == 9
    upper, lower, line = (np.asarray(trace.y) for trace in traces(three, "right")[:3])
    assert (lower < line).all()
    assert (line < upper).all()
    assert traces(three, "right")[1].fill == "tonexty"
    rows = random_frame(range(3)).query("flow == 'S_wp'")
    means = rows.pivot_table(index="layer", columns="seed", values="value").to_numpy()
    for shown, meant in ((upper, means.max(axis=1)), (lower, means.min(axis=1)), (line, means.mean(axis=1))):
        np.testing.assert_allclose(shown, meant)


def test_a_value_of_zero_is_left_out_on_the_logarithmic_axis_only():
    values = random_frame(range(1))
    values.loc[(values["flow"] == "S_wp") & (values["layer"] == 3), "value"] = 0
    figure: Any = figures.information_flow(values)
    assert figure.layout.yaxis2.type == "log"
    assert figure.layout.yaxis.type != "log"
    right, left = (lines(figure, side)["text → label word"].y for side in ("right", "left"))
    assert [math.isnan(y) for y in right] == [False, False, False, True]
    assert left[3] == 0


def test_a_seed_whose_value_is_zero_still_counts_in_the_mean():
    values = {(seed, 0, flow): [1.0] for seed in (0, 1) for flow in figures.FLOWS} | {(1, 0, "S_wp"): [0.0]}
    figure = figures.information_flow(frame(values))
    assert list(lines(figure, "right")["text → label word"].y) == [0.5]


def test_the_twin_is_dashed_named_as_control_and_drawn_without_a_band():
    figure = figures.information_flow(random_frame(range(1)), random_frame(range(2), layers=2))
    for side in ("left", "right"):
        shown = lines(figure, side)
        assert {name: line.line.dash for name, line in shown.items()} == {
            **dict.fromkeys(NAMES, "solid"),
            **{f"{name}, untrained control": "dash" for name in NAMES},
        }
        assert len(shown) == len(traces(figure, side)), "no bands"


def test_the_same_flow_has_the_same_colour_everywhere_and_one_entry_in_the_legend():
    figure: Any = figures.information_flow(random_frame(range(1)), random_frame(range(1)))
    for name, colour in figures.FLOWS.values():
        assert {trace.line.color for trace in figure.data if trace.name.startswith(name)} == {colour}
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert len(shown) == len(set(shown)) == 6


def test_roles_show_every_token_as_text_even_if_it_is_hostile():
    text = figures.roles([HOSTILE, "\n", "&amp;", "a'b"], ["TEXT", "TEMPLATE", "ANCHOR", "TARGET"])
    assert "<script" not in text
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in text
    assert "⏎<br>" in text
    assert "&amp;amp;" in text


def test_roles_stand_on_whatever_is_behind_them_light_or_dark():
    text = figures.roles(["Review:", " fine", "Good"], ["TEMPLATE", "TEXT", "ANCHOR"])
    assert "#fff" not in text
    styles = dict(zip(("TEMPLATE", "TEXT", "ANCHOR"), text.split("<span ")[1:4], strict=True))
    assert "color:#111" in styles["ANCHOR"], "dark ink on a light colour"
    assert not [name for name in ("TEMPLATE", "TEXT") if "color:#111" in styles[name]], "the page's own ink"


def test_a_figure_is_shown_as_wide_as_its_place_and_its_picture_as_wide_as_it_says(tmp_path, monkeypatch):
    drawn, wide = figures.information_flow(random_frame(range(1))), []
    monkeypatch.setattr(figures, "has_browser", lambda: True)
    monkeypatch.setattr(figures.painting, "begin", lambda plain: wide.append(plain["layout"]["width"]) or (lambda: b""))
    told: list[dict] = []
    monkeypatch.setattr("IPython.display.display", lambda shown, raw: told.append(shown))
    (folder := tmp_path / "run" / "key").mkdir(parents=True)
    figures.show(drawn, folder, "flow")
    layout = told[0]["application/vnd.plotly.v1+json"]["layout"]
    assert (layout.get("width"), layout["autosize"], layout["meta"]) == (None, True, {"width": 960})
    assert (wide, drawn.layout.width) == ([960], 960)
    assert '"width":960}' in (page := (folder / "flow.html").read_text())
    assert '"width":960,' not in page.replace('"meta":{"width":960}', "")


def test_roles_explain_the_colours_that_occur_and_no_others():
    text = figures.roles(["Review:", " fine"], ["TEMPLATE", "TEXT"])
    assert "> template <" in text
    assert "> text <" in text
    assert "target" not in text
    with pytest.raises(ValueError, match="zip"):
        figures.roles(["one", "two"], ["TEXT"])


def test_a_saliency_map_marks_anchors_and_target_by_position_and_escapes_tokens():
    maps = np.arange(18, dtype=float).reshape(2, 3, 3)
    figure: Any = figures.saliency_maps(maps, ["good", "good", HOSTILE], ["ANCHOR", "TEXT", "TARGET"], [1])
    heat, axis = figure.data[0], figure.layout.xaxis
    assert list(axis.tickvals) == [0, 2], "positions, since words would merge repeated tokens"
    assert axis.ticktext[0] == '<span style="color:#0072B2"><b>good</b></span>'
    assert not any("<script" in text for text in [*axis.ticktext, *np.ravel(heat.text)])
    shown = np.asarray(heat.z)
    np.testing.assert_array_equal(np.isnan(shown), np.triu(np.ones((3, 3), dtype=bool)))
    np.testing.assert_allclose(shown[2, :2], np.sqrt(maps[1, 2, :2] / 16))
    assert "target" in axis.ticktext[1], "the target is named, whatever its token"


def test_a_layer_without_saliency_is_drawn_empty_and_not_divided_by_zero():
    figure = figures.saliency_maps(np.zeros((1, 2, 2)), ["a", "b"], ["ANCHOR", "TARGET"], [0])
    assert np.nanmax(np.asarray(figure.data[0]["z"])) == 0


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run's folder in a store."""
    made = tmp_path / "2_1_information_flow" / "abc.partial"
    made.mkdir(parents=True)
    return made


def test_a_saved_page_shares_one_script_of_the_store_and_asks_no_network(folder, monkeypatch):
    monkeypatch.setattr(figures, "has_browser", lambda: False)
    (page,) = figures.save(figures.information_flow(random_frame(range(1))), folder, "flow")
    assert page == folder / "flow.html"
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*\ssrc=[\"']?([^\"'\s>]+)", text) == ["../../plotly.min.js"]
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", text)
    script = (page.parent / "../../plotly.min.js").resolve()
    assert script.parent == folder.parent.parent
    assert script.stat().st_size > 1e6
    script.write_text("kept")
    figures.save(go.Figure(), folder, "other")
    assert script.read_text() == "kept", "written once for all runs"


@pytest.mark.parametrize("browser", [True, False])
def test_a_picture_is_written_and_shown_exactly_where_there_is_a_browser(folder, monkeypatch, browser):
    monkeypatch.setattr(figures, "has_browser", lambda: browser)
    monkeypatch.setattr(figures.painting, "begin", lambda figure: lambda: b"\x89PNG")
    picture = {"image/png"} if browser else set()
    paths = figures.save(go.Figure(), folder, "flow")
    assert [path.name for path in paths] == ["flow.html", "flow.png"][: 1 + browser]
    assert (folder / "flow.png").exists() == browser
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    figures.show(go.Figure(), folder, "flow")
    assert [set(data) for data in shown] == [{"application/vnd.plotly.v1+json"} | picture]


@pytest.mark.parametrize("fails", [False, True])
def test_while_one_figure_is_drawn_the_next_is_made_and_one_that_cannot_be_made_takes_no_other_along(
    folder, monkeypatch, fails
):
    went: list[str] = []

    def begin(plain):
        title = plain["layout"]["title"]["text"]
        went.append(f"begin {title}")
        return lambda: went.append(f"wait {title}") or title.encode()

    def made(title):
        went.append(f"make {title}")
        return go.Figure(layout={"title": title}) if title != "c" or not fails else go.Figure(layout={"nothing": 1})

    monkeypatch.setattr(figures, "has_browser", lambda: True)
    monkeypatch.setattr(figures.painting, "begin", begin)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(base64.b64decode(data["image/png"])))
    with pytest.raises(ValueError, match="nothing") if fails else nullcontext():
        figures.show_all(folder, a=lambda: made("a"), b=lambda: made("b"), c=lambda: made("c"))
    whole = ["make a", "begin a", "make b", "begin b", "make c", "begin c", "wait a", "wait b", "wait c"]
    assert went == [each for each in whole if not fails or each not in ("begin c", "wait c")]
    assert shown == [b"a", b"b", b"c"][: 2 if fails else 3]
    assert (folder / "b.png").read_bytes() == b"b"
    assert (folder / "b.html").is_file()


def test_this_machine_writes_the_picture_that_it_says_it_can(folder):
    paths = figures.save(figures.information_flow(random_frame(range(1))), folder, "flow")
    assert any(path.suffix == ".png" for path in paths) == figures.has_browser()
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths if path.suffix == ".png")


def test_a_picture_needs_both_a_browser_and_kaleido(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "kaleido", ModuleType("kaleido"))
    assert not figures.has_browser()
    (tmp_path / "chromium").touch(mode=0o755)
    assert figures.has_browser()
    monkeypatch.setitem(sys.modules, "kaleido", None)
    assert not figures.has_browser()


@pytest.fixture
def painting():
    """The module, with no browser before and after."""
    if not figures.has_browser():
        pytest.skip("no browser, or no kaleido, to draw figures with")
    figures.painting.close()
    before = set(psutil.Process().children())
    yield figures.painting
    figures.painting.close()
    assert set(psutil.Process().children()) <= before


def bar(color: str) -> dict[str, Any]:
    drawn = go.Figure(go.Bar(y=[1, 3], marker_color=color), {"title": color, "width": 320, "height": 240})
    return json.loads(drawn.to_json() or "")


def test_one_browser_draws_figure_after_figure_each_as_if_it_were_the_first(painting, monkeypatch):
    monkeypatch.setattr(painting, "FIGURES", 6)
    before = set(psutil.Process().children())
    painting.draw(bar("green"))
    started = set(psutil.Process().children()) - before
    real = json.loads(figures.information_flow(random_frame(range(2))).to_json() or "")
    drawn = [painting.draw(each) for each in (bar("red"), real, bar("blue")) * 3]  # the tab is loaded anew meanwhile
    assert len(set(drawn)) == 3
    assert drawn == drawn[:3] * 3
    assert int.from_bytes(drawn[0][16:20]) == 640, "two pixels for each of its own"
    assert set(psutil.Process().children()) - before == started
    painting.close()
    assert painting.draw(real) == drawn[1], "and in another browser"


def test_a_browser_that_ended_gives_way_to_another(painting):
    painting.draw(bar("red"))
    (first, *_) = started = painting.current().processes
    first.kill()
    psutil.wait_procs(started, timeout=10)
    assert painting.draw(bar("red")).startswith(b"\x89PNG")
    assert not painting.current().processes & started


def test_a_picture_that_is_lost_takes_no_other_browser_along(monkeypatch):
    class Painter:
        open = True

        def well(self):
            return self.open

        def begin(self, figure, *, scale):
            def drawn():
                if figure["lost"]:
                    raise CancelledError
                return b"\x89PNG"

            return drawn

        def close(self):
            self.open = False

    painting = figures.painting
    monkeypatch.setattr(painting, "_held", SimpleNamespace(painters={os.getpid(): (first := Painter())}))
    lost = painting.begin({"lost": True})
    first.open = False  # it ended, and the next figure gets another browser
    monkeypatch.setattr(painting, "Painter", Painter)
    drawn, second = painting.begin({"lost": False}), painting.current()
    assert second is not first
    with pytest.raises(RuntimeError, match="has ended: run the cell again"):
        lost()
    assert painting.current() is second
    assert second.open
    assert drawn() == b"\x89PNG"


def test_a_browser_that_stands_still_is_an_error_and_gives_way_to_another(painting, monkeypatch):
    painting.draw(bar("red"))
    usual = painting.PATIENCE
    monkeypatch.setattr(painting, "PATIENCE", 1)
    family = [each for first in painting.current().processes for each in (first, *first.children(recursive=True))]
    for each in family:
        each.suspend()
    with pytest.raises(TimeoutError):
        painting.draw(bar("red"))
    monkeypatch.setattr(painting, "PATIENCE", usual)
    assert painting.draw(bar("red")).startswith(b"\x89PNG")
    assert psutil.wait_procs(family, timeout=10)[1] == []
