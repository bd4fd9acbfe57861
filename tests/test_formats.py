"""Every format gives the same rows, and what cannot be read is refused by file, row and remedy."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlens import formats, rows
from anchorlens.rows import Example
from anchorlens.tasks import Task, TaskError

TICKETS = Task("tickets", "{text}\n:", (" Billing", " Support"), names={"bill": 0, "tech": 1})
FORMATS = ("csv", "tsv", "jsonl", "parquet", "folder")
TEXTS = ["it crashed", 'say "hi", then\tgo', "two\nlines", "naïve 😀 \u2028 ‏שלום‏", "  spaced  ", '"quoted"']
EXPECTED = [Example(text, n % 2, n) for n, text in enumerate(TEXTS)]


def write(folder: Path, kind: str, columns: dict[str, list]) -> Path:
    """Write a table as pandas and datasets would."""
    import datasets
    import pandas as pd

    path, frame = folder / f"rows.{kind}", pd.DataFrame(columns)
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(record) for record in frame.to_dict("records")))
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        path = folder / "saved"
        datasets.Dataset.from_pandas(frame).save_to_disk(path)
    return path


def saved(names: list[str]):
    """A data set whose column ``label`` numbers classes by these names."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)


@pytest.mark.parametrize("labels", [[n % 2 for n in range(6)], ["bill", "tech"] * 3, ["Billing", "Support"] * 3])
@pytest.mark.parametrize("kind", FORMATS)
def test_what_pandas_writes_comes_back_row_by_row(tmp_path, kind, labels):
    path = write(tmp_path, kind, {"more": [1.5] * 6, "label": labels, "text": TEXTS})
    assert rows.read_file(path, TICKETS) == EXPECTED


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1))
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_any_text_comes_back_character_by_character(tmp_path_factory, kind, texts):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    if kind in ("csv", "tsv"):
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter={"csv": ",", "tsv": "\t"}[kind])
            writer.writerows([["text", "label"], *([text, 0] for text in texts)])
    else:
        path = write(path.parent, kind, {"text": texts, "label": [0] * len(texts)})
    assert [example.text for example in rows.read_file(path, TICKETS)] == texts


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_that_is_not_there_is_refused_with_the_nearest_one(tmp_path, kind):
    path = write(tmp_path, kind, {"text": ["a"], "labels": [0]})
    missing = (
        "expected text and label, found" if kind == "jsonl" else r"no column 'label' \(did you mean 'labels'\?\); it"
    )
    with pytest.raises(TaskError, match=rf"^{path}.*: {missing}.* text_column=NAME and label_column=NAME"):
        rows.read_file(path, TICKETS)


PLACES = {"csv": "line 3", "tsv": "line 3", "jsonl": "line 2", "parquet": "row 1", "folder": "row 1"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", None]}, "text is (None|''|nan)[;,] an example needs some text|text is nan"),
        ({"text": ["a", "  "]}, "text is '  '; an example needs some text"),
        (
            {"label": ["bill", "sales"]},
            "label 'sales' is no class of task 'tickets', which has 0 Billing .bill., 1 Sup",
        ),
        ({"label": [0, 2]}, "label '?2'? is no class of task 'tickets'"),
        ({"label": ["bill", None]}, "label (None|''|nan) is no class of .* Fill the label or remove the row"),
    ],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_that_cannot_be_used_is_refused_by_its_place(tmp_path, kind, columns, message):
    path = write(tmp_path, kind, {"text": ["a", "b"], "label": [0, 1], **columns})
    with pytest.raises(TaskError, match=rf"^{path}, {PLACES[kind]}: ({message})"):
        rows.read_file(path, TICKETS)


@pytest.mark.parametrize("kind", FORMATS)
def test_numbers_that_gaps_turned_into_floats_are_refused_with_the_reason(tmp_path, kind):
    path = write(tmp_path, kind, {"text": ["a", "b"], "label": [1, None]})
    with pytest.raises(TaskError, match=r"label '?1\.0'? is no class .* Write whole numbers \(a column with gaps"):
        rows.read_file(path, TICKETS)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "folder"])
def test_a_table_without_rows_is_refused(tmp_path, kind):
    path = write(tmp_path, kind, {"text": [], "label": []})
    with pytest.raises(TaskError, match=rf"^{path}: no rows; it needs at least one with text and label\."):
        rows.read_file(path, TICKETS)


# --- lines


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(("suffix", "mark"), [(".csv", b","), (".tsv", b"\t")])
def test_lines_may_end_in_any_way_and_a_mark_of_byte_order_is_none_of_the_text(tmp_path, end, suffix, mark):
    path = tmp_path / f"rows{suffix.upper()}"
    path.write_bytes(
        b"\xef\xbb\xbf" + end.join([b"text,label", b"a joy,tech", b'"b\rc",bill', b""]).replace(b",", mark)
    )
    assert rows.read_file(path, TICKETS) == [Example("a joy", 1, 0), Example("b\rc", 0, 1)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a\tb\t0", "3 fields where the header has 2, so .* Put texts with tabs in double quotes"),
        ("a,0", "1 of the header's 2 fields, so 1 are missing"),
    ],
)
def test_a_tsv_row_with_shifted_columns_is_refused(tmp_path, line, said):
    (tmp_path / "rows.tsv").write_text(f"text\tlabel\nfine\t1\n{line}\n")
    message = rf"rows\.tsv, line 3: {said}"
    with pytest.raises(TaskError, match=message):
        rows.read_file(tmp_path / "rows.tsv", TICKETS)


@pytest.mark.parametrize(
    ("name", "header", "said"),
    [
        ("rows.csv", "text;label", "not ';'"),
        ("rows.csv", "text\tlabel", r"not '\t'"),
        ("rows.tsv", "text,label", "not ','"),
    ],
)
def test_fields_that_are_separated_by_something_else_are_named(tmp_path, name, header, said):
    (tmp_path / name).write_text(f"{header}\na,1\n")
    with pytest.raises(TaskError) as error:
        rows.read_file(tmp_path / name, TICKETS)
    assert f"the header {header!r} is one field" in str(error.value)
    assert said in str(error.value)


def test_a_text_that_begins_with_a_quote_is_refused_with_how_to_write_it(tmp_path):
    (tmp_path / "rows.tsv").write_text('text\tlabel\n"so" it said\t1\n')
    with pytest.raises(TaskError, match=r"line 2: not readable as TSV .* is written \"\"\"so\"\" it said\"\."):
        rows.read_file(tmp_path / "rows.tsv", TICKETS)
    (tmp_path / "rows.csv").write_text('text,label\nfine,1\n"never closed,1\nfine,1\nfine,1\n')
    with pytest.raises(TaskError, match=r"rows\.csv, line 3 to 5: not readable as CSV"):
        rows.read_file(tmp_path / "rows.csv", TICKETS)


def test_a_byte_that_is_not_utf8_is_counted_from_the_files_beginning(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"text,label\nfine,1\ncaf\xe9,1\n")
    with pytest.raises(TaskError, match=r"not UTF-8 \(invalid continuation byte at byte 21\); save it as UTF-8"):
        rows.read_file(tmp_path / "rows.csv", TICKETS)
    (tmp_path / "rows.csv").write_bytes("text,label\nfine,1\n".encode("utf-16"))
    with pytest.raises(TaskError, match="not UTF-8"):
        rows.read_file(tmp_path / "rows.csv", TICKETS)


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.jsonl.ZIP", "rows.parquet.zst"])
def test_a_packed_file_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(TaskError, match=r": rows are not read from \.\w+ files; unpack it first\."):
        rows.read_file(tmp_path / name, TICKETS)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_lines_are_read_one_at_a_time(tmp_path, name):
    lines = {"rows.csv": "text,label\na,0\nb", "rows.jsonl": '{"text": "a", "label": 0}\n{'}
    (tmp_path / name).write_text(lines[name])
    found = formats.records(tmp_path / name, "text", "label")
    assert next(found)[1] == "a", "the broken line is not there yet"
    with pytest.raises(TaskError):
        next(found)


# --- Parquet and saved folders


@pytest.mark.parametrize("names", [["bill", "tech"], ["tech", "bill"], ["Support", "Billing"]])
def test_classes_that_a_data_set_numbers_are_mapped_by_name(tmp_path, names):
    expected = [{"bill": 0, "tech": 1, "Support": 1, "Billing": 0}[names[n]] for n in (0, 1, 1)]
    saved(names=names).to_parquet(tmp_path / "rows.parquet")
    saved(names=names).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "rows.parquet", tmp_path / "saved"):
        assert [example.label for example in rows.read_file(path, TICKETS)] == expected


def test_a_class_that_the_task_does_not_name_is_refused_with_how_to_name_it(tmp_path):
    saved(names=["bill", "1"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(TaskError, match=r"saved, row 1: label '1' is no class .* label_words: \{1: WORD, \.\.\.\}"):
        rows.read_file(tmp_path / "saved", TICKETS)


def test_rows_that_were_selected_and_shards_are_saved_in_their_order(tmp_path):
    import datasets

    many = datasets.Dataset.from_dict({"text": [f"t{n}" for n in range(10)], "label": ["bill", "tech"] * 5})
    many.select(range(9, 0, -2)).save_to_disk(tmp_path / "saved", num_shards=3)
    assert [example.text for example in rows.read_file(tmp_path / "saved", TICKETS)] == ["t9", "t7", "t5", "t3", "t1"]


def test_a_folder_of_several_splits_gives_the_one_that_rows_are_for(tmp_path):
    import datasets

    parts = {name: datasets.Dataset.from_dict({"text": [name], "label": [0]}) for name in ("train", "test", "dev")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    texts = [rows.read_file(tmp_path / "saved", TICKETS, split=split)[0].text for split in ("query", "demonstration")]
    assert texts == ["test", "train"]
    assert rows.read_file(tmp_path / "saved" / "dev", TICKETS)[0].text == "dev"
    each = [formats.fingerprint(tmp_path / "saved", "query"), formats.fingerprint(tmp_path / "saved", "demonstration")]
    assert len(set(each)) == 2
    assert formats.fingerprint(tmp_path / "saved" / "test") == each[0]


def test_of_splits_with_other_names_the_folder_must_be_named(tmp_path):
    import datasets

    part = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    datasets.DatasetDict(old=part, new=part).save_to_disk(tmp_path / "saved")
    message = (
        rf"saved: its splits are old, new, and queries come .*\. Name the split's folder: {tmp_path}/saved/SPLIT\."
    )
    with pytest.raises(TaskError, match=message):
        rows.read_file(tmp_path / "saved", TICKETS)


def test_a_folder_that_holds_files_is_answered_with_their_names(tmp_path):
    (tmp_path / "some.csv").write_text("text,label\n")
    with pytest.raises(TaskError, match=r"a folder without state\.json .* Name a file in it: some\.csv\."):
        rows.read_file(tmp_path, TICKETS)
    (tmp_path / "some.csv").unlink()
    with pytest.raises(TaskError, match=r"so none that save_to_disk made\. Give a \.csv"):
        rows.read_file(tmp_path, TICKETS)


def test_a_broken_file_is_refused(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TaskError, match=r"rows\.parquet: not readable as Parquet \(.*\); write it again\."):
        rows.read_file(tmp_path / "rows.parquet", TICKETS)
    folder = write(tmp_path, "folder", {"text": ["a"], "label": [0]})
    for name, content in (("data-00000-of-00001.arrow", "x"), ("state.json", "{}"), ("state.json", "[")):
        (folder / name).write_text(content)
        with pytest.raises(TaskError, match=r"(not readable|names no data files).* save the data set again\."):
            rows.read_file(folder, TICKETS)


def test_a_fingerprint_is_of_what_rows_say_not_of_where_they_are(tmp_path):
    for kind in FORMATS:
        folders = [tmp_path / kind / name for name in ("a", "b", "c")]
        for folder, text in zip(folders, "xxy", strict=True):
            folder.mkdir(parents=True)
            write(folder, kind, {"text": [text], "label": [0]})
        first, same, other = (formats.fingerprint(next(folder.iterdir())) for folder in folders)
        assert first == same != other, kind
