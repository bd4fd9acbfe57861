"""Rows are read as they were meant, or refused with file, place, what was found and what to do."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from anchorlens import rows
from anchorlens.rows import Example, MissingRowsError
from anchorlens.tasks import EMO, SST2, TASKS, TREC, TaskError


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


COLUMNS = "Say which columns they are with text_column=NAME and label_column=NAME, or in the task file."
KINDS = ".csv, .tsv, .jsonl or .parquet file, or a folder made by save_to_disk"


def refused(path: Path, message: str):
    """``read_file`` must raise exactly ``message``, in which PATH stands for the file."""
    return pytest.raises(TaskError, match="^" + re.escape(message.replace("PATH", str(path))) + "$")


# --- reading


def test_csv_rows_keep_their_order_and_count_from_zero(tmp_path):
    path = written(tmp_path, "rows.csv", "text,label\ngood,1\nbad,0\n")
    assert rows.read_file(path, SST2) == [Example("good", 1, 0), Example("bad", 0, 1)]


def test_jsonl_rows_are_the_same_as_csv_rows(tmp_path):
    lines = [{"text": "good", "label": 1}, {"label": 0, "text": "bad", "more": None}]
    path = written(tmp_path, "rows.JSONL", "\n".join(map(json.dumps, lines)))
    assert rows.read_file(path, SST2) == [Example("good", 1, 0), Example("bad", 0, 1)]


def test_a_label_is_a_class_number_or_its_word_with_or_without_space(tmp_path):
    path = written(tmp_path, "rows.csv", "label,text\n1,a\nPositive,b\n Positive ,c\n 0,d\nNegative,e\n")
    assert [example.label for example in rows.read_file(path, SST2)] == [1, 1, 1, 0, 0]
    path = written(tmp_path, "rows.jsonl", '{"text": "a", "label": "5"}\n{"text": "b", "label": "Number"}')
    assert [example.label for example in rows.read_file(path, TREC)] == [5, 5]


def test_a_byte_order_mark_before_a_csv_header_is_no_part_of_the_first_column(tmp_path):
    path = written(tmp_path, "rows.csv", b"\xef\xbb\xbftext,label\r\ngood,1\r\n")
    assert rows.read_file(path, SST2) == [Example("good", 1, 0)]


def test_quoted_commas_quotes_and_newlines_belong_to_the_text(tmp_path):
    path = written(tmp_path, "rows.csv", 'text,label,note\n"slow, dull, ""long""",0,x\n"two\nlines",1,\n')
    assert rows.read_file(path, SST2) == [Example('slow, dull, "long"', 0, 0), Example("two\nlines", 1, 1)]


def test_blank_lines_are_no_rows(tmp_path):
    path = written(tmp_path, "rows.csv", "text,label\n\ngood,1\n\nbad,0\n")
    assert [example.row for example in rows.read_file(path, SST2)] == [0, 1]
    path = written(tmp_path, "rows.jsonl", '\n{"text": "a", "label": 1}\n  \n{"text": "b", "label": 0}\n')
    assert [example.row for example in rows.read_file(path, SST2)] == [0, 1]


@pytest.mark.parametrize("text", ["  spaced  ", "naïve 😀 ‏שלום‏", "a\u2028b\x85c", "Review: x\nSentiment: Positive\n"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_text_comes_back_character_by_character(tmp_path, text, ascii_only):
    path = written(tmp_path, "rows.jsonl", json.dumps({"text": text, "label": 1}, ensure_ascii=ascii_only))
    assert rows.read_file(path, SST2)[0].text == text


# --- what is refused in a file

SHIFTED = "; if the columns are shifted, quote texts that contain commas"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text,gold", "no column 'label'; it has text, gold."),
        ("text,lable", "no column 'label' (did you mean 'lable'?); it has text, lable."),
        ("", "no column 'text' and no column 'label'; it has none."),
    ],
)
def test_a_csv_without_the_two_columns_is_refused(tmp_path, header, message):
    path = written(tmp_path, "rows.csv", header)
    with refused(path, f"PATH: {message} {COLUMNS}"):
        rows.read_file(path, SST2)


@pytest.mark.parametrize(("line", "found"), [("so slow, so dull,0", 3), ("a,b,c,d,0", 5)])
def test_a_csv_row_with_shifted_columns_is_refused(tmp_path, line, found):
    path = written(tmp_path, "rows.csv", f"text,label\nfine,1\n{line}\n")
    message = f"PATH, line 3: {found} fields where the header has 2, so its columns are shifted. "
    with refused(path, message + 'Put texts with commas ("a, b") in double quotes.'):
        rows.read_file(path, SST2)


def test_a_csv_row_that_lacks_a_field_is_refused(tmp_path):
    path = written(tmp_path, "rows.csv", "text,label,when\nfine,1,now\nno label\n")
    with refused(path, "PATH, line 3: 1 of the header's 3 fields, so 2 are missing. Fill them in, or remove the line."):
        rows.read_file(path, SST2)


@pytest.mark.parametrize("line", ['"slow" and dull,0', '"never closed,0'])
def test_broken_quotes_are_refused(tmp_path, line):
    path = written(tmp_path, "rows.csv", f"text,label\n{line}\n")
    with pytest.raises(TaskError, match=r"rows\.csv, line \d: not readable as CSV \("):
        rows.read_file(path, SST2)


@pytest.mark.parametrize(
    ("label", "remedy"),
    [
        ("2", f". Use the number or the word{SHIFTED}"),
        ("-1", f". Use the number or the word{SHIFTED}"),
        ("Positiv", f"; did you mean 'Positive'? Use the number or the word{SHIFTED}"),
        ("", f". Fill the label or remove the row{SHIFTED}"),
        ("1.0", ". Write whole numbers (a column with gaps turns them into such: fill or remove these first)"),
    ],
)
def test_a_csv_label_outside_the_task_is_refused_with_what_to_do(tmp_path, label, remedy):
    path = written(tmp_path, "rows.csv", f"text,label\nfine,1\nfine,{label}\n")
    message = f"PATH, line 3: label {label!r} is no class of task 'sst2', which has 0 Negative, 1 Positive{remedy}."
    with refused(path, message):
        rows.read_file(path, SST2)


@pytest.mark.parametrize("label", ["2", "-1", "1.0", "true", "null", "NaN", "[1]"])
def test_a_json_label_that_is_no_class_is_refused(tmp_path, label):
    path = written(tmp_path, "rows.jsonl", f'{{"text": "fine", "label": {label}}}')
    with pytest.raises(TaskError, match=r"rows\.jsonl, line 1: label .* is no class of task 'sst2', which has 0 Neg"):
        rows.read_file(path, SST2)


@pytest.mark.parametrize("text", ["", "   ", "\n", None, 3])
def test_an_empty_text_is_refused(tmp_path, text):
    path = written(tmp_path, "rows.jsonl", json.dumps({"text": text, "label": 1}))
    with refused(path, f"PATH, line 1: text is {text!r}; an example needs some text. Remove the row or fill it."):
        rows.read_file(path, SST2)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_file_in_another_encoding_is_refused(tmp_path, name):
    line = {"rows.csv": "text,label\ncafé,1\n", "rows.jsonl": '{"text": "café", "label": 1}'}[name]
    path = written(tmp_path, name, line.encode("latin-1"))
    with pytest.raises(TaskError, match=rf"{name}: not UTF-8 \(.* at byte \d+\); save it as UTF-8\."):
        rows.read_file(path, SST2)


def test_a_line_that_is_no_json_is_refused_by_its_number(tmp_path):
    path = written(tmp_path, "rows.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b", "label":')
    with pytest.raises(TaskError, match=r"rows\.jsonl, line 3: not JSON \(Expecting value"):
        rows.read_file(path, SST2)


@pytest.mark.parametrize(
    ("line", "found"), [("[1]", "list"), ('"text"', "str"), ('{"text": "a"}', "['text']"), ("{}", "[]")]
)
def test_a_json_line_that_is_no_row_is_refused(tmp_path, line, found):
    path = written(tmp_path, "rows.jsonl", line)
    with refused(path, f"PATH, line 1: expected text and label, found {found}. {COLUMNS}"):
        rows.read_file(path, SST2)


@pytest.mark.parametrize(("name", "content"), [("rows.csv", "text,label\n"), ("rows.jsonl", ""), ("rows.jsonl", "\n")])
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    path = written(tmp_path, name, content)
    with refused(path, "PATH: no rows; it needs at least one with text and label."):
        rows.read_file(path, SST2)


@pytest.mark.parametrize(("name", "suffix"), [("rows.txt", ".txt"), ("rows.json", ".json"), ("rows", "no suffix")])
def test_another_kind_of_file_is_refused(tmp_path, name, suffix):
    path = written(tmp_path, name, "text,label\na,1\n")
    with refused(path, f"PATH: rows are read from a {KINDS}, not from {suffix!r}."):
        rows.read_file(path, SST2)


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere.jsonl"])
def test_a_missing_file_is_a_missing_rows_error(tmp_path, name):
    with pytest.raises(MissingRowsError, match=rf"nowhere\.\w+: no such file\. Give a {re.escape(KINDS)}\."):
        rows.load(SST2, str(tmp_path / name))
    written(tmp_path, "nowhere.tsv", "text\tlabel\n")
    with pytest.raises(MissingRowsError, match=r"no such file; did you mean 'nowhere\.tsv'\?"):
        rows.load(SST2, str(tmp_path / name))
    assert issubclass(MissingRowsError, TaskError)


# --- shots


def test_a_pool_with_just_enough_of_every_class_passes_and_one_row_less_does_not():
    pool = [Example("a", 0), Example("b", 0), Example("c", 1), Example("d", 1)]
    rows.check_shots(pool, SST2, 2, where="pool.csv")
    message = (
        "pool.csv: 1 row of class 1 (Positive) where shots=2 needs 2. "
        "Lower shots, or give a pool with more rows of that class."
    )
    with pytest.raises(TaskError, match=re.escape(message)):
        rows.check_shots(pool[:3], SST2, 2, where="pool.csv")
    rows.check_shots(pool, SST2, 1, own=True, where="pool.csv")
    with pytest.raises(
        TaskError, match=r"pool\.csv: 2 rows of class 0 \(Negative\) where shots=2 needs 3, since a query"
    ):
        rows.check_shots(pool, SST2, 2, own=True, where="pool.csv")


def test_a_class_without_any_row_is_named():
    with pytest.raises(TaskError, match=r"0 rows of class 3 \(Angry\) where shots=1 needs 1"):
        rows.check_shots([Example("a", label) for label in (0, 1, 2)], EMO, 1, where="x")


# --- prompts fixed by a file


DEMONSTRATIONS = [{"text": "good", "label": 1}, {"text": "bad", "label": "Negative"}]
QUERY = {"text": "fine", "label": 1}


def prompt_line(query: object = QUERY, demonstrations: object = DEMONSTRATIONS) -> str:
    return json.dumps({"demonstrations": demonstrations, "query": query})


def test_prompts_keep_their_demonstrations_in_order_and_a_null_gold(tmp_path):
    unknown = prompt_line(query={"text": "so so", "label": None})
    path = written(tmp_path, "prompts.jsonl", f"{prompt_line()}\n\n{unknown}\n")
    (first, query), (_, ungraded) = rows.read_prompts(path, SST2)
    assert [(example.text, example.label) for example in first] == [("good", 1), ("bad", 0)]
    assert query == Example("fine", 1, 0)
    assert ungraded == Example("so so", None, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "line 1: expected demonstrations and query, found list."),
        ('{"query": 1, "b": 2}', "line 1: expected demonstrations and query, found ['b', 'query']."),
        (prompt_line(demonstrations=[]), "line 1: demonstrations must be a list of at least one text with its label."),
        (prompt_line(demonstrations={"text": "a"}), "line 1: demonstrations must be a list of at least one text"),
        (prompt_line(demonstrations=["a"]), "line 1, demonstration 0: expected text and label, found str."),
        (
            prompt_line(demonstrations=[{"text": "a", "label": 1}, {"text": "b", "label": None}]),
            "line 1, demonstration 1: label None is no class of task 'sst2', which has 0 Negative, 1 Positive.",
        ),
        (prompt_line(query={"text": "a"}), "line 1, query: expected text and label, found ['text']."),
        (prompt_line(query={"text": " ", "label": None}), "line 1, query: text is ' '; an example needs some text."),
        (prompt_line(query={"text": "a", "label": 2}), "line 1, query: label 2 is no class of task 'sst2'"),
        ("{", "line 1: not JSON ("),
    ],
)
def test_a_line_that_is_no_prompt_is_refused(tmp_path, line, message):
    path = written(tmp_path, "prompts.jsonl", line)
    with pytest.raises(TaskError, match=re.escape(f"{path}, {message}")):
        rows.read_prompts(path, SST2)


def test_a_prompts_file_that_is_empty_or_missing_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"prompts\.jsonl: no prompts; it needs at least one line\."):
        rows.read_prompts(written(tmp_path, "prompts.jsonl", "\n"), SST2)
    with pytest.raises(
        MissingRowsError, match=r"none\.jsonl: no such file; give a JSONL file with one prompt a line\."
    ):
        rows.read_prompts(tmp_path / "none.jsonl", SST2)


# --- the toy's own rows


@pytest.mark.parametrize("data", ["", "clean", "hard"])
@pytest.mark.parametrize("name", TASKS)
def test_the_toys_sets_hold_two_hundred_different_texts_spread_evenly_over_the_classes(name, data):
    examples = rows.load(TASKS[name], data, toy=True)
    assert [example.row for example in examples] == list(range(200))
    assert len({example.text for example in examples}) == 200
    counts = Counter(example.label for example in examples)
    assert set(counts) == set(range(len(TASKS[name].label_words)))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_toy_reads_its_clean_set_unless_told_otherwise():
    assert rows.load(SST2, toy=True) == rows.load(SST2, "clean", toy=True)
    assert rows.load(SST2, "hard", toy=True) != rows.load(SST2, "clean", toy=True)


def test_a_set_of_the_toy_is_no_file_for_another_model():
    with pytest.raises(MissingRowsError, match=r"^clean: no such file\."):
        rows.load(SST2, "clean")


def test_a_file_wins_over_the_toys_own_rows(tmp_path):
    path = written(tmp_path, "rows.csv", "text,label\ngood,1\n")
    assert rows.load(SST2, str(path), toy=True) == [Example("good", 1, 0)]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "fine", "label": 1}\n')
    assert rows.read_file(path, SST2) == [Example("fine", 1, 0)]


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a \\ud83d b", "label": 1}\n')
    with pytest.raises(TaskError, match=r"rows\.jsonl, line 1: text holds half of a surrogate pair"):
        rows.read_file(path, SST2)


def test_a_column_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label,text\na,1,b\n")
    with pytest.raises(TaskError, match=r"\['text'\] stand more than once in the header"):
        rows.read_file(path, SST2)
