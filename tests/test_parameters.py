"""Parameters are checked against what a notebook declares, and a run's key covers what decides its results."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.translators import PythonTranslator

from anchorlens import parameters, preflight, store
from anchorlens.parameters import ParameterError, check, content, declared, examine, parse
from anchorlens.preflight import MissingModelError, ModelError
from anchorlens.rows import MissingRowsError
from anchorlens.tasks import TaskError

FLOW = parameters.find("2_1_information_flow")
TINY = str(Path(__file__).parent / "fixtures" / "gpt2-tiny")
DECLARED = """\
name: str = "plain"  # a word
count: int = 3  # how many
rate: float = 0.5  # how fast
flag: bool = False  # whether
depths: list[int] = [0, 1]  # layers
words: list[str] = []  # names
rates: list[float] = []  # speeds
flags: list[bool] = []  # switches
folder: str = ""  # where to write
"""
ROWS = "text,label\na joy,Positive\nfine and warm,1\nslow,Negative\ndull and cold,0\n"


def write_notebook(path: Path, *sources: str) -> Path:
    """A notebook of code cells; the first one declares the parameters."""
    tagged = [{"tags": ["parameters"]}, *[{}] * len(sources)]
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "source": source, "metadata": tag, "outputs": [], "execution_count": None}
        for source, tag in zip(sources, tagged, strict=False)
    ]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}))
    return path


@pytest.fixture(scope="module")
def every(tmp_path_factory) -> Path:
    """A notebook with a parameter of every type."""
    return write_notebook(tmp_path_factory.mktemp("notebook") / "every.ipynb", DECLARED)


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return path


def key(given: dict[str, Any] | None = None, notebook: Path = FLOW) -> str:
    """The key of a run with these parameters."""
    given = given or {}
    values = check(notebook, given)
    return store.key(content(notebook, values, examine(values, notebook)))


def test_declared_types_defaults_and_help_are_read_in_order(every):
    found = declared(every)
    assert list(found) == ["name", "count", "rate", "flag", "depths", "words", "rates", "flags", "folder"]
    assert found["depths"] == parameters.Declared("list[int]", [0, 1], "layers")
    assert found["flag"] == parameters.Declared("bool", False, "whether")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("name=7", "7"),
        ("name=", ""),
        ("name=a=b", "a=b"),
        ("count=-2", -2),
        ("rate=1e-3", 0.001),
        ("rate=2", 2.0),
        ("flag=true", True),
        ("flag=False", False),
        ("depths=1,2, 3", [1, 2, 3]),
        ("depths=[1, 2]", [1, 2]),
        ("depths=5", [5]),
        ("depths=", []),
        ("depths=[]", []),
        ('words=["a,b", "c"]', ["a,b", "c"]),
        ("words=a,b", ["a", "b"]),
        ("rates=0.5,2", [0.5, 2.0]),
        ("flags=true,false", [True, False]),
    ],
)
def test_a_word_of_the_command_line_is_read_by_its_declared_type(every, said, meant):
    name = said.partition("=")[0]
    parsed = parse(every, [said])
    assert parsed == {name: meant}
    assert type(parsed[name]) is type(meant)
    assert check(every, parsed)[name] == meant


WRONG_WORDS = {
    "count": "six 6.5 true 1e3",
    "rate": "fast true nan inf -inf",
    "flag": "1 yes on",
    "depths": "1,x [1.5] [true] [[1]] {} 1;2",
    "rates": "[NaN] 1,Infinity",
    "flags": "0 [1]",
    "words": "[1] [null]",
}


@pytest.mark.parametrize("said", [f"{name}={word}" for name, words in WRONG_WORDS.items() for word in words.split()])
def test_a_value_of_another_type_is_refused_with_what_was_expected(every, said):
    name, known = said.partition("=")[0], declared(every)
    with pytest.raises(ParameterError) as refused:
        check(every, parse(every, [said]))
    for part in (f"every.ipynb: parameter {name}=", f"expected {known[name].kind}", f"{known[name].default!r}"):
        assert part in str(refused.value)


WRONG_VALUES = {
    "name": [None, 1, b"x"],
    "count": [True, 1.0, "1"],
    "rate": [True, math.nan, math.inf],
    "flag": ["false", 0],
    "depths": [(1, 2), "1", [None]],
    "rates": [[math.nan]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG_VALUES for value in WRONG_VALUES[name]])
def test_a_python_value_of_another_type_is_refused(every, name, value):
    with pytest.raises(ParameterError, match=f"parameter {name}="):
        check(every, {name: value})


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ParameterError) as refused:
        check(FLOW, parse(FLOW, ["shotz=2"]))
    assert "2_1_information_flow.ipynb has no parameter 'shotz'; did you mean 'shots'?" in str(refused.value)
    assert "It takes: model, backend, revision, remote_code, task" in str(refused.value)


def test_the_folder_belongs_to_the_runner_and_cannot_be_set(every):
    with pytest.raises(ParameterError, match="has no parameter 'folder'"):
        check(every, parse(every, ["folder=elsewhere"]))
    assert "folder" not in check(every, {})


def test_a_word_without_an_equals_sign_is_refused(every):
    with pytest.raises(ParameterError, match="-p 'count': expected NAME=VALUE"):
        parse(every, ["count"])


@pytest.mark.parametrize(
    "said", ["x=1;import os", "name;import os=1", "name: str=1", "__import__('os')=1", "=1", "Name=1"]
)
def test_code_in_place_of_a_name_is_refused(every, said):
    with pytest.raises(ParameterError, match="has no parameter"):
        check(every, parse(every, [said]))


def as_seen_by_the_notebook(values: dict[str, Any]) -> dict[str, Any]:
    """What papermill's cell of given parameters leaves behind."""
    namespace: dict[str, Any] = {}
    exec(PythonTranslator.codify(values), namespace)
    return {name: namespace[name] for name in values}


@settings(deadline=None)
@given(text=st.text() | st.sampled_from(["'\"", '"""', "a\nimport os", "{{}}", "{x}", "# not a comment", "\\", "\r\0"]))
def test_any_text_reaches_the_notebook_as_the_same_plain_text(every, text):
    values = check(every, parse(every, [f"name={text}"]))
    assert as_seen_by_the_notebook(values) == values
    assert values["name"] == text


def test_an_unknown_notebook_is_refused_with_the_nearest_one():
    with pytest.raises(ParameterError) as refused:
        parameters.find("2_1_information_flows")
    assert "no notebook '2_1_information_flows'; did you mean '2_1_information_flow'?" in str(refused.value)
    assert "0_tour" in str(refused.value)


def test_a_notebook_is_found_by_name_and_by_path(every):
    assert parameters.find("0_tour.ipynb") == parameters.find("0_tour") == parameters.notebooks()["0_tour"]
    assert parameters.find(str(every)) == every


def test_the_key_is_the_same_when_nothing_that_matters_differs(data, tmp_path, monkeypatch):
    assert key() == key({"model": "toy", "limit": 0, "data": "clean", "pool": "clean"})
    device = preflight.resolve_device("auto")
    assert key() == key({"device": device, "dtype": "float32"}), "auto is what it was resolved to"
    moved = shutil.copy(data, tmp_path / "copy.csv")
    monkeypatch.chdir(tmp_path)
    names = (str(data), "rows.csv", str(moved), os.path.relpath(data))
    assert len({key({"model": TINY, "data": name, "pool": other}) for name in names for other in names}) == 1


OTHER = {
    "model": ["toy-random", "toy-unanchored"],
    "task": ["trec"],
    "data": ["hard"],
    "pool": ["hard"],
    "shots": [2],
    "seeds": [[43], [42, 43]],
    "limit": [5],
    "label_words": ["flipped"],
    "dtype": ["float64"],
    "batch_tokens": [512],
    "as_published": [True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in OTHER for value in OTHER[name]])
def test_the_key_changes_with_every_parameter_that_matters(name, value):
    assert key({name: value}) != key()


@pytest.mark.parametrize("name", ["data", "pool", "prompts"])
def test_the_key_changes_with_what_a_file_says(tmp_path, data, name):
    line = {"demonstrations": [{"text": "a joy", "label": 1}], "query": {"text": "dull", "label": 0}}
    path = tmp_path / ("others.jsonl" if name == "prompts" else "others.csv")
    keys = []
    for word in ("warm", "cold"):
        path.write_text(
            json.dumps(line).replace("dull", word) + "\n" if name == "prompts" else ROWS.replace("joy", word)
        )
        rows = {} if name == "prompts" else {"data": str(data), "pool": str(data)}
        keys.append(key({"model": TINY, **rows, name: str(path)}))
    assert keys[0] != keys[1]


def test_the_key_changes_with_the_weights_of_a_folder(tmp_path, data):
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    before = key({"model": str(folder), "data": str(data), "pool": str(data)})
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + b"\7")
    assert key({"model": str(folder), "data": str(data), "pool": str(data)}) != before


def test_the_key_changes_with_the_code_of_notebook_and_package_but_not_with_prose(tmp_path, monkeypatch):
    notebook = json.loads(FLOW.read_text())

    def changed(kind: str) -> Path:
        cells = json.loads(json.dumps(notebook["cells"]))
        last = [cell for cell in cells if cell["cell_type"] == kind][-1]
        last["source"] = [*last["source"], "\nprint()"]
        path = tmp_path / kind / FLOW.name
        path.parent.mkdir()
        path.write_text(json.dumps({**notebook, "cells": cells}))
        return path

    before = key()
    assert key(notebook=changed("markdown")) == before
    assert key(notebook=changed("code")) != before
    package = tmp_path / "package"
    shutil.copytree(parameters.PACKAGE, package, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    monkeypatch.setattr(parameters, "PACKAGE", package)
    assert key() == before, "the same sources elsewhere"
    with (package / "analyses" / "information_flow.py").open("a") as file:
        file.write("\n")
    assert key() != before


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"task": "sst3"}, TaskError, "no task 'sst3'; did you mean 'sst2'?"),
        ({"label_words": "bad"}, TaskError, "label_words='bad': expected natural, random, flipped, auto, or 2 words"),
        ({"label_words": "bad|good|fair"}, TaskError, "2 words joined by |, one for each class of task 'sst2'"),
        ({"label_words": "bad|bad"}, TaskError, "are not at least two different words"),
        ({"bos": "always"}, ParameterError, "bos='always': it may be 'auto', 'yes' or 'no'."),
        ({"label_token": "last"}, TaskError, "label_token='last': it may be 'task', 'only', 'first' or 'all'"),
        (
            {"seeds": [1, 2, 1]},
            TaskError,
            "seeds=[1, 2, 1]: give at least one whole number from 0 to 4294967295, none twice",
        ),
        ({"seeds": []}, TaskError, "seeds=[]: give at least one whole number"),
        (
            {"shots": 3, "data": "{tmp}/rows.csv", "pool": "{tmp}/rows.csv"},
            TaskError,
            "2 rows of class 0 (Negative) where shots=3 needs 4",
        ),
        ({"shots": 3, "pool": "{tmp}/rows.csv"}, TaskError, "Lower shots, or give a pool with more rows"),
        ({"data": "{tmp}/shifted.csv"}, TaskError, "shifted.csv, line 2: 3 fields where the header has 2"),
        ({"data": "{tmp}/none.csv"}, MissingRowsError, "none.csv: no such file"),
        ({"prompts": "{tmp}/none.jsonl"}, MissingRowsError, "none.jsonl: no such file"),
        ({"prompts": "{tmp}/bad.jsonl"}, TaskError, "bad.jsonl, line 2: expected demonstrations and query"),
        (
            {"model": TINY},
            MissingRowsError,
            "rows of task 'sst2' for queries (stanfordnlp/sst2 on the hub) are not on this machine",
        ),
        (
            {"model": TINY, "task": "emo"},
            MissingRowsError,
            "task 'emo' has no rows of its own, on the hub",
        ),
        ({"model": "{tmp}"}, ModelError, "the folder has no config.json"),
        ({"model": "no-such/model"}, MissingModelError, "the hub cannot be reached"),
        ({"device": "gpu"}, ModelError, "device='gpu'"),
        ({"dtype": "int8"}, ModelError, "dtype='int8'"),
        ({"backend": "tpu"}, ModelError, "backend='tpu'"),
    ],
    ids=str,
)
def test_what_a_run_could_not_use_is_refused_before_it_starts(tmp_path, data, monkeypatch, given, kind, said):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    line = json.dumps({"demonstrations": [{"text": "a joy", "label": 1}], "query": {"text": "dull", "label": None}})
    (tmp_path / "bad.jsonl").write_text(f"{line}\n{{}}\n")
    (tmp_path / "shifted.csv").write_text("text,label\na joy, though,1\n")
    named = {name: value.format(tmp=tmp_path) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(kind) as refused:
        examine(check(FLOW, named), FLOW)
    assert isinstance(refused.value, kind)
    assert said in str(refused.value)


def test_training_prompts_are_refused_where_nothing_is_trained():
    with pytest.raises(ParameterError, match=r"train_prompts='x.jsonl': 2_1_information_flow trains nothing"):
        examine(check(FLOW, {"train_prompts": "x.jsonl"}), FLOW)


@pytest.mark.parametrize("name", parameters.TRAINING)
def test_training_prompts_without_prompts_are_refused_before_a_kernel_starts(name):
    path = parameters.find(name)
    with pytest.raises(ParameterError, match=r"train_prompts='x\.jsonl' goes with prompts=FILE"):
        examine(check(path, {"train_prompts": "x.jsonl"}), path)


def test_a_negative_token_budget_is_refused_before_it_starts():
    with pytest.raises(ParameterError, match="batch_tokens=-1: give tokens per batch, or 0 to choose"):
        examine(check(FLOW, {"batch_tokens": -1}), FLOW)


def test_what_a_prompts_file_overrides_is_not_in_the_key(tmp_path):
    line = '{"demonstrations": [{"text": "dull", "label": 0}], "query": {"text": "fresh", "label": 1}}'
    (tmp_path / "prompts.jsonl").write_text(line + "\n")
    given = {"prompts": str(tmp_path / "prompts.jsonl")}
    assert key({**given, "shots": 2, "seeds": [7]}) == key(given)
    with pytest.raises(ParameterError, match=r"text_column with prompts=.* has text and label\. Leave text_c"):
        key({**given, "text_column": "body"})
    random = {**given, "label_words": "random"}
    assert key({**random, "seeds": [7]}) != key(random)
