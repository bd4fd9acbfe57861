"""Notebooks are thin, declare what the command line sets, and run as they are and under papermill."""

import ast
import io
import json
import re
import tokenize
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any

import papermill
import pytest

from anchorlens import batch, parameters, store
from anchorlens.analyses import information_flow

NOTEBOOKS = parameters.notebooks()
EVERYWHERE = {
    "model": "toy",
    "backend": "auto",
    "revision": "",
    "remote_code": False,
    "task": "sst2",
    "data": "",
    "pool": "",
    "text_column": "",
    "label_column": "",
    "prompts": "",
    "train_prompts": "",
    "shots": 1,
    "seeds": [42],
    "limit": 0,
    "label_words": "auto",
    "label_token": "task",
    "bos": "auto",
    "device": "auto",
    "dtype": "auto",
    "n_devices": 0,
    "batch_tokens": 0,
    "as_published": False,
    "too_long": "error",
    "folder": "",
}
MORE = {
    "0_tour": {"limit": 40},  # a tour should be short
    "2_1_information_flow": {"heads": "sum", "demonstrations": "fresh", "twin": True},
    "2_2_isolation": {"depths": [], "mask": "before", "control": "seeded"},
    "3_1_reweighting": {"learning_rate": 0.01, "epochs": 10, "train_shots": 4, "full_batch": False},
    "3_2_compression": {"positions": "both", "draws": 20},
    "2_3_extraction": {"against": "predicted"},
    "3_3_diagnosis": {"n_components": 10, "layer": -1, "sets": 64},
}
LINE = re.compile(r"(?P<name>[a-z_]+): (?P<kind>(?:str|int|float|bool)|list\[(?:str|int|float|bool)\]) = (?P<value>.+)")


@pytest.fixture(params=NOTEBOOKS)
def name(request) -> str:
    return request.param


@pytest.fixture
def cells(name) -> list[dict[str, Any]]:
    return json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))["cells"]


@pytest.fixture
def code(cells) -> list[str]:
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture
def declaration(cells) -> str:
    """The cell that declares the parameters."""
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return "".join(cell["source"])


def test_there_are_notebooks():
    assert set(NOTEBOOKS) == {"0_tour", "2_3_extraction", *MORE}


def test_a_notebook_is_committed_without_what_a_run_leaves_in_it(name, cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert [cell["execution_count"] for cell in code] == [None] * len(code)
    assert "papermill" not in NOTEBOOKS[name].read_text(encoding="utf-8")
    assert [cell for cell in cells if "execution" in cell["metadata"]] == []


def test_a_notebook_begins_with_a_claim_and_ends_with_how_to_read_it(cells):
    assert cells[0]["cell_type"] == cells[-1]["cell_type"] == "markdown"
    assert cells[0]["source"][0].startswith("# ")
    assert "**How to read it.**" in "".join(cells[-1]["source"])


def test_a_notebook_is_thin(code):
    assert len(code) <= 8
    for source in code:
        found = [type(node).__name__ for node in ast.walk(ast.parse(source))]
        assert not {"FunctionDef", "AsyncFunctionDef", "ClassDef", "Lambda"} & set(found)


def test_every_parameter_stands_on_a_line_of_its_own_with_type_literal_and_help(declaration):
    for line in declaration.splitlines():
        statement, comment = split_comment(line)
        found = LINE.fullmatch(statement)
        assert found, f"{line!r} is not: name: type = literal  # help"
        assert re.fullmatch(r"  # \S.*\S", comment), f"{line!r} has no help"
        value = ast.literal_eval(found["value"])
        assert parameters.Declared(found["kind"], value, "").accepts(value), f"{line!r}: default of another type"
        assert "#" not in statement, "papermill would take it for the help"


def split_comment(line: str) -> tuple[str, str]:
    """The statement of a line, and its comment with the blanks before it."""
    with suppress(tokenize.TokenError):  # a statement that goes on in the next line
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            if token.type == tokenize.COMMENT:
                statement = line[: token.start[1]].rstrip()
                return statement, line[len(statement) :]
    return line, ""


def test_papermill_sees_every_parameter_as_it_is_written(name, declaration):
    seen = papermill.inspect_notebook(str(NOTEBOOKS[name]))
    lines = {line.split(":")[0]: line for line in declaration.splitlines()}
    assert list(seen) == list(lines)
    for entry in seen.values():
        written = f"{entry['name']}: {entry['inferred_type_name']} = {entry['default']}  # {entry['help']}"
        assert written == lines[entry["name"]]


def test_a_notebook_declares_what_all_share_with_the_same_defaults(name):
    defaults = {each: declared.default for each, declared in parameters.declared(NOTEBOOKS[name]).items()}
    assert defaults == EVERYWHERE | MORE.get(name, {})


def test_a_shared_parameter_is_explained_alike_in_every_notebook():
    said: dict[str, set[tuple[str, str]]] = {}
    for path in NOTEBOOKS.values():
        for each, declared in parameters.declared(path).items():
            said.setdefault(each, set()).add((declared.kind, declared.help))
    assert {each: kinds for each, kinds in said.items() if len(kinds) > 1} == {}


def test_a_notebook_opens_the_run_of_its_own_name(name, code):
    opened = [found for source in code for found in re.findall(r"batch\.here\(\"([^\"]+)\", globals\(\)\)", source)]
    assert opened == [name]


def outputs(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def check_flow(folder: Path, prompts: int) -> None:
    """A finished run's results have the declared columns and one row per prompt, layer and flow."""
    frame = store.read(folder)
    assert {column: str(kind) for column, kind in frame.dtypes.items()} == information_flow.COLUMNS
    assert len(frame["example"].unique()) == prompts
    assert len(frame) == prompts * 8 * len(information_flow.FLOWS)
    assert len(frame.drop_duplicates(["seed", "example", "layer", "flow"])) == len(frame)
    assert all(value >= 0 for value in frame["value"])


def test_the_tour_runs_through_on_the_toy(tmp_path):
    result = batch.run("0_tour", {"limit": 6}, root=tmp_path, bar=False)
    assert not result.cached
    assert result.folder.parent == tmp_path / "0_tour"
    assert [path.name for path in result.folder.parent.iterdir()] == [result.folder.name]
    left = outputs(result.folder / "run.ipynb")
    assert "error" not in {output["output_type"] for output in left}
    shown = {kind for output in left for kind in output.get("data", {})}
    assert {"text/html", "application/vnd.plotly.v1+json"} <= shown
    check_flow(result.folder, prompts=6)
    manifest = store.manifest(result.folder)
    assert (manifest["status"], manifest["key"]) == ("ok", result.folder.name)
    assert manifest["parameters"] | {"folder": ""} == EVERYWHERE | {"limit": 6}
    assert set(manifest["files"]) >= {"run.ipynb", "results.parquet", "saliency_maps.html", "flow.html"}
    page = (result.folder / "flow.html").read_text(encoding="utf-8")
    cells = "".join("".join(output.get("data", {}).get("text/html", "")) for output in left)
    frames = cells.split('srcdoc="')[1:]
    assert [unescape(frame.split('"')[0]) for frame in frames] == [page], "the notebook needs no file beside it"


def test_plain_papermill_leaves_a_finished_run_in_its_working_folder(tmp_path):
    given = {"limit": 6, "twin": False}
    papermill.execute_notebook(
        str(NOTEBOOKS["2_1_information_flow"]),
        str(tmp_path / "out.ipynb"),
        given,
        kernel_name="python3",
        cwd=str(tmp_path),
        progress_bar=False,
    )
    (folder,) = (tmp_path / "outputs" / "2_1_information_flow").iterdir()
    check_flow(folder, prompts=6)
    assert store.manifest(folder)["parameters"]["limit"] == 6
    path = NOTEBOOKS["2_1_information_flow"]
    values = parameters.check(path, given)
    content = parameters.content(path, values, parameters.examine(values, path))
    assert folder.name != store.key(content), "its cells may have been changed: the runner must not take it for its own"
