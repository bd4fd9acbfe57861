"""No text that came from data is more than text on a page; what is formatted stays so."""

import html
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from report_helpers import (
    HOSTILE,
    Page,
    add,
    cells_of,
    compared,
    figure,
    site,
)

from anchorlens import store
from anchorlens.report import drawings, formulas, markup, notebooks, runs

OUTPUTS = {
    "text": lambda said: new_output("display_data", {"text/plain": said}),
    "html": lambda said: new_output("display_data", {"text/html": f"<table><tr><td>{said}</td></tr></table>"}),
    "markdown": lambda said: new_output("display_data", {"text/markdown": said}),
    "error": lambda said: new_output("error", ename="E", evalue=said, traceback=[said]),
    "stream": lambda said: new_output("stream", text=said),
}


@pytest.mark.parametrize("place", [*OUTPUTS, "prose", "code"])
def test_a_hostile_text_stays_text_in_the_page_of_a_run(root, out, place):
    cells = {
        "prose": lambda said: new_markdown_cell(f"<div>{said}</div>\n\n[a](<{said}>) ![b](<{said}>) $x${said}$y$"),
        "code": new_code_cell,
    }.get(place, lambda said: new_code_cell("1", outputs=[OUTPUTS[place](said)]))
    add(root, cells=[cells(said) for said in HOSTILE])
    held(site(root, out))


def test_a_hostile_text_stays_text_wherever_a_store_may_hold_one(root, out):
    for i, said in enumerate(HOSTILE):
        name = said.replace("/", "∕")[:60]
        add(root, notebook=name, model=said, task=said, label_words=said)
        store.Run(root / "2_2_isolation" / f"{i:016x}").leave("failed.json", json.dumps({"error": said}))
    frame = pd.concat([compared(claim=said, model=said, why=said, published=said) for said in HOSTILE])
    found = site(root, out, compare=lambda _: frame)
    held(found)
    assert all(re.fullmatch(r"[\w./-]+", str(path.relative_to(out))) for path in out.rglob("*"))
    words = "".join(found["index.html"].words)
    assert not [said for said in HOSTILE if said[:70] not in words]


def held(found: dict[str, Page]) -> None:
    """No page has a tag, a handler or an address that its template did not write."""
    for name, page in found.items():
        assert page.tags.count("script") == 2, name
        assert {"iframe", "style", "object", "base", "textarea"}.isdisjoint(page.tags), name
        assert not [each for each in page.attributes if each.startswith("on")], name
        assert not [link for link in page.links if link.strip().lower().startswith(("javascript:", "data:"))], name
        assert not [each for each in page.loaded if each == "x"], name
        assert "49{%" not in "".join(page.words)


@pytest.mark.parametrize("said", HOSTILE)
def test_a_hostile_text_in_a_figure_does_not_end_its_script(said):
    text = notebooks.script({"text": [said]})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"text": [said]}


@pytest.mark.parametrize(
    ("layout", "lost"),
    [
        ({"images": [{"source": "https://a.example/x.png"}]}, "a.example"),
        ({"template": {"layout": {"images": [{"source": "https://a.example/x.png"}]}}}, "a.example"),
    ],
)
def test_a_figure_that_would_load_a_picture_is_drawn_without(layout, lost):
    (cell,) = cells_of(new_code_cell("1", outputs=[new_output("display_data", figure(**layout))]))
    assert cell.outputs[0].kind == "figure"
    assert lost not in cell.outputs[0].figure.json


def test_a_figure_as_wide_as_its_place_keeps_its_own_width_for_a_page_that_has_room():
    layout = {"width": None, "meta": {"width": 960}}
    (cell,) = cells_of(new_code_cell("1", outputs=[new_output("display_data", figure(**layout))]))
    assert cell.outputs[0].figure.width == 960
    assert json.loads(cell.outputs[0].figure.json)["layout"]["width"] == 960


@pytest.mark.parametrize("kind", ["scattergeo", "choropleth", "scattermapbox", "image"])
def test_a_figure_that_would_load_a_map_is_shown_as_its_picture(kind):
    shown = {notebooks.PLOTLY: {"data": [{"type": kind}], "layout": {}}, "image/png": "aGVq"}
    (cell,) = cells_of(new_code_cell("1", outputs=[new_output("display_data", shown)]))
    assert (cell.outputs[0].kind, cell.outputs[0].image) == ("image", b"hej")


def test_figures_beyond_the_room_of_a_page_are_left_out_and_said(monkeypatch):
    monkeypatch.setattr(notebooks, "MOST", 400)
    shown = [new_output("display_data", figure()), new_output("display_data", figure(title="x" * 500))]
    (cell,) = cells_of(new_code_cell('show(f, run.folder, "a"); show(f, run.folder, "b")', outputs=shown))
    assert [output.kind for output in cell.outputs] == ["figure", "left"]
    assert "The figure b takes" in cell.outputs[1].said


def test_a_bar_of_progress_is_gone_and_what_it_says_last_is_kept():
    said = "\r 0%|     | 0/9\r 100%|█████| 9/9\nwarning: \x1b[31mred\x1b[0m\rdone\n"
    assert notebooks.plain(said) == "done"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ('<b onclick="x()">a</b>', "<b>a</b>"),
        ("<script>a</script>b", "b"),
        ("<style>a{}</style>b", "b"),
        ("<svg><a href='javascript:x'>t</a></svg>b", "b"),
        ('<a href="javascript:x">a</a>', "<a>a</a>"),
        ('<a href="java\nscript:x">a</a>', "<a>a</a>"),
        ('<a href="https://a.example/?x">a</a>', '<a href="https://a.example/?x">a</a>'),
        ('<span style="color:#111;background:url(//x)">a</span>', '<span style="color:#111">a</span>'),
        (r'<i style="background:u\72l(x)">a</i>', "<i>a</i>"),
        ("<td>a<b>b</td>c", "<td>a<b>b</b></td>c"),
        ("a</div></main>b", "ab"),
        ('<img src="x" onerror="y">a < b', "a &lt; b"),
        ('<p id="main" class="x">a', "<p>a</p>"),
    ],
)
def test_harmless_keeps_what_formats_and_drops_what_acts(given, kept):
    assert str(markup.harmless(given)) == kept


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<>/\"'= abionscrtpyle:#;&!-", max_size=60))
def test_harmless_is_harmless_whatever_it_is_given(text):
    once = str(markup.harmless(text))
    page = Page(once)
    assert {"script", "style", "iframe", "img"}.isdisjoint(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert str(markup.harmless(once)) == once


@pytest.mark.parametrize(
    ("tex", "shown"),
    [
        ("x", "<mi>x</mi>"),
        ("S_{wp}", "<msub><mi>S</mi><mrow><mrow><mi>w</mi><mi>p</mi></mrow></mrow></msub>"),
        (r"\sum_h", "<msub><mo>∑</mo><mrow><mi>h</mi></mrow></msub>"),
        ("T'", '<mrow><mi>T</mi><mi class="prime">′</mi></mrow>'),
        ("T'^2", '<msup><mrow><mi>T</mi><mi class="prime">′</mi></mrow><mrow><mn>2</mn></mrow></msup>'),
        (r"\sqrt{n}", "<msqrt><mrow><mi>n</mi></mrow></msqrt>"),
        (r"i\text{ or }j", "<mi>i</mi><mtext>\u00a0or\u00a0</mtext><mi>j</mi>"),
        ("j<2", '<mi>j</mi><mo stretchy="false">&lt;</mo><mn>2</mn>'),
    ],
)
def test_formulas_become_mathml(tex, shown):
    assert formulas.mathml(tex) == f"<math><mrow>{shown}</mrow></math>"


@pytest.mark.parametrize("tex", [r"\unknown", "x_", "{x", "}", r"\left", r"a<\script>"])
def test_a_formula_that_is_not_understood_is_shown_as_it_is_written(tex):
    assert formulas.mathml(tex) == f"<code>{html.escape(tex)}</code>"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_no_text_is_lost_with_its_formulas(text):
    bare, found = formulas.apart(text)
    assert len(found) == bare.count("\ue000")
    assert "\ue000" not in formulas.together(bare, found)


def test_all_formulas_of_the_notebooks_are_understood():
    from anchorlens import parameters

    for path in parameters.notebooks().values():
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                assert not [each for each in formulas.apart(cell.source)[1] if each.startswith("<code>")], path.stem


def test_dollars_in_code_are_no_formula():
    assert formulas.apart("`$a$` and $b$")[0] == "`$a$` and \ue0000\ue001"


@pytest.mark.parametrize("largest", [0.5, 1.0, 1.05, 1234.5, np.nan])
def test_no_value_is_crossed_by_the_line_of_a_reference_or_by_a_bar(largest):
    drawn = drawings.bars([("a", 0.69, "strong"), ("b", largest, "other")], unit=" ×", reference=1.0, words="one")
    reach = [float(x) for x in re.findall(r'class="reference" x1="([\d.]+)"', drawn)]
    reach += [float(x) + float(w) for x, w in re.findall(r'<rect[^>]* x="([\d.]+)"[^>]* width="([\d.]+)"', drawn)]
    values = re.findall(r'class="value" x="(\d+)" y="\d+" text-anchor="end">([^<]+)<', drawn)
    assert len(reach) == 3
    assert len(values) == 2
    assert max(reach) < min(int(x) - 7 * len(said) for x, said in values), "7 units a character at most"


def test_undefined_numbers_are_drawn_as_such():
    assert "undefined" in drawings.bars([("a", np.nan, "strong"), ("b", 1.0, "other")])
    assert drawings.line([np.nan, np.nan], low=0.0, high=1.0, reference=0.5, words="chance") == ""
    assert "nan" not in drawings.line([np.nan, 0.5], low=0.0, high=1.0, reference=0.5, words="chance")


def test_names_that_were_made_plain_stay_different():
    assert runs.slug("2_1_information_flow") == "2_1_information_flow"
    assert runs.slug("a b") != runs.slug("a_b") != runs.slug("a/b")
    assert runs.slug("..") not in ("..", ".")
