"""A run with a task of one's own: its key follows what it means, and what it could not use is refused at once."""

import shutil
from pathlib import Path

import pytest
from test_parameters import FLOW, TINY, key

from anchorlens.parameters import check, examine
from anchorlens.rows import MissingRowsError
from anchorlens.tasks import TaskError

TASK = """\
template: "Ticket: {text}\\nTeam:"
label_words: {billing: Billing, tech: Support}
text: body
label: team
data: tickets.csv
"""
TICKETS = "body,team\nlate fee,billing\nit crashed,tech\nno sound,tech\nwrong sum,billing\n"


@pytest.fixture
def ticket(tmp_path) -> Path:
    """A task file with its own rows beside it."""
    (tmp_path / "tickets.csv").write_text(TICKETS)
    path = tmp_path / "tickets.yaml"
    path.write_text(TASK)
    return path


def test_a_task_file_is_in_the_key_by_what_it_means(ticket, tmp_path, monkeypatch):
    given = {"model": TINY, "label_token": "first"}
    before = key({**given, "task": str(ticket)})
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in (ticket, tmp_path / "tickets.csv"):
        shutil.copy(file, moved)
    monkeypatch.chdir(tmp_path)
    assert {key({**given, "task": name}) for name in ("tickets.yaml", "elsewhere/tickets.yaml")} == {before}
    rows = {"data": "tickets.csv", "pool": "elsewhere/tickets.csv"}
    assert key({**given, "task": str(ticket), **rows}) == before, "the same rows, named by hand"
    ticket.write_text(TASK.replace("Team", "Queue"))
    other = key({**given, "task": str(ticket)})
    (tmp_path / "tickets.csv").write_text(TICKETS.replace("late", "early"))
    ticket.write_text(TASK)
    assert len({before, other, key({**given, "task": str(ticket)})}) == 3


def test_a_tasks_own_pool_is_in_the_key(ticket, tmp_path):
    given = {"model": TINY, "label_token": "first", "task": str(ticket)}
    keys = {key(given)}
    for word in ("late", "early"):
        (tmp_path / "pool.csv").write_text(TICKETS.replace("late", word))
        ticket.write_text(TASK + "pool: pool.csv\n")
        keys.add(key(given))
    assert len(keys) == 2


def test_columns_are_in_the_key_and_pick_what_is_read(tmp_path):
    both = tmp_path / "both.csv"
    both.write_text("text,label,title,mark\n" + "a joy,1,bad,0\nslow,0,good,1\n" * 2)
    given = {"model": TINY, "data": str(both), "pool": str(both)}
    keys = [key(given), key({**given, "text_column": "title"}), key({**given, "label_column": "mark"})]
    assert len(set(keys)) == 3
    with pytest.raises(TaskError, match=r"both\.csv: no column 'titel' \(did you mean 'title'\?\)"):
        key({**given, "text_column": "titel"})


def test_a_folder_of_save_to_disk_is_in_the_key_by_the_split_that_is_read(tmp_path):
    import datasets

    def part(text: str):
        return datasets.Dataset.from_dict({"text": [text, "slow"], "label": ["Positive", "Negative"]})

    keys = []
    for n, (train, test, dev) in enumerate([("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c"), ("x", "b", "c")]):
        folder = str(tmp_path / str(n))
        datasets.DatasetDict(train=part(train), test=part(test), dev=part(dev)).save_to_disk(folder)
        keys.append(key({"model": TINY, "data": folder, "pool": folder}))
    assert keys[0] == keys[1], "nothing reads dev"
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (
            {"shots": 3},
            TaskError,
            "tickets.csv: 2 rows of class 0 (Billing) where shots=3 needs 4, since a query is none",
        ),
        ({"task": "{tmp}/ticket.yaml"}, TaskError, "no such task file; did you mean 'tickets.yaml'?"),
        ({"data": "{tmp}/ticket.csv"}, MissingRowsError, "ticket.csv: no such file; did you mean 'tickets.csv'?"),
        ({"data": "{tmp}"}, TaskError, "so none that save_to_disk made. Name a file in it: tickets.csv."),
        ({"label_column": "body"}, TaskError, "text is column 'body' and label is column 'body'; name two different"),
        ({"label_words": "a|b|c"}, TaskError, "2 words joined by |, one for each class of task 'tickets'"),
        (
            {"data": "no-such/rows"},
            MissingRowsError,
            "'no-such/rows' is no file here; as a data set of the hub",
        ),
        ({"model": "toy", "data": "clean"}, MissingRowsError, "clean: no such file."),
        (
            {"task": "sst2", "data": "{tmp}/tickets.csv"},
            TaskError,
            "tickets.csv: no column 'text' and no column 'la",
        ),
    ],
    ids=str,
)
def test_what_a_task_of_ones_own_could_not_use_is_refused_before_it_starts(ticket, monkeypatch, change, kind, said):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(ticket.parent / "cache"))
    given = {"model": TINY, "task": str(ticket), "label_token": "first", **change}
    named = {
        name: value.format(tmp=ticket.parent) if isinstance(value, str) else value for name, value in given.items()
    }
    with pytest.raises(kind) as refused:
        examine(check(FLOW, named), FLOW)
    assert isinstance(refused.value, kind)
    assert said in str(refused.value)
