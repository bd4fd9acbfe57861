"""The static site: that it stands alone, is whole or not there, and lists what is wrong with a run."""

import io
import json
import re
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pandas as pd
import pytest
from report_helpers import GATHERS, PLOT, add, only, site, words_of
from typer.testing import CliRunner

from anchorlens import batch, paper, report, store, warm
from anchorlens.cli import app
from anchorlens.report import pages, runs


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


def test_a_section_without_runs_says_so_and_does_not_fail(root, out):
    add(root)
    site(root, out)
    assert "not run" in (out / "sections" / "3_3_diagnosis.html").read_text()


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


def test_a_store_says_how_many_of_its_runs_show_something(root, out):
    add(root)
    for i in range(3):
        told = {"error": "ValueError: too hot", "parameters": {"model": "b"}}
        store.Run(root / "2_1_information_flow" / f"{i:016x}").leave("failed.json", json.dumps(told))
    words = words_of(site(root, out)["index.html"])
    assert "What 1 of 4 stored runs on toy shows (1 whole, 3 failed)." in words


@pytest.mark.parametrize(
    ("failed", "want"),
    [
        (["/m/a", "b"], "None of 2 stored runs on a and b is whole, so that they show nothing yet (2 failed)."),
        (["b"], "The one stored run on b is not whole, so that it shows nothing yet (1 failed)."),
        ([""], "The one stored run is not whole, so that it shows nothing yet (1 failed)."),
    ],
)
def test_a_store_of_failed_runs_alone_says_that_it_shows_nothing(root, out, failed, want):
    for i, model in enumerate(failed):
        told = {"error": "ValueError: too hot", "parameters": {"model": model} if model else {}}
        store.Run(root / "2_1_information_flow" / f"{i:016x}").leave("failed.json", json.dumps(told))
    words = words_of(site(root, out)["index.html"])
    assert f"{want} What is wrong stands in the list." in words
    assert "no model" not in words


def test_a_model_named_by_a_path_is_called_by_its_last_folder_and_found_by_the_whole(root, out):
    add(root, model="/home/me/my models/gpt2-small")
    add(root, key="1" * 16, model="org/gpt2-small", weights="commit 01234")
    found = site(root, out)
    run = found["runs/2_1_information_flow-0123456789abcdef.html"]
    for page in (found["index.html"], found["sections/2_1_information_flow.html"]):
        assert "/home/me/my models" not in words_of(page)
        assert "/home/me/my models/gpt2-small" in page.hints
    assert "What 2 stored runs on gpt2-small and org/gpt2-small show." in words_of(found["index.html"])
    assert "gpt2-small · sst2 · 0123456789abcdef" in words_of(run)
    assert "/home/me/my models/gpt2-small" in run.words, "among its parameters"


def test_models_of_paths_that_end_alike_are_told_apart():
    seen = {"weights": "sha256 0"}
    models = {"/a/x/gpt2": seen, "/b/x/gpt2": seen, "old/toy": seen, "gpt2": {"weights": "commit 0"}, "toy": seen}
    unseen = {"openai-community/gpt2": {}, "~/deep": {}, "": {}}
    found = [
        runs.Stored("n", Path("k"), runs.WHOLE, manifest={**told, "parameters": {"model": model}})
        for model, told in {**models, **unseen}.items()
    ]
    names = runs.called(found)
    assert names.items() >= {"/a/x/gpt2": "a/x/gpt2", "/b/x/gpt2": "b/x/gpt2", "old/toy": "old/toy"}.items()
    assert names.items() >= {"gpt2": "gpt2", "toy": "toy", "~/deep": "deep", "": ""}.items()
    assert names["openai-community/gpt2"] == "openai-community/gpt2"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "more", "shown"), [(Terminal, {}, True), (io.StringIO, {}, False), (Terminal, {"bar": False}, False)]
)
def test_progress_is_shown_on_a_terminal(root, out, monkeypatch, stream, more, shown):
    add(root)
    monkeypatch.setattr(sys, "stderr", stream())
    report.build(root, out, paper.compare, **more)
    told = sys.stderr.getvalue()
    steps = ("checking runs", "comparing with the paper", "reading runs", "answering", "writing sections")
    assert [step in told for step in (*steps, "writing runs")] == [shown] * 6
    assert shown or not told


def test_a_section_of_damaged_runs_alone_points_to_them(root, out):
    (add(root, notebook="2_2_isolation").final / "results.parquet").unlink()
    said = " ".join("".join(site(root, out)["index.html"].words).split())
    assert "No whole run of 2_2_isolation is in the store; 1 that is not whole stands in the list below" in said
    assert "No whole run of 3_1_reweighting is in the store." in said


def test_a_run_whose_notebook_is_gone_has_a_page_that_says_so(root, out):
    run = add(root)
    (run.final / "run.ipynb").write_text("{}")
    assert "cannot be read as a notebook" in (
        site(root, out) and (out / "runs" / "2_1_information_flow-0123456789abcdef.html").read_text()
    )


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


@pytest.fixture
def uncompared(monkeypatch):
    """Runs of made-up tables, which have nothing that could be held against the paper's."""
    monkeypatch.setattr(paper, "compare", lambda folders: pd.DataFrame(columns=list(paper.COLUMNS)))


def test_the_command_says_where_the_report_is(root, out, uncompared):
    add(root)
    said = CliRunner().invoke(app, ["report", str(root), str(out), "--json"])
    assert json.loads(said.stdout)["index"] == str(out.resolve() / "index.html")
    assert str(out.resolve() / "index.html") in CliRunner().invoke(app, ["report", str(root), str(out)]).stdout
    assert str(root.resolve() / "report" / "index.html") in CliRunner().invoke(app, ["report", str(root)]).stdout
    assert CliRunner().invoke(app, ["report", str(root / "none"), str(out)]).exit_code == 2


def test_the_demo_ends_with_the_path_of_a_report(root, monkeypatch, uncompared):
    monkeypatch.setattr(warm, "kernel", nullcontext)
    monkeypatch.setattr(batch, "run", lambda name, *_, **__: batch.Result(name, add(root, notebook=name).final, False))
    said = CliRunner().invoke(app, ["demo", "--store", str(root)])
    assert said.stdout.splitlines()[-1].strip() == str(root.resolve() / "report" / "index.html")
    assert (root / "report" / "index.html").is_file()


def test_a_table_of_before_sums_that_cannot_be_read_is_said_and_the_rest_is_shown(root, out):
    run = add(root)
    told = json.loads((run.final / "manifest.json").read_text())
    (run.final / "manifest.json").write_text(json.dumps({k: v for k, v in told.items() if k not in store._CHECKS}))
    torn = bytearray((run.final / "twin.parquet").read_bytes())
    torn[4:200] = bytes(196)
    (run.final / "twin.parquet").write_bytes(torn)
    assert store.damage(run) == ""
    found = site(root, out)
    for name in ("runs/2_1_information_flow-0123456789abcdef.html", "sections/2_1_information_flow.html"):
        assert "cannot be read" in "".join(found[name].words)
    assert (out / "data" / "2_1_information_flow-0123456789abcdef-results.csv").is_file()


def test_a_report_with_a_comparison_is_made_though_runs_are_old_or_their_manifest_is_of_no_use(root, out):
    add(root)
    (add(root, key="1" * 16).final / "results.parquet").unlink()
    bare = add(root, key="2" * 16, notebook="3_1_reweighting").final / "manifest.json"
    bare.write_text('{"finished": 1, "versions": 2, "parameters": [3], "seconds": {}}')
    made = report.build(root, out, paper.compare)
    assert made.states == {"whole": 2, "failed": 0, "unfinished": 0, "damaged": 1}
    said = (out / "sections" / "3_1_reweighting.html").read_text()
    assert f"run 3_1_reweighting/{'2' * 16} has a manifest.json without" in said
