"""Rows of the hub: ids are told from files, classes are mapped by name, and without a network it is said at once."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from anchorlens import hub_rows, rows
from anchorlens.rows import Example, MissingRowsError
from anchorlens.tasks import AGNEWS, SST2, TREC, HubRows, Task, TaskError

TICKETS = Task("tickets", "Ticket: {text}\nTeam:", (" Billing", " Support"), names={"bill": 0, "tech": 1})
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def table(texts: list[str], labels: list, names: list[str] | None = None, columns: tuple[str, str] = ("text", "label")):
    import datasets

    label = (
        datasets.ClassLabel(names=names) if names else datasets.Value("int64" if type(labels[0]) is int else "string")
    )
    features = datasets.Features({columns[0]: datasets.Value("string"), columns[1]: label})
    return datasets.Dataset.from_dict(dict(zip(columns, (texts, labels), strict=True)), features=features)


@pytest.fixture
def hub(monkeypatch):
    """A hub that can be reached; put a data set's splits into ``hub.sets`` by its id, what was asked for is noted."""
    import datasets
    import huggingface_hub

    found = SimpleNamespace(sets={}, asked=[])

    def load_dataset(name: str, config: str | None = None, *, revision: str):
        found.asked.append((name, config, revision))
        if config == "no-such":
            raise ValueError("BuilderConfig 'no-such' not found. Available: ['default']")
        return found.sets[name]

    def info(_, name: str, *, revision: str | None, timeout: float):
        if name not in found.sets:
            from huggingface_hub.errors import RepositoryNotFoundError

            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None, status_code=404))
        return SimpleNamespace(sha=f"{revision or 'newest'} of {name}")

    monkeypatch.setattr(hub_rows, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    return found


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder in which ``datasets`` keeps what was fetched; there is no network."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def keep(cache: Path, dataset: str, splits: dict, config: str = "default", commit: str = COMMIT) -> Path:
    """Lay a data set into the cache as ``load_dataset`` does, by letting it load local files."""
    import datasets

    owner, name = dataset.split("/")
    source, folder = cache.parent / "source", cache / f"{owner}___{name}" / config / "0.0.0" / commit
    source.mkdir(exist_ok=True)
    for split, rows_of in splits.items():
        rows_of.to_parquet(source / f"{split}.parquet")
    files = {split: str(source / f"{split}.parquet") for split in splits}
    made = datasets.load_dataset("parquet", data_files=files, cache_dir=str(cache.parent / "made"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    Path(made[next(iter(splits))].cache_files[0]["filename"]).parent.rename(folder)
    for file in folder.glob("parquet-*"):
        file.rename(folder / file.name.replace("parquet", name, 1))
    return folder


# --- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("me/mine", ("me/mine", {}, None, None)),
        ("me/mine#dev", ("me/mine", {"query": "dev", "demonstration": "dev"}, None, None)),
        ("me/mine:big@v1.0#a_b", ("me/mine", {"query": "a_b", "demonstration": "a_b"}, "v1.0", "big")),
        ("me/mine@refs/convert/parquet", ("me/mine", {}, "refs/convert/parquet", None)),
        ("me/mine:a-b", ("me/mine", {}, None, "a-b")),
    ],
)
def test_a_hub_id_says_configuration_revision_and_split(name, expected):
    found = hub_rows.parse(name, TICKETS)
    assert found is not None
    assert (found.dataset, found.splits, found.revision, found.config) == expected
    assert (found.text, found.label, found.names) == ("text", "label", TICKETS.names)
    assert hub_rows.describe(found, "query") == name


@pytest.mark.parametrize(
    "name",
    ["mine", "a/b/c", "./mine/x", "/me/mine", "~/mine", "me/mine.csv", "me/rows.JSONL", "me/x.csv.gz", "me/", "me/m n"],
)
def test_a_path_is_no_hub_id(name):
    assert hub_rows.parse(name, TICKETS) is None
    with pytest.raises(MissingRowsError, match=r": no such file"):
        rows.load(TICKETS, name)


def test_what_is_there_as_a_file_or_folder_is_not_asked_of_the_hub(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    table(["it crashed"], ["tech"]).save_to_disk("me/mine")
    assert rows.load(TICKETS, "me/mine") == [Example("it crashed", 1, 0)]
    assert hub.asked == []


def test_a_papers_data_set_given_by_id_has_the_columns_and_classes_that_the_task_knows():
    found = hub_rows.parse("CogComp/trec#train", TREC)
    assert found == HubRows(
        "CogComp/trec",
        {"query": "train", "demonstration": "train"},
        "text",
        "coarse_label",
        TREC.hub.names if TREC.hub else {},
        "refs/convert/parquet",
    )


# --- fetched


def test_classes_are_mapped_by_name_whatever_number_they_have_there(hub):
    for names, expected in ((["bill", "tech"], [0, 1, 1]), (["tech", "bill"], [1, 0, 0])):
        hub.sets["me/mine"] = {"test": table(["a", "b", "c"], [0, 1, 1], names)}
        assert [example.label for example in rows.load(TICKETS, "me/mine")] == expected


def test_classes_may_be_called_by_label_words_or_stand_as_plain_text(hub):
    hub.sets["me/mine"] = {"test": table(["a", "b"], [0, 1], ["Support", "Billing"])}
    assert [example.label for example in rows.load(TICKETS, "me/mine")] == [1, 0]
    hub.sets["me/news"] = {"test": table(["a", "b"], ["Sci/Tech", "World"])}
    assert [example.label for example in rows.load(AGNEWS, "me/news")] == [3, 0]


@pytest.mark.parametrize("labels", [[0, 1], ["0", "1"]])
def test_a_number_is_no_class_where_the_task_says_what_classes_are_called(hub, labels):
    hub.sets["me/mine"] = {"test": table(["a", "b"], labels)}
    with pytest.raises(TaskError, match=r"me/mine, row 0: label '0' is no class of task 'tickets', which has 0 Bil"):
        rows.load(TICKETS, "me/mine")
    plain = Task("tickets", TICKETS.template, TICKETS.label_words)
    assert [example.label for example in rows.load(plain, "me/mine")] == [0, 1]


def test_names_of_classes_that_look_like_numbers_are_names(hub):
    hub.sets["me/mine"] = {"test": table(["a", "b"], [0, 1], ["1", "0"])}
    plain = Task("tickets", TICKETS.template, TICKETS.label_words)
    with pytest.raises(TaskError, match=r"label '1' is no class .* in a task file, label_words: \{1: WORD, \.\.\.\}"):
        rows.load(plain, "me/mine")


def test_a_class_that_the_task_does_not_name_is_refused(hub):
    hub.sets["stanfordnlp/sst2"] = {
        "validation": table(["a", "b"], [0, 1], ["negative", "neutral"], ("sentence", "label"))
    }
    message = "stanfordnlp/sst2#validation, row 1: label 'neutral' is no class of task 'sst2', which has 0 Negative "
    with pytest.raises(TaskError, match=re.escape(message)):
        rows.load(SST2)


def test_hidden_gold_labels_are_refused_not_read_from_the_end(hub):
    hub.sets["me/mine"] = {"test": table(["a"], [-1], ["bill", "tech"])}
    with pytest.raises(TaskError, match=r"me/mine, row 0: label -1 names no class .*; take another split"):
        rows.load(TICKETS, "me/mine")


def test_queries_and_demonstrations_come_from_the_splits_that_are_called_so(hub):
    parts = {name: table([name], ["bill"]) for name in ("train", "validation", "test", "dev")}
    hub.sets["me/mine"] = parts

    def texts(name: str) -> list[str]:
        return [rows.load(TICKETS, name, split=split)[0].text for split in ("query", "demonstration")]

    assert texts("me/mine") == ["test", "train"]
    assert texts("me/mine#dev") == ["dev", "dev"]
    del parts["test"]
    assert texts("me/mine") == ["validation", "train"]
    hub.sets["me/mine"] = {"all": table(["only"], ["bill"])}
    assert texts("me/mine") == ["only", "only"], "there is nothing to choose"


def test_splits_of_other_names_must_be_chosen(hub):
    hub.sets["me/mine"] = {name: table([name], ["bill"]) for name in ("old", "new")}
    message = "me/mine: its splits are old, new, and queries come from test or validation where nothing else is said. "
    with pytest.raises(TaskError, match=re.escape(message) + "Write data=me/mine#SPLIT or pool=me/mine#SPLIT"):
        rows.load(TICKETS, "me/mine")
    with pytest.raises(TaskError, match=r"me/mine: no split 'newer'; it has old, new\. Write data=me/mine#SPLIT"):
        rows.load(TICKETS, "me/mine#newer")


def test_what_was_fingerprinted_is_what_is_fetched(hub):
    hub.sets["me/mine"] = {"test": table(["a"], ["bill"])}
    said = rows.fingerprint(TICKETS, "me/mine:big@v1#test")
    assert said == "hub me/mine big test commit v1 of me/mine"
    rows.load(TICKETS, "me/mine:big@v1#test")
    assert hub.asked == [("me/mine", "big", "v1 of me/mine")]
    others = ("me/mine@v1#test", "me/mine:big#test", "me/mine:big@v1", "me/mine:big@v1#train")
    assert len({said, *(rows.fingerprint(TICKETS, other) for other in others)}) == 5


def test_what_the_hub_does_not_have_is_said_as_such(hub):
    with pytest.raises(MissingRowsError, match=r"the hub has no data set 'me/mine' \(or it is private and"):
        rows.fingerprint(TICKETS, "me/mine")
    hub.sets["me/mine"] = {"test": table(["a"], ["bill"], columns=("texts", "label"))}
    with pytest.raises(TaskError, match=r"me/mine cannot be loaded: BuilderConfig 'no-such' .*written me/mine:CONFIG"):
        rows.load(TICKETS, "me/mine:no-such")
    with pytest.raises(TaskError, match=r"me/mine: no column 'text' \(did you mean 'texts'\?\); it has texts, label"):
        rows.load(TICKETS, "me/mine")


# --- without a network


@pytest.mark.parametrize(("split", "purpose"), [("query", "queries"), ("demonstration", "demonstrations")])
def test_rows_that_would_need_an_unreachable_hub_are_refused_at_once(cache, split, purpose):
    message = (
        f"rows of task 'sst2' for {purpose} (stanfordnlp/sst2 on the hub) are not on this machine, and the hub "
        "cannot be reached. "
        "Give files with data=FILE and pool=FILE (the same file will do), or connect once to fetch them."
    )
    started = time.monotonic()
    for load in (rows.load, rows.fingerprint):
        with pytest.raises(MissingRowsError, match=re.escape(message)):
            load(SST2, split=split)
    assert time.monotonic() - started < 2


def test_an_id_that_is_neither_here_nor_to_be_reached_is_said_to_be_both(cache):
    message = "'me/mine' is no file here; as a data set of the hub it is not on this machine either, and the hub cannot"
    with pytest.raises(MissingRowsError, match=re.escape(message)):
        rows.fingerprint(TICKETS, "me/mine")


def test_what_was_fetched_once_is_read_without_a_network(cache):
    parts = {
        "train": table(["it crashed", "late fee"], [0, 1], ["tech", "bill"]),
        "test": table(["x"], [1], ["tech", "bill"]),
    }
    folder = keep(cache, "me/mine", parts)
    assert rows.load(TICKETS, "me/mine", split="demonstration") == [
        Example("it crashed", 1, 0),
        Example("late fee", 0, 1),
    ]
    assert rows.load(TICKETS, "me/mine") == [Example("x", 0, 0)]
    assert rows.fingerprint(TICKETS, "me/mine") == f"hub me/mine default by purpose commit {folder.name}"
    with pytest.raises(TaskError, match=r"me/mine: no split 'dev'; it has train, test"):
        rows.load(TICKETS, "me/mine#dev")
    with pytest.raises(TaskError, match=r"me/mine: no column 'body'; it has text, label"):
        rows.load(Task("mine", "{text}:", (" a", " b"), text="body"), "me/mine")


def test_what_was_fetched_in_part_is_not_there(cache):
    folder = keep(cache, "me/mine", {"train": table(["it crashed"], ["tech"])})
    part = folder.rename(f"{folder}.incomplete")
    with pytest.raises(MissingRowsError, match="not on this machine"):
        rows.load(TICKETS, "me/mine")
    part.rename(folder)
    next(folder.glob("*.arrow")).unlink()
    with pytest.raises(MissingRowsError, match=r"no rows of split 'train' are left there\. Give files with data=FILE"):
        rows.load(TICKETS, "me/mine")


def test_what_no_hub_would_take_for_an_id_is_refused(monkeypatch):
    monkeypatch.setattr(hub_rows, "hub_reachable", lambda: True)
    with pytest.raises(MissingRowsError, match=r"'me/mi\.\.ne' is no file here and cannot be a hub id"):
        rows.load(TICKETS, "me/mi..ne")


def test_datasets_itself_finds_what_the_test_laid_into_its_cache(cache):
    import datasets

    keep(cache, "me/mine", {"train": table(["it crashed"], ["tech"])})
    found = datasets.load_dataset("me/mine", split="train", cache_dir=str(cache))
    assert found["text"] == ["it crashed"]


def test_a_commit_that_is_pinned_is_not_replaced_by_another_that_is_here(cache):
    keep(cache, "me/mine", {"train": table(["old"], ["tech"])}, commit=COMMIT)
    assert rows.load(TICKETS, f"me/mine@{COMMIT}")[0].text == "old"
    with pytest.raises(MissingRowsError, match="not on this machine"):
        rows.load(TICKETS, f"me/mine@{COMMIT[::-1]}")


def test_a_name_of_a_revision_says_nothing_without_a_network(cache):
    keep(cache, "me/mine", {"train": table(["old"], ["tech"])})
    with pytest.raises(MissingRowsError, match=rf"cannot be told which commit 'v2' is; .* write me/mine@{COMMIT}"):
        rows.load(TICKETS, "me/mine@v2")


def test_the_papers_own_revision_is_taken_for_what_is_here(cache):
    parts = {"test": table(["who"], [0], ["HUM"], ("text", "coarse_label"))}
    keep(cache, "CogComp/trec", parts)
    assert rows.load(TREC) == rows.load(TREC, "CogComp/trec") == [Example("who", 3, 0)]


def test_of_several_configurations_one_must_be_named(cache):
    for config in ("big", "small"):
        keep(cache, "me/mine", {"train": table([config], ["tech"])}, config=config)
    with pytest.raises(
        TaskError, match="me/mine: several configurations are on this machine, big, small; write me/mine:"
    ):
        rows.load(TICKETS, "me/mine")
    assert rows.load(TICKETS, "me/mine:small")[0].text == "small"


def test_a_data_set_in_camel_case_is_kept_under_the_name_that_datasets_gives_it(cache):
    import datasets.naming

    for name in ("TREC-QC", "MyOwnSet", "a_b", "SST2x", "myHTMLPages"):
        kept = f"me/{datasets.naming.camelcase_to_snakecase(name)}"
        keep(cache, kept, {"train": table([name], ["tech"])})
        assert rows.load(TICKETS, f"me/{name}")[0].text == name
