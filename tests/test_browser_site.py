"""The flow explorer and the report in a real browser: from disk, by keyboard, at phone width, light and dark."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from browser_helpers import DRAWN, watched
from nbformat.v4 import new_code_cell, new_output
from report_helpers import add

from anchorlens import report
from anchorlens.report import notebooks

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


def told(*command: str) -> dict:
    done = subprocess.run([sys.executable, "-m", "anchorlens.cli", *command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def run(chromium, tmp_path_factory) -> Path:
    """The folder of a run of 2_1 in a store of its own."""
    store = tmp_path_factory.mktemp("a store")
    return Path(told("run", "2_1_information_flow", "-p", "limit=4", "--store", str(store))["folder"])


@pytest.fixture(scope="module")
def site(run) -> Path:
    """The first page of the report of that store."""
    store = run.parents[1]
    return Path(told("report", str(store), str(store.parent / f"{store.name} report"))["index"])


def test_the_explorers_slider_goes_from_layer_to_layer_by_keyboard(run, watched):
    assert (run / "flow.html").stat().st_size < 200_000
    page = watched.open(run / "flow.html")
    page.locator("input.layer").focus()
    seen = [page.locator(".now b").inner_text()]
    for _ in range(7):
        page.keyboard.press("ArrowRight")
        seen.append(page.locator(".now b").inner_text())
    assert seen == [f"layer {layer} of 8" for layer in range(1, 9)]
    watched.shoot("explorer")


def test_the_explorer_draws_lines_and_says_what_a_word_takes_in(run, watched):
    page = watched.open(run / "flow.html")
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
    page.locator("#search").fill("2_1")
    page.wait_for_function("[...document.querySelectorAll('#table tbody tr')].some(row => row.offsetParent !== null)")
    page.locator("#table th button, #table th[tabindex]").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#table th[aria-sort]")
