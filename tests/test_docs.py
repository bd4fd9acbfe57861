"""What README and docs say is so: links lead somewhere, the table names what is there, the code runs."""

import ast
import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import anchorlens
from anchorlens import parameters

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "anchorlens" / "toy" / "README.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\((?P<to>[^)\s]+)\)|(?:src|href)=\"(?P<of>[^\"]+)\"")
ENOUGH = 300_000  # bytes of a picture


def links(page: str) -> list[str]:
    """Where the links and pictures of a page lead, code left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)
    return [found["to"] or found["of"] for found in LINK.finditer(prose)]


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


def lost(page: Path) -> list[str]:
    """The links of a page that lead to no file, or to no heading of it."""
    found = []
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(page):
    assert lost(page) == []


def test_a_link_that_leads_nowhere_is_found_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# A heading!\n[a](#a-heading) [b](#b) [c](page.md) [d](no.md) `[e](no)` <img src="no.png">')
    assert lost(page) == ["#b", "no.md", "no.png"]


def test_every_page_of_the_docs_can_be_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text(encoding="utf-8"))}
        new |= {target for target in targets if target.suffix == ".md" and target.is_file()} - reached
    assert set(PAGES) <= reached


def test_the_first_screen_is_a_picture_and_two_commands():
    first = README.split("\n## ")[0]
    assert len(first.splitlines()) <= 30
    assert [link for link in links(first) if link.endswith(".png")] == ["docs/information_flow.png"]
    (commands,) = re.findall(r"```bash\n(.*?)```", first, re.DOTALL)
    assert [line.split("#")[0].split() for line in commands.splitlines()] == [["make", "demo"], ["make", "test"]]


def test_the_table_has_every_notebook_with_functions_that_there_are_and_a_picture():
    rows = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("|") and ".ipynb)" in line]
    assert [re.findall(r"`(\w+)`", row[1]) for row in rows] == [[name] for name in parameters.notebooks()]
    for row in rows[1:]:
        names = re.findall(r"`([\w.]+)`", row[3])
        assert names
        for name in names:
            module, _, function = name.rpartition(".")
            assert callable(getattr(importlib.import_module(f"anchorlens.analyses.{module}"), function)), name
        assert [link for link in links(row[4]) if link.startswith("docs/") and link.endswith(".png")], row


def test_make_pictures_draws_each_picture_of_the_readme_with_what_its_notebook_takes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    drawn = runpy.run_path(str(ROOT / "docs" / "pictures.py"))["FIGURES"]
    assert {f"docs/{figure}.png" for figure, _ in drawn.values()} == {
        link for link in links(README) if link.endswith(".png")
    }
    for notebook, (figure, given) in drawn.items():
        path = parameters.notebooks()[notebook]
        parameters.check(path, given)
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "".join("".join(cell["source"]) for cell in cells)
        assert re.search(rf'run\.folder, "{figure}"\)|\b{figure}"?(=|: )partial\(figures\.{figure},', source), figure


def test_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs").glob("*.png")}
    assert sizes
    assert {name: size for name, size in sizes.items() if size > ENOUGH} == {}


def test_the_code_of_the_docs_runs_as_it_stands():
    """The first block of docs/python.md on the toy; test_task_files has the second."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert namespace["answers"].shape == (16, 4)
    assert set(namespace["frame"]["depth"]) == {1, 3, 5, 7}


def test_commands_that_the_docs_show_exist():
    from anchorlens import cli

    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    shown = {
        name
        for page in PAGES
        for name in re.findall(r"\.venv/bin/anchorlens ([a-z]+)", page.read_text(encoding="utf-8"))
    }
    assert shown
    assert shown <= known
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([\w-]+)`", page.read_text(encoding="utf-8")))
        assert named <= targets, page


def test_version_and_paper_are_the_same_in_changelog_and_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version"} <= set(cited)
    assert cited["version"] == anchorlens.__version__
    assert f"## {cited['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert cited["authors"] == [{"name": "anchorlens contributors"}]
    (paper,) = cited["references"]
    assert paper["url"] in README


def test_every_module_that_has_a_page_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "anchorlens").rglob("*.py")
        if path.name != "__main__.py" and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, str(ROOT / "docs" / "api.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_pages_of_the_api_are_made_without_a_warning_and_show_shapes_and_errors(api):
    page = (api / "anchorlens" / "models.html").read_text(encoding="utf-8")
    assert "ModelError" in page
    assert "Raises" in page
    assert (api / "anchorlens" / "analyses" / "isolation.html").is_file()
    assert not (api / "anchorlens" / "cli.html").exists()


def test_the_pages_of_the_api_open_from_disk_and_are_searched_there(api, watched):
    page = watched.open(api / "anchorlens" / "hooks.html")
    page.wait_for_selector("#Isolate")
    page.get_by_role("searchbox").fill("capturing")
    page.wait_for_selector(".search-result")
    watched.shoot("api")


def test_as_many_numbers_and_shapes_are_checked_as_is_said():
    from anchorlens.paper import PUBLISHED

    numbers, shapes = len(PUBLISHED["numbers"]), len(PUBLISHED["shapes"])
    assert f"holds {numbers} published numbers and {shapes} stated shapes against it" in README
    said = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    assert f"and of the text | {numbers} |" in said
    assert f"that the text states | {shapes} |" in said
