"""What a run leaves, and a report, in a real browser: from disk, by keyboard, at phone width, light and dark.

Nothing may ask any network. Needs Chromium or Chrome.
"""

import html
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser_helpers import DRAWN, leaves, watched
from nbformat.v4 import new_code_cell, new_output
from report_helpers import add

from anchorlens import figures, report
from anchorlens.report import notebooks

HOSTILE = '<img src="x" onerror="document.title = \'taken\'"><script>document.title = "taken"</script>'
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
FIGURES = {
    *("saliency_maps", "information_flow", "isolation", "extraction", "reweighting", "compression", "confusion"),
}


@pytest.fixture(scope="module")
def tour(chromium, tmp_path_factory) -> Path:
    """The folder of a run of the tour, by the command line; none where there is no browser to look at it."""
    store = tmp_path_factory.mktemp("a store")  # with a blank, as folders of people have
    return Path(told("run", "0_tour", "-p", "limit=4", "--store", str(store))["folder"])


@pytest.fixture(scope="module")
def site(tour) -> Path:
    """The first page of the report of that store."""
    store = tour.parents[1]
    return Path(told("report", str(store), str(store.parent / f"{store.name} report"))["index"])


def told(*command: str) -> dict:
    done = subprocess.run([sys.executable, "-m", "anchorlens.cli", *command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<script>console.error('an error')</script>", "console: an error"),
        ("<script>throw Error('a fault')</script>", "script: a fault"),
        ("<script src='nowhere.js'></script>", "not found: file:"),
        ("<img src='https://example.org/a.png'>", "asks https://example.org/a.png"),
        ("<link rel='stylesheet' href='//example.org/a.css'>", "console:"),  # below file: there is no such folder
        ("<script>fetch('http://example.org/').catch(() => 0)</script>", "asks http://example.org/"),
        ("<script>new WebSocket('ws://example.org/')</script>", "asks ws://example.org/"),
    ],
)
def test_a_page_on_which_something_goes_wrong_is_found_out(chromium, tmp_path, body, said):
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset='utf-8'>{body}")
    with watched(chromium) as page:
        page.open(tmp_path / "page.html").wait_for_timeout(50)
        assert any(fault.startswith(said) for fault in page.faults), page.faults


def test_what_leaves_the_machine_is_told_from_what_does_not():
    inside = ("file:///a/b.html", "data:text/html,a", "blob:null/1", "http://localhost:8888/lab", "ws://127.0.0.1:1/")
    assert not any(map(leaves, inside))
    assert all(map(leaves, ("https://cdn.plot.ly/plotly.js", "http://localhost.example.org/", "ws://10.0.0.1/")))


def test_every_figure_of_a_run_opens_from_disk_and_is_drawn(tour, watched):
    pages = sorted(path for path in tour.glob("*.html") if path.stem != "flow")
    assert {path.stem for path in pages} >= FIGURES
    for path in pages:
        page = watched.open(path)
        page.wait_for_selector(DRAWN)
        box = page.locator(DRAWN).first.bounding_box()
        assert box, path
        assert min(box["width"], box["height"]) > 200, path
        assert page.evaluate("document.querySelector('.js-plotly-plot').data.length") > 0, path
        assert watched.faults == [], path
    watched.shoot("figure")


@pytest.mark.parametrize("width", [390, 800, 1600])
def test_no_figure_is_wider_than_its_window(tour, watched, width):
    watched.page.set_viewport_size({"width": width, "height": 900})
    for path in sorted(tour.glob("*.html")):
        page = watched.open(path)
        if path.stem != "flow":
            page.wait_for_selector(DRAWN)
            drawn = page.locator(".js-plotly-plot .main-svg").first.bounding_box()
            assert drawn["x"] + drawn["width"] <= width, path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


def test_a_line_can_be_hidden_by_its_name_in_the_legend(tour, watched):
    page = watched.open(tour / "information_flow.html")
    shown = "document.querySelector('.js-plotly-plot').data.filter(t => t.visible !== 'legendonly').length"
    before = page.evaluate(shown)
    page.locator(".legendtoggle").first.click()
    page.wait_for_function(f"{shown} < {before}")


def test_tokens_that_look_like_html_are_shown_and_not_run(watched, tmp_path):
    tokens = ["a", HOSTILE, "b"]
    drawn = figures.saliency_maps(np.ones((1, 3, 3)), tokens, ["TEXT", "LABEL", "TARGET"], [0])
    folder = tmp_path / "run" / "key"
    folder.mkdir(parents=True)
    (path, *_) = figures.save(drawn.update_layout(width=900), folder, "saliency_maps")
    watched.open(path).wait_for_selector(DRAWN)
    assert watched.page.title() != "taken"
    shown = tmp_path / "roles.html"
    shown.write_text(f"<!doctype html><meta charset='utf-8'>{figures.roles(tokens, ['TEXT', 'LABEL', 'TARGET'])}")
    page = watched.open(shown)
    assert page.title() != "taken"
    assert page.locator("img, script").count() == 0
    assert html.unescape(page.locator("body").inner_text()).count("onerror") == 1


def test_the_explorers_slider_goes_from_layer_to_layer_by_keyboard(tour, watched):
    assert (tour / "flow.html").stat().st_size < 200_000
    page = watched.open(tour / "flow.html")
    page.locator("input.layer").focus()
    seen = [page.locator(".now b").inner_text()]
    for _ in range(7):
        page.keyboard.press("ArrowRight")
        seen.append(page.locator(".now b").inner_text())
    assert seen == [f"layer {layer} of 8" for layer in range(1, 9)]
    watched.shoot("explorer")


def test_the_explorer_draws_lines_and_says_what_a_word_takes_in(tour, watched):
    page = watched.open(tour / "flow.html")
    inked = (
        "[...document.querySelector('.lines canvas').getContext('2d').getImageData(40, 0, 200, 400).data].some(Boolean)"
    )
    assert page.evaluate(inked)
    page.locator(".words.to").focus()
    page.keyboard.press("End")
    assert "→" in page.locator(".said").inner_text()


def pages(site: Path) -> list[Path]:
    return sorted(site.parent.rglob("*.html"))


def test_every_page_of_the_report_opens_from_disk_and_no_link_leads_nowhere(site, watched):
    assert len(pages(site)) > 2
    for path in pages(site):
        page = watched.open(path)
        for link in page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"):
            if link.startswith("file:"):
                target = Path(page.evaluate("link => decodeURIComponent(new URL(link).pathname)", link))
                assert target.exists(), (path, link)
        assert watched.faults == [], path


def test_a_run_of_the_report_shows_its_figures_live_when_they_come_into_view(site, watched):
    (path,) = [each for each in pages(site) if each.parent.name == "runs" or "runs" in each.parts[-3:]]
    page = watched.open(path)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.locator(".js-plotly-plot, .figure, [data-figure]").first.scroll_into_view_if_needed()
    page.wait_for_selector(DRAWN)
    watched.shoot("report-run")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_no_page_of_the_report_scrolls_sideways(site, chromium, size, scheme):
    with watched(chromium, color_scheme=scheme) as page:
        page.page.set_viewport_size(size)
        for path in pages(site):
            page.open(path)
            assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert page.faults == []


WORDS = {"tickvals": [1, 2], "ticktext": ["label words and template", "as many random tokens"]}
HEAT = {
    "type": "heatmap",
    "z": [[0, 1], [1, 0]],
    "colorbar": {"tickvals": [0, 1], "ticktext": ["0 = confused", "1 = told apart"]},
}
PANELS = {"yaxis": {}, "xaxis2": {"anchor": "y2", "domain": [0.55, 1], **WORDS}, "yaxis2": {"anchor": "x2"}}


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        ([{"type": "bar", "x": [1, 2], "y": [3, 4], "name": "a"}], {"xaxis": WORDS, "legend": {"orientation": "h"}}),
        ([HEAT, {**HEAT, "xaxis": "x2", "yaxis": "y2"}], {"xaxis": {"domain": [0, 0.45], **WORDS}, **PANELS}),
    ],
    ids=["alone", "two maps with a scale"],
)
def test_no_figure_of_the_report_is_cut_off_on_a_phone(root, out, chromium, data, layout):
    shown = {notebooks.PLOTLY: {"data": data, "layout": {"width": 960, "height": 430, **layout}}}
    run = add(root, cells=[new_code_cell("1", outputs=[new_output("display_data", shown)])])
    report.build(root, out)
    with watched(chromium) as page:
        page.page.set_viewport_size(PHONE)
        page.open(out / "runs" / f"2_1_information_flow-{run.final.name}.html").wait_for_selector(DRAWN)
        assert page.page.evaluate(
            "[...document.querySelectorAll('.canvas')].every(c => c.scrollWidth <= c.clientWidth)"
        )
        maps = page.page.locator(".canvas .subplot .plot").all()
        assert [each for each in maps if each.bounding_box()["width"] < 0.5 * PHONE["width"]] == []
        assert page.faults == []


def test_light_and_dark_differ_and_the_button_changes_between_them(site, watched):
    page = watched.open(site)
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"{colour} !== '{before}'")
    page.reload()
    assert page.evaluate(colour) != before, "the choice is kept"
    watched.shoot("report")


def test_runs_are_searched_and_sorted_by_keyboard(site, watched):
    page = watched.open(site)
    page.locator("#search").fill("no such run")
    page.wait_for_function("[...document.querySelectorAll('#table tbody tr')].every(row => row.offsetParent === null)")
    page.locator("#search").fill("0_tour")
    page.wait_for_function("[...document.querySelectorAll('#table tbody tr')].some(row => row.offsetParent !== null)")
    page.locator("#table th button, #table th[tabindex]").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#table th[aria-sort]")


def test_the_path_of_a_model_is_searched_where_its_last_folder_is_shown(root, out, watched):
    add(root, model="/home/me/models/gpt2-small")
    add(root, key="1" * 16, notebook="0_tour")
    report.build(root, out)
    page = watched.open(out / "index.html")
    page.locator("#search").fill("me/models")
    page.wait_for_function("document.getElementById('count').textContent === '1 of 2 runs'")
    assert page.locator("#table tbody tr:visible td:nth-child(3)").inner_text() == "gpt2-small"


def test_the_tools_of_a_figure_do_not_lie_on_it(site, watched):
    (path,) = [each for each in pages(site) if each.parent.name == "runs"]
    page = watched.open(path)
    page.locator("[data-figure]").first.scroll_into_view_if_needed()
    page.wait_for_selector(DRAWN)
    figure = page.locator(DRAWN).first
    figure.hover()
    tools = page.locator(".modebar").first.bounding_box()
    assert tools["height"] > 0
    assert tools["y"] + tools["height"] <= figure.bounding_box()["y"]
