"""The static site: what it answers, that it stands alone, and that no text that came from data is more than text."""

import html
import json
import re
import shutil
import tempfile
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

from anchorlens import batch, paper, report, store, warm
from anchorlens.cli import app
from anchorlens.report import drawings, formulas, markup, measures, notebooks, pages, runs

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "</title></textarea><svg onload=alert(1)>",
    "javascript:alert(1)",
    '"\' onmouseover="alert(1)',
    "{{ 7 * 7 }}{% raw %}",
    "\u202eright to left\u202c \u2067اقرأ\u2069",
    "👩‍🔬 emoji \u2028 and \u2029 separators",
    "w" * 3000,
    "<!-- <![CDATA[ ]]> -->",
    "&lt;b&gt; &amp;amp;",
)
FLOWS = ("S_wp", "S_pq", "S_ww")
PLOT = {"type": "scatter", "x": [1, 2], "y": [3, 4]}


def flows(values: dict[int, tuple[float, float, float]]) -> pd.DataFrame:
    """A frame of one prompt: ``values`` [layer] of S_wp, S_pq, S_ww."""
    rows = [(0, 42, layer, flow, v) for layer, each in values.items() for flow, v in zip(FLOWS, each, strict=True)]
    return pd.DataFrame(rows, columns=["example", "seed", "layer", "flow", "value"])


GATHERS = flows({0: (6.0, 1.0, 2.0), 1: (1.0, 8.0, 1.0), 2: (0.0, 9.0, 1.0)})
FLAT = flows({0: (1.0, 1.0, 2.0), 1: (1.0, 1.0, 1.0), 2: (0.0, 1.0, 1.0)})


def figure(**layout) -> dict:
    return {notebooks.PLOTLY: {"data": [PLOT], "layout": {"width": 700, **layout}}, "image/png": "aGVq"}


def book(*cells, **given) -> str:
    return nbformat.writes(new_notebook(cells=list(cells), metadata={"papermill": {"parameters": given}}))


def add(
    root: Path,
    notebook: str = "2_1_information_flow",
    key: str = "0123456789abcdef",
    *,
    cells=(),
    tables=None,
    **given,
) -> store.Run:
    """A finished run as a runner leaves one."""
    run = store.Run(root / notebook / key)
    run.partial.mkdir(parents=True)
    values = {"model": "toy", "task": "sst2", "seeds": [42], **given}
    for name, frame in (tables or {"results": GATHERS, "twin": FLAT}).items():
        frame.to_parquet(run.partial / f"{name}.parquet", index=False)
    shown = cells or [
        new_markdown_cell("# Title\n\nflow $S_{wp}$"),
        new_code_cell('figures.show(figure, run.folder, "flow")', outputs=[new_output("display_data", figure())]),
    ]
    (run.partial / "run.ipynb").write_text(book(*shown, **values))
    said = {"parameters": values, "versions": {"torch": "2.13"}, "finished": "2026-01-02T03:04:05+00:00"}
    run.finish({**said, "seconds": 1.5, "files": ["results.parquet", "run.ipynb"], "ran": "gpt_neox on cpu"})
    return run


class Page(HTMLParser):
    """What of a page is loaded, linked or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("src", "data-src", "data-plotly", "srcset", "poster") or (tag == "link" and name == "href"):
                self.loaded.append(value)
            elif name == "href":
                self.links.append(value)
            elif name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.words.append(data)


def site(root: Path, out: Path, **more) -> dict[str, Page]:
    report.build(root, out, **more)
    return {str(path.relative_to(out)): Page(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report"


def test_every_link_of_a_site_leads_to_a_file_or_a_place_on_its_page(root, out):
    add(root)
    add(root, key="1" * 16, model="toy-random")
    add(root, notebook="own", key="2" * 16)
    for name, page in site(root, out).items():
        for link in [*page.links, *page.loaded]:
            if link.startswith("data:,"):
                continue
            path, place = urldefrag(link)
            target = (out / name).parent / unquote(path) if path else out / name
            assert target.exists(), (name, link)
            assert not place or place in page.ids
        assert len(page.ids) == len(set(page.ids)), name


def test_a_site_loads_nothing_from_a_network(root, out):
    add(root)
    for name, page in site(root, out).items():
        assert not [each for each in page.loaded if "//" in each], name
        assert {"iframe", "object", "embed"}.isdisjoint(page.tags)
    for asset in (out / "assets").iterdir():
        if asset.name != "plotly.min.js":
            assert not re.search(r"https?://|url\(|@import", asset.read_text()), asset.name


def test_plotly_is_there_once_and_no_page_holds_a_figure_itself(root, out):
    add(root)
    site(root, out)
    assert [path.name for path in out.rglob("*plotly*")] == ["plotly.min.js"]
    held = json.loads(re.fullmatch(r'anchorlens\.figure\("[^"]+",(.*)\);\n', only(out, "figures").read_text())[1])
    assert held["data"] == [PLOT]
    assert all(path.stat().st_size < 60_000 for path in out.rglob("*.html"))


def only(out: Path, folder: str) -> Path:
    (path,) = (out / folder).iterdir()
    return path


def test_the_index_answers_first_and_lists_the_runs_then(root, out):
    add(root)
    text = site(root, out) and (out / "index.html").read_text()
    assert text.index("Do label words gather") < text.index("3.0 × as much") < text.index('id="runs"')
    assert "No whole run of <code>3_1_reweighting</code>" in text
    assert "trained so that its label words become anchors" in text


def test_a_section_without_runs_says_so_and_does_not_fail(root, out):
    add(root)
    site(root, out)
    assert "not run" in (out / "sections" / "3_3_diagnosis.html").read_text()


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


@pytest.mark.parametrize("kind", ["scattergeo", "choropleth", "scattermapbox", "image"])
def test_a_figure_that_would_load_a_map_is_shown_as_its_picture(kind):
    shown = {notebooks.PLOTLY: {"data": [{"type": kind}], "layout": {}}, "image/png": "aGVq"}
    (cell,) = cells_of(new_code_cell("1", outputs=[new_output("display_data", shown)]))
    assert (cell.outputs[0].kind, cell.outputs[0].image) == ("image", b"hej")


def cells_of(*cells) -> list[notebooks.Cell]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "run.ipynb"
        path.write_text(book(*cells))
        return notebooks.read(path)


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
        (r"\sqrt{n}", "<msqrt><mrow><mi>n</mi></mrow></msqrt>"),
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


def compared(**more) -> pd.DataFrame:
    row = {
        **dict.fromkeys(pages.COMPARED, ""),
        **{"section": "2.1", "notebook": "2_1_information_flow", "item": "figure 3", "model": "toy", "claim": "a"},
        **{"value": 0.5, "low": 0.25, "high": np.nan, "n": 12, "holds": "yes", "verdict": "not comparable"},
    }
    return pd.DataFrame([{**row, **more}])


def test_verdicts_are_words_and_marks_and_the_interval_is_there_only_whole(root, out):
    add(root)
    site(root, out, compare=lambda _: pd.concat([compared(), compared(high=0.75, verdict="differs")]))
    text = (out / "sections" / "2_1_information_flow.html").read_text()
    assert re.search(r"○</span> not comparable", text)
    assert re.search(r"✗</span> differs", text)
    assert text.count("0.25 to 0.75") == 1
    assert "nan" not in text.lower()
    table = pd.read_csv(out / "data" / "2_1_information_flow-compared.csv")
    assert list(table) == list(pages.COMPARED)


def test_a_comparison_without_its_columns_is_refused(root, out):
    add(root)
    with pytest.raises(report.ReportError, match="lacks the columns \\['verdict'\\]"):
        report.build(root, out, lambda _: compared().drop(columns="verdict"))
    assert not out.exists()


def test_the_same_store_makes_the_same_bytes(root, tmp_path):
    add(root)
    add(root, key="1" * 16, model="toy-random")
    made = [tmp_path / name for name in ("a", "b")]
    for each in made:
        report.build(root, each)
    one, other = ({p.relative_to(each): p.read_bytes() for p in each.rglob("*") if p.is_file()} for each in made)
    assert one == other


def test_tables_are_given_as_csv_with_every_number(root, out):
    add(root)
    site(root, out)
    back = pd.read_csv(out / "data" / "2_1_information_flow-0123456789abcdef-results.csv")
    pd.testing.assert_frame_equal(back, GATHERS, check_dtype=False)


def test_the_live_figure_of_a_prompt_comes_along(root, out):
    run = add(root)
    (run.final / "flow.html").write_text("<!doctype html><title>flow</title>")
    found = site(root, out)
    assert (out / "flows" / "2_1_information_flow-0123456789abcdef.html").read_text().endswith("flow</title>")
    assert "../flows/2_1_information_flow-0123456789abcdef.html" in found["sections/2_1_information_flow.html"].links


def test_a_table_too_large_for_csv_is_linked_in_the_store(root, out, monkeypatch):
    monkeypatch.setattr(pages, "_MOST_ROWS", 8)
    add(root)
    page = site(root, out)["runs/2_1_information_flow-0123456789abcdef.html"]
    (link,) = [each for each in page.links if each.endswith("results.parquet")]
    assert (out / "runs" / link).exists()
    assert not (out / "data").exists()


def test_runs_that_are_not_whole_are_listed_with_what_is_wrong(root, out):
    whole = add(root)
    failed = store.Run(root / "2_1_information_flow" / ("f" * 16))
    failed.leave("failed.json", json.dumps({"error": "ValueError: too hot"}))
    (root / "2_1_information_flow" / ("c" * 16 + ".partial")).mkdir()
    damaged = add(root, key="d" * 16)
    (damaged.final / "results.parquet").write_bytes(b"gone")
    torn = add(root, key="e" * 16)
    (torn.final / "manifest.json").write_text("{")
    built = report.build(root, out)
    assert built.states == {"whole": 1, "failed": 1, "unfinished": 1, "damaged": 2}
    index = (out / "index.html").read_text()
    for said in ("ValueError: too hot", "still running, or cut off", "is not as it was written", "cannot be read"):
        assert said in index
    assert "Seen in" not in index  # only the whole one answers
    assert whole.final.name in index


def test_a_run_whose_notebook_is_gone_has_a_page_that_says_so(root, out):
    run = add(root)
    (run.final / "run.ipynb").write_text("{}")
    assert "cannot be read as a notebook" in (
        site(root, out) and (out / "runs" / "2_1_information_flow-0123456789abcdef.html").read_text()
    )


def test_a_table_that_lacks_what_an_answer_needs_gives_no_answer(root, out):
    add(root, tables={"results": GATHERS.drop(columns="flow")})
    site(root, out)
    assert "Cannot be told" in (out / "index.html").read_text()


@pytest.mark.parametrize("made", [None, "empty"])
def test_a_store_without_runs_is_refused_with_what_to_do(root, out, made):
    if made:
        root.mkdir()
    with pytest.raises(report.ReportError, match=r"store .*(no folder|no runs).*(Give|Make)"):
        report.build(root, out)
    assert not out.exists()


def test_a_folder_that_is_no_report_is_left_alone(root, out):
    add(root)
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(report.ReportError, match="is not replaced"):
        report.build(root, out)
    assert [path.name for path in out.parent.iterdir() if "report" in path.name] == ["report"]
    assert (out / "thesis.txt").read_text() == "mine"


def test_the_store_itself_is_no_place_for_a_report(root):
    add(root)
    with pytest.raises(report.ReportError, match="is not replaced"):
        report.build(root, root)


def test_a_report_is_replaced_whole(root, out):
    run = add(root)
    add(root, key="1" * 16)
    report.build(root, out)
    shutil.rmtree(run.final)
    report.build(root, out)
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["2_1_information_flow-1111111111111111.html"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["report", "store"]


def test_a_report_that_fails_leaves_the_earlier_one(root, out, monkeypatch):
    add(root)
    report.build(root, out)
    before = (out / "index.html").read_bytes()

    def breaks(*_):
        yield "index.html", b"half"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pages, "site", breaks)
    with pytest.raises(report.ReportError, match=r"No space left.*Make room"):
        report.build(root, out)
    assert (out / "index.html").read_bytes() == before
    assert len(list(out.parent.iterdir())) == 2


def test_a_report_may_lie_in_its_store(root):
    add(root)
    for _ in range(2):
        assert report.build(root, root / "report").runs == 1


def stored(frames: dict[str, pd.DataFrame], tmp_path: Path, **given) -> runs.Stored:
    for name, frame in frames.items():
        frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
    return runs.Stored("x", tmp_path, runs.WHOLE, "", {"parameters": given})


@pytest.mark.parametrize(("twin", "holds"), [(FLAT, True), (GATHERS, False), (None, True)])
def test_gathering_holds_beyond_other_pairs_and_beyond_the_untrained_model(tmp_path, twin, holds):
    frames = {"results": GATHERS} | ({} if twin is None else {"twin": twin})
    found = measures.gathering(stored(frames, tmp_path))
    assert found.numbers["own"] == 3.0  # 6 / 2 in the first of three layers
    assert found.holds is holds


def test_isolation_holds_where_only_the_first_layers_matter(tmp_path):
    rows = [
        (42, arm, end, 5, loyal)
        for arm, end, many in (
            ("label", "first", 1),
            ("label", "last", 4),
            ("random", "first", 4),
            ("random", "last", 4),
        )
        for loyal in [True] * many + [False] * (4 - many)
    ]
    frame = pd.DataFrame(rows, columns=["seed", "arm", "end", "depth", "label_loyal"])
    found = measures.needed(stored({"results": frame}, tmp_path))
    assert (found.numbers["label first"], found.holds) == (0.25, True)
    frame.loc[frame["arm"] == "random", "label_loyal"] = False
    assert measures.needed(stored({"results": frame}, tmp_path)).holds is False


def test_reading_looks_at_the_deeper_half(tmp_path):
    frame = pd.DataFrame({"seed": 42, "layer": range(4), "auc": [1.0, 1.0, 0.5, 0.75]})
    found = measures.reading(stored({"summary": frame}, tmp_path))
    assert (found.numbers, found.holds) == ({"best": 0.75, "layer": 4, "mean": 0.625}, False)


def test_a_gain_counts_beyond_chance_and_in_most_seeds(tmp_path):
    def scores(*beta: float) -> pd.DataFrame:
        rows = [(s, arm, 100, v, 0.25) for s, b in enumerate(beta) for arm, v in (("beta", b), ("vanilla", 0.5))]
        return pd.DataFrame(rows, columns=["seed", "arm", "n", "accuracy", "majority"])

    assert measures.reweighting(stored({"scores": scores(0.75, 0.75)}, tmp_path)).holds is True
    assert measures.reweighting(stored({"scores": scores(0.53, 0.53)}, tmp_path)).holds is False
    assert measures.reweighting(stored({"scores": scores(1.0, 0.5, 0.5)}, tmp_path)).holds is False


def test_a_confusion_of_two_classes_cannot_be_told(tmp_path):
    table = pd.DataFrame({"seed": 42, "layer": [0, 1], "n_components": 10, "spearman": np.nan})
    rows = pd.DataFrame({"layer": [0, 1], "label_a": 0, "label_b": 1, "confusion_observed": 0.9})
    assert measures.diagnosing(stored({"agreement": table, "results": rows}, tmp_path)).holds is None


def test_undefined_numbers_are_drawn_as_such():
    assert "undefined" in drawings.bars([("a", np.nan, "strong"), ("b", 1.0, "other")])
    assert drawings.line([np.nan, np.nan], low=0.0, high=1.0, reference=0.5, words="chance") == ""
    assert "nan" not in drawings.line([np.nan, 0.5], low=0.0, high=1.0, reference=0.5, words="chance")


def test_names_that_were_made_plain_stay_different():
    assert runs.slug("2_1_information_flow") == "2_1_information_flow"
    assert runs.slug("a b") != runs.slug("a_b") != runs.slug("a/b")
    assert runs.slug("..") not in ("..", ".")


@pytest.fixture
def uncompared(monkeypatch):
    """Runs of made-up tables, which have nothing that could be held against the paper's."""
    monkeypatch.setattr(paper, "compare", lambda folders: pd.DataFrame(columns=list(paper.COLUMNS)))


def test_the_command_says_where_the_report_is(root, out, uncompared):
    add(root)
    said = CliRunner().invoke(app, ["report", str(root), str(out), "--json"])
    assert json.loads(said.stdout)["index"] == str(out.resolve() / "index.html")
    assert str(out.resolve() / "index.html") in CliRunner().invoke(app, ["report", str(root), str(out)]).stdout
    assert CliRunner().invoke(app, ["report", str(root / "none"), str(out)]).exit_code == 2


def test_the_demo_ends_with_the_path_of_a_report(root, monkeypatch, uncompared):
    monkeypatch.setattr(warm, "kernel", nullcontext)
    monkeypatch.setattr(batch, "run", lambda name, *_, **__: batch.Result(name, add(root, notebook=name).final, False))
    said = CliRunner().invoke(app, ["demo", "--store", str(root)])
    assert said.stdout.splitlines()[-1].strip() == str(root.resolve() / "report" / "index.html")
    assert (root / "report" / "index.html").is_file()
