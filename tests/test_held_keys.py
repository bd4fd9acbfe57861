"""A result stands under the key of what it was made of, also where that changes meanwhile."""

import json
from pathlib import Path

import pandas as pd
import pytest

from anchorlens import batch, parameters, store, tokenizing
from anchorlens.batch import RunError

TINY = Path(__file__).parent / "fixtures" / "gpt2-tiny"
ROWS = "text,label\na joy,1\nfine and warm,1\nslow,0\ndull and cold,0\n"


@pytest.fixture
def given(tmp_path) -> dict:
    (tmp_path / "rows.csv").write_text(ROWS)
    rows = str(tmp_path / "rows.csv")
    return {"model": str(TINY), "task": "sst2", "data": rows, "pool": rows, "limit": 2}


def executing(monkeypatch, meanwhile) -> list[Path]:
    """Runs that take no kernel, of which each leaves a table and a part, and does ``meanwhile``."""
    ran = []

    def execute(planned, *_, **__):
        folder = planned.target.partial
        pd.DataFrame({"example": [1]}).to_parquet(folder / "results.parquet")
        planned.target.write_part(pd.DataFrame({"example": [1]}), {"example": "int64"}, "results", 0, of=2)
        ran.append(folder)
        meanwhile()

    monkeypatch.setattr(batch, "_execute", execute)
    return ran


def test_rows_that_change_while_a_run_goes_on_are_stored_under_no_key(given, tmp_path, monkeypatch):
    path = Path(given["data"])
    executing(monkeypatch, lambda: path.write_text(ROWS + "a bore,0\n"))
    with pytest.raises(RunError, match=r"has changed while it ran: data was sha256 .* and is sha256") as caught:
        batch.run("2_3_extraction", given, root=tmp_path / "store", bar=False)
    assert caught.value.kind == "ChangedError"
    left = [path.name for path in caught.value.folder.iterdir()]
    assert left == ["failed.json"], "neither a table nor a part that another try would take"
    executing(monkeypatch, lambda: None)
    assert not batch.run("2_3_extraction", given, root=tmp_path / "store", bar=False).cached


def test_rows_that_go_while_a_run_goes_on_are_said(given, tmp_path, monkeypatch):
    executing(monkeypatch, Path(given["data"]).unlink)
    with pytest.raises(RunError, match=r"has changed while it ran: .*rows\.csv"):
        batch.run("2_3_extraction", given, root=tmp_path / "store", bar=False)


def test_code_that_changes_while_a_run_goes_on_costs_no_result(given, tmp_path, monkeypatch):
    content = parameters.content
    executing(monkeypatch, lambda: monkeypatch.setattr(batch, "content", lambda *a: {**content(*a), "code": "new"}))
    assert store.Run(batch.run("2_3_extraction", given, root=tmp_path / "store", bar=False).folder).whole


def test_what_changed_before_a_run_begins_stops_it(given, tmp_path, monkeypatch):
    ran = executing(monkeypatch, lambda: None)
    claiming = store.claiming

    def slow(*a, **k):
        Path(given["data"]).write_text(ROWS + "a bore,0\n")
        return claiming(*a, **k)

    monkeypatch.setattr(store, "claiming", slow)
    with pytest.raises(RunError, match="has changed while it waited"):
        batch.run("2_3_extraction", given, root=tmp_path / "store", bar=False)
    assert ran == []


def test_a_damaged_result_is_moved_aside_with_a_word(given, tmp_path, monkeypatch, capsys):
    executing(monkeypatch, lambda: None)
    folder = batch.run("2_3_extraction", given, root=tmp_path / "store", bar=False).folder
    (folder / "results.parquet").write_bytes(b"")
    assert not batch.run("2_3_extraction", given, root=tmp_path / "store", bar=False).cached
    assert f"results.parquet is not as it was written: its sum differs): moved to {folder}.broken" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data", r"own\.jsonl: the tokenizer does not know 'Ticket', 'burns', 'down'\. The toy knows only the words"),
        ("task", r"rows\.csv: the tokenizer does not know 'Ticket"),
        ("prompts", r"own\.jsonl: the tokenizer does not"),
    ],
)
def test_words_that_the_toy_does_not_have_are_refused_before_a_run(tmp_path, name, said):
    path = tmp_path / ("own.yaml" if name == "task" else "own.jsonl")
    example = {"text": "Ticket burns down", "label": 1}
    path.write_text(
        {
            "data": "".join(json.dumps({**example, "label": n}) + "\n" for n in (0, 1)),
            "prompts": json.dumps({"demonstrations": [example, {**example, "label": 0}], "query": example}),
            "task": 'template: "Ticket {text}"\nlabel_words: [Number, Letter]\n',
        }[name]
    )
    given = {"model": "toy", name: str(path)}
    if name == "task":
        rows = tmp_path / "rows.csv"
        rows.write_text("text,label\n" + "".join(f"{word},{n}\n" for n in (0, 1) for word in ("a", "b")))
        given |= {"data": str(rows), "pool": str(rows)}
    with pytest.raises(tokenizing.PromptError, match=said):
        batch.plan("2_3_extraction", given, tmp_path)
