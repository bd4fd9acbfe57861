"""A value reaches the notebook as it was given, bit for bit, or is refused with what to give; none is ever code."""

import ast
import json
import re
import struct
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager
from papermill.translators import PythonTranslator

from anchorlens import batch, parameters, sweep
from anchorlens.values import Declared, ParameterError, shown

TUNING = parameters.find("3_1_reweighting")
NASTY = [
    "'",
    '"""',
    "\\",
    "\\\\\"; __import__('os').system('touch made') #",
    "\n!touch made",
    "\r%run made",
    "\u2028!touch made",
    "\x85%pwd",
    "\x0c?x",
    "\0",
    "{x}{{limit}}%(x)s",
    "$(touch made)`touch made`",
    "# Parameters\nimport os",
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH NO-BREAK SPACE}",
    "\U0010ffff",
]
TEXT = st.text() | st.lists(st.sampled_from(NASTY) | st.text(max_size=3), min_size=1, max_size=4).map("".join)
ONE = {
    "str": TEXT,
    "int": st.integers(-(2**63) + 1, 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
}
EVERY = {**ONE, **{f"list[{kind}]": st.lists(one, max_size=4) for kind, one in ONE.items()}}


def bits(value: Any) -> Any:
    """What tells values apart that are equal: 1 and True, 0.0 and -0.0."""
    if isinstance(value, list):
        return [bits(item) for item in value]
    return type(value), struct.pack("d", value) if isinstance(value, float) else value


@settings(deadline=None, max_examples=300)
@given(kind_and_value=st.sampled_from(sorted(EVERY)).flatmap(lambda kind: st.tuples(st.just(kind), EVERY[kind])))
def test_the_injected_cell_is_the_value_bit_for_bit_and_nothing_else(kind_and_value):
    kind, value = kind_and_value
    assert Declared(kind, None, "").accepts(value)
    assert bits(json.loads(json.dumps(value, allow_nan=False))) == bits(value), "as a notebook's metadata holds it"
    cell = PythonTranslator.codify({"name": value})
    assert TransformerManager().transform_cell(cell) == cell, "no line of it is a magic or a command of a shell"
    (statement,) = ast.parse(cell).body
    assert isinstance(statement, ast.Assign)
    assert not any(isinstance(node, ast.Call | ast.Attribute | ast.JoinedStr) for node in ast.walk(statement))
    namespace: dict[str, Any] = {"__builtins__": {}}  # nothing that could be called
    exec(compile(cell, "parameters", "exec"), namespace)
    assert set(namespace) == {"__builtins__", "name"}
    assert bits(namespace["name"]) == bits(value)


def test_a_file_whose_name_is_code_is_read_and_the_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = "\"\"\"'{limit}\\n\u2028!touch made\n%pwd\r;__import__('os').mkdir('made') #.csv"
    known = Path(parameters.__file__).parent / "toy" / "rows" / "sst2_clean.jsonl"  # in words that the toy has
    rows = [json.loads(line) for line in known.read_text().replace(" ,", "").splitlines()]
    Path(odd).write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    tour = json.loads(parameters.find("0_tour").read_text(encoding="utf-8"))
    declaration = next(cell for cell in tour["cells"] if cell["metadata"].get("tags") == ["parameters"])
    code = "import pandas as pd\npd.DataFrame({'value': [data]}).to_parquet(folder + '/results.parquet')"
    cell = {**declaration, "metadata": {}, "source": code, "id": "code"}
    Path("small.ipynb").write_text(json.dumps({**tour, "cells": [declaration, cell]}))
    given = {"data": odd, "pool": odd, "batch_tokens": 512, "task": "sst2"}
    result = batch.run("small.ipynb", given, root=tmp_path / "{limit} runs", bar=False)
    assert list(pd.read_parquet(result.results)["value"]) == [odd]
    assert json.loads((result.folder / "manifest.json").read_text())["parameters"]["data"] == odd
    assert not Path("made").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([odd, "small.ipynb", "{limit} runs"])


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("learning_rate", "1e-2", "Give 0.01. In quotes, or written like 1e-2, YAML takes it for text."),
        ("learning_rate", float("nan"), "Give a finite number."),
        ("learning_rate", float("-inf"), "Give a finite number."),
        ("learning_rate", 10**400, "Give a number that a float can be."),
        ("learning_rate", 2**53 + 1, "Give a number that a float can be."),
        ("shots", "2", "Give 2."),
        ("shots", "1e2", "Give 100."),
        ("shots", 2.0, "Give 2."),
        ("shots", 2.5, ""),
        ("shots", "two", ""),
        ("shots", True, ""),
        ("limit", 2**63, "Give a number of at most 9223372036854775807."),
        ("limit", 10**5000, "Give a number of at most 9223372036854775807."),
        ("as_published", "true", "Give true."),
        ("as_published", 0, "Give false."),
        ("as_published", 2, ""),
        ("seeds", 42, "Give a list: [42]."),
        ("seeds", (1, 2), "Give a list: [1, 2]."),
        ("seeds", ["1"], "Give 1."),
        ("seeds", [[1]], ""),
        ("seeds", [True], ""),
        ("seeds", {"a": 1}, ""),
        ("label_words", False, "Put it into quotes"),
        ("label_words", None, "Put it into quotes"),
        ("label_words", 1.5, "Put it into quotes"),
        ("data", b"rows.csv", "Put it into quotes"),
        ("data", "a\udcff.csv", "It holds bytes that are no text in UTF-8: rename the file"),
        ("model", ["toy"], "Give one text."),
    ],
    ids=shown,
)
def test_what_would_not_arrive_is_refused_with_what_to_give(name, value, advice):
    with pytest.raises(ParameterError) as refused:
        parameters.check(TUNING, {name: value})
    declared = parameters.declared(TUNING)[name]
    assert f"3_1_reweighting.ipynb: parameter {name}={shown(value)} is {type(value).__name__}" in str(refused.value)
    assert f"expected {declared.kind} (like its default {declared.default!r}): {declared.help}" in str(refused.value)
    assert advice in str(refused.value)
    assert bool(advice) == (not str(refused.value).endswith(declared.help))
    assert len(str(refused.value)) < 700


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(), st.lists))
def test_any_value_is_taken_or_refused_and_never_an_error_of_another_kind(value):
    for name in ("data", "shots", "learning_rate", "as_published", "seeds"):
        try:
            taken = parameters.check(TUNING, {name: value})[name]
        except ParameterError:
            continue
        assert taken == value
        json.dumps(taken, allow_nan=False)


GRID = "notebooks: 3_1_reweighting\nmodel: toy\nlimit: 8\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seeds: [042]", "line 4: not readable as YAML (042 is 34 in YAML, in base 8; write 42 or 34, or quote it)"),
        ("only: {3_1_reweighting: {epochs: 010}}", "010 is 8 in YAML, in base 8; write 10 or 8, or quote it"),
        ("shots: 12:30", "12:30 is 750 in YAML, in base 60; write 750, or quote it"),
        ("learning_rate: 1:30.5", "1:30.5 is 90.5 in YAML, in base 60; write 90.5, or quote it"),
        ("learning_rate: 1e-2", "Give 0.01. In quotes, or written like 1e-2, YAML takes it for text."),
        ("label_words: no", "label_words=False is bool, expected str"),
        ("label_words: 2020-01-01", "label_words=datetime.date(2020, 1, 1) is date, expected str"),
        ("label_words: ~", "label_words=None is NoneType, expected str"),
        ("data: 1.10", "data=1.1 is float, expected str"),
        ("data: !!binary aGk=", "data=b'hi' is bytes, expected str"),
        ('data: "\\ud800"', "It holds bytes that are no text"),
        ("shots: .nan", "shots=nan is float, expected int"),
        ("learning_rate: .inf", "learning_rate=inf is float, expected float"),
        ("shots: '1'", "shots='1' is str, expected int"),
        ("shots: yes", "shots=True is bool, expected int"),
        ("as_published: 'yes'", "as_published='yes' is str, expected bool"),
        ("seeds: 42", "Give a list: [42]."),
        ("seeds: [[1, [2]]]", "seeds=[1, [2]] is list, expected list[int]"),
        ("seeds: !!set {1}", "seeds={1} is set, expected list[int]"),
        ("pool: &a [*a]", "pool=[[...]] is list, expected str"),
        ("yes: 1", "grid: True is no name: without quotes YAML takes yes, on, null and 42 for other things than text."),
        ("42: 1", "grid: 42 is no name"),
        ("~: 1", "grid: None is no name"),
        ("only: {3_1_reweighting: {no: 1}}", "grid: False is no name"),
        ("only: {1: {shots: 1}}", "grid: 1 is no name"),
        ("__import__('os').mkdir('made'): 1", "has no parameter \"__import__('os').mkdir('made')\""),
        ("'shots = 1; made': 1", "has no parameter 'shots = 1; made'"),
        ("data: !!python/name:os.system ''", "not readable as YAML"),
        (f"limit2: {'9' * 5000}", "not readable as YAML"),
        (f"shots: 0x{'f' * 5000}", "shots=a number too long to be shown (int) is int, expected int"),
    ],
    ids=lambda text: text[:40],
)
def test_what_yaml_takes_for_something_else_is_refused_before_anything_starts(tmp_path, monkeypatch, line, said):
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(f"{GRID}{line}\n")
    with pytest.raises(ParameterError, match=re.escape(said)):
        sweep.jobs(sweep.read(Path("grid.yaml")), tmp_path / "runs")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("shots: 0", 0),
        ("shots: 10", 10),
        ("shots: +1", 1),
        ("limit2: 1_000", 1000),
        ("limit2: 0x1f", 31),
        ("learning_rate: 1.0e-2", 0.01),
        ("learning_rate: 0.50", 0.5),
        ("learning_rate: 1", 1),
        ("as_published: on", True),
        ("label_words: 'no|yes'", "no|yes"),
        ("data: '0123'", "0123"),
        ("data: 'a\\n{b}'", "a\\n{b}"),
        ('data: "a\\n{b}"', "a\n{b}"),
    ],
)
def test_what_yaml_takes_as_it_is_written_is_taken(tmp_path, line, value):
    path = tmp_path / "grid.yaml"
    path.write_text(f"{line}\n")
    (found,) = sweep.read(path).values()
    assert bits(found) == bits(value)
