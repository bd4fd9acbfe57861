"""What a run leaves opens from disk in a real browser, and asks nothing of any network. Needs Chromium or Chrome."""

import html
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser_helpers import DRAWN, leaves, watched

from anchorlens import figures

HOSTILE = '<img src="x" onerror="document.title = \'taken\'"><script>document.title = "taken"</script>'
FIGURES = {
    *("saliency_maps", "information_flow", "isolation", "extraction", "reweighting", "compression", "confusion"),
}


@pytest.fixture(scope="module")
def tour(chromium, tmp_path_factory) -> Path:
    """The folder of a run of the tour, by the command line; none where there is no browser to look at it."""
    store = tmp_path_factory.mktemp("a store")  # with a blank, as folders of people have
    command = [
        sys.executable,
        "-m",
        "anchorlens.cli",
        "run",
        "0_tour",
        "-p",
        "limit=4",
        "--store",
        str(store),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


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
    pages = sorted(path for path in tour.glob("*.html") if path.stem != "flow")  # which test_browser_site opens
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
