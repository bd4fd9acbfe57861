"""Rows of one's own: columns by name, classes as the data call them, a task's own files, a DataFrame."""

import json
import re
from dataclasses import replace

import pytest
from test_rows import COLUMNS, refused, written

from anchorlens import rows
from anchorlens.rows import Example, MissingRowsError
from anchorlens.tasks import AGNEWS, EMO, SST2, TREC, Task, TaskError

# --- columns, and what the data call their classes


TICKETS = Task(
    "tickets",
    "Ticket: {text}\nTeam:",
    (" Billing", " Support"),
    names={"bill": 0, "tech": 1},
    text="body",
    label="team",
)


def test_a_class_is_called_by_its_name_its_word_or_its_number():
    said = ["bill", " tech ", "Billing", "Support", "0", 1]
    assert [rows.class_of(label, TICKETS, where="x") for label in said] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("task", [SST2, TREC, AGNEWS], ids=lambda task: task.name)
def test_a_copy_of_a_papers_data_set_is_read_by_the_names_that_it_has_on_the_hub(tmp_path, task):
    """As ``save_to_disk`` and the hub's own Parquet files number them."""
    import datasets

    hub = task.hub
    names = list(reversed(hub.names))  # classes are mapped by name, never by number
    features = datasets.Features({hub.text: datasets.Value("string"), hub.label: datasets.ClassLabel(names=names)})
    held = {hub.text: ["some text"] * len(names), hub.label: range(len(names))}
    datasets.Dataset.from_dict(held, features=features).save_to_disk(str(tmp_path / "saved"))
    datasets.Dataset.from_dict(held, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    columns = replace(task, text=hub.text, label=hub.label)
    for path in ("saved", "rows.parquet"):
        found = [example.label for example in rows.read_file(tmp_path / path, columns)]
        assert found == [hub.names[name] for name in names]


def test_a_label_that_is_no_class_is_answered_with_names_and_words():
    message = "x: label 'bil' is no class of task 'tickets', which has 0 Billing (bill), 1 Support (tech); did you mean"
    with pytest.raises(TaskError, match=re.escape(f"{message} 'bill'? Use the number, the name or the word.")):
        rows.class_of("bil", TICKETS, where="x")


@pytest.mark.parametrize("label", ["3", 3, "0", 0])
def test_where_names_are_numbers_a_number_is_a_name_and_never_counts_classes(label):
    stars = replace(TICKETS, names={"1": 0, "2": 1})
    assert [rows.class_of(each, stars, where="x") for each in (1, "1", 2, "2")] == [0, 0, 1, 1]
    with pytest.raises(TaskError, match=r"label .* is no class of task 'tickets', which has 0 Billing \(1\)"):
        rows.class_of(label, stars, where="x")


def test_where_label_words_are_numbers_a_number_is_a_word():
    grades = Task("grades", "{text}\nGrade:", (" 1", " 2", " 3"))
    assert [rows.class_of(each, grades, where="x") for each in (1, "2", 3)] == [0, 1, 2]
    with pytest.raises(TaskError, match="label 0 is no class"):
        rows.class_of(0, grades, where="x")


def test_a_name_that_is_another_classs_word_is_refused_where_it_is_met():
    crossed = replace(TICKETS, names={"Support": 0, "Billing": 1})
    with pytest.raises(TaskError, match="'Support' is the name of class 0 and the label word of class 1; rename one"):
        rows.class_of("Support", crossed, where="x")
    same = replace(TICKETS, names={"Billing": 0, "Support": 1})
    assert rows.class_of("Support", same, where="x") == 1


def test_a_flag_is_a_name_and_never_a_number():
    flags = replace(TICKETS, names={"False": 1, "True": 0})
    assert [rows.class_of(each, flags, where="x") for each in (True, False, "True")] == [0, 1, 0]


@pytest.mark.parametrize("label", [True, 1.5, b"1", [1], float("nan")])
def test_what_is_neither_text_nor_whole_number_is_no_label(label):
    with pytest.raises(TaskError, match="is no class of task 'tickets'"):
        rows.class_of(label, TICKETS, where="x")


def test_the_tasks_columns_are_read_and_others_are_not(tmp_path):
    path = written(tmp_path, "rows.csv", "team,text,label,body\ntech,no,9,it crashed\n")
    assert rows.read_file(path, TICKETS) == [Example("it crashed", 1, 0)]
    path = written(tmp_path, "rows.jsonl", '{"body": "it crashed", "team": "tech", "label": 0}')
    assert rows.read_file(path, TICKETS) == [Example("it crashed", 1, 0)]


def test_a_column_that_is_not_there_is_refused_with_the_nearest_one(tmp_path):
    path = written(tmp_path, "rows.csv", "teams,bodies\ntech,it crashed\n")
    message = (
        "PATH: no column 'body' (did you mean 'bodies'?) and no column 'team' (did you mean 'teams'?); it has teams, "
    )
    with refused(path, f"{message}bodies. {COLUMNS}"):
        rows.read_file(path, TICKETS)
    path = written(tmp_path, "rows.jsonl", '{"text": "it crashed", "label": 0}')
    with refused(path, f"PATH, line 1: expected body and team, found ['label', 'text']. {COLUMNS}"):
        rows.read_file(path, TICKETS)


def test_prompts_fixed_by_a_file_have_text_and_label_whatever_the_columns_are(tmp_path):
    shown = [{"text": "late fee", "label": "bill"}, {"text": "it crashed", "label": "Support"}]
    path = written(
        tmp_path, "prompts.jsonl", json.dumps({"demonstrations": shown, "query": {"text": "no sound", "label": 1}})
    )
    ((demonstrations, query),) = rows.read_prompts(path, TICKETS)
    assert [example.label for example in (*demonstrations, query)] == [0, 1, 1]


# --- a task's own rows


def test_a_tasks_own_rows_are_read_from_where_its_file_is(tmp_path):
    path = written(tmp_path, "rows.csv", "body,team\nit crashed,tech\n")
    own = replace(TICKETS, data="rows.csv", folder=str(tmp_path))
    assert rows.source_of(own) == path
    assert rows.source_of(own, split="demonstration") == path, "without a pool, demonstrations are from the same rows"
    pool = written(tmp_path, "more.csv", "body,team\nlate fee,bill\n")
    both = replace(own, pool="more.csv")
    assert (rows.source_of(both), rows.source_of(both, split="demonstration")) == (path, pool)
    assert rows.load(both, split="demonstration") == [Example("late fee", 0, 0)]
    assert rows.load(both, str(pool)) == [Example("late fee", 0, 0)], "what is given goes before what is the task's own"


def test_a_task_without_rows_asks_for_them():
    message = "task 'tickets' has no rows of its own, on the hub or in a file; give files with data=FILE and pool=FILE"
    with pytest.raises(MissingRowsError, match=re.escape(message)):
        rows.load(TICKETS)
    with pytest.raises(MissingRowsError, match="task 'tickets' has no rows of its own on the toy; give files"):
        rows.load(TICKETS, toy=True)
    with pytest.raises(MissingRowsError, match="task 'emo' has no rows of its own, on the hub or in a file"):
        rows.load(EMO)


def test_the_toys_sets_are_those_of_its_own_tasks(tmp_path):
    own = replace(TICKETS, data="rows.csv", folder=str(tmp_path))
    path = written(tmp_path, "rows.csv", "body,team\nit crashed,tech\n")
    assert rows.load(own, toy=True) == rows.read_file(path, own)


# --- a DataFrame


def frame(**columns: list):
    import pandas as pd

    return pd.DataFrame(columns, index=[f"r{n}" for n in range(len(next(iter(columns.values()))))])


def test_a_frames_rows_are_its_positions_and_its_labels_may_be_of_any_dtype():
    import pandas as pd

    expected = [Example("it crashed", 1, 0), Example("late fee", 0, 1)]
    found = frame(body=["it crashed", "late fee"], team=["tech", "bill"])
    assert rows.from_frame(found, TICKETS) == rows.load(TICKETS, found) == expected
    assert rows.from_frame(found.astype("category"), TICKETS) == expected
    for kind in ("int64", "int8", "Int64", "object", "string"):
        numbers = frame(a=["it crashed", "late fee"], b=pd.Series([1, 0]).astype(kind).to_list())
        numbers["b"] = numbers["b"].astype(kind)
        assert rows.from_frame(numbers, TICKETS, text="a", label="b") == expected, kind


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["a", None]}, "text is None; an example needs some text"),
        ({"body": ["a", float("nan")]}, "text is None; an example needs some text"),
        ({"body": ["a", " "]}, "text is ' '; an example needs some text"),
        ({"team": [1, 2]}, "label 2 is no class of task 'tickets'"),
        ({"team": ["tech", None]}, "label None is no class of task 'tickets', which has 0 Billing (bill), 1 Support"),
        ({"team": [True, False]}, "label True is no class"),
    ],
)
def test_a_row_of_a_frame_that_cannot_be_used_is_named_by_its_index(columns, message):
    found = frame(**{"body": ["a", "b"], "team": [1, 0], **columns})
    place = "r0" if columns.get("team", [None])[0] is True else "r1"
    with pytest.raises(TaskError, match=re.escape(f"the DataFrame, index '{place}': {message}")):
        rows.from_frame(found, TICKETS)


def test_numbers_that_gaps_turned_into_floats_are_refused_with_the_reason():
    with pytest.raises(TaskError, match=r"index 'r0': label 1\.0 is no class .*\(a column with gaps"):
        rows.from_frame(frame(body=["a", "b"], team=[1, None]), TICKETS)


def test_a_frame_without_the_columns_or_with_one_twice_is_refused():
    import pandas as pd

    with pytest.raises(TaskError, match=r"the DataFrame: no column 'team' \(did you mean 'teams'\?\); it has"):
        rows.from_frame(frame(body=["a"], teams=[1]), TICKETS)
    with pytest.raises(TaskError, match=r"the DataFrame: \['body'\] stand more than once"):
        rows.from_frame(pd.DataFrame([["a", "b", 1]], columns=["body", "body", "team"]), TICKETS)
    with pytest.raises(TaskError, match="the DataFrame: no rows"):
        rows.from_frame(frame(body=[], team=[]), TICKETS)
