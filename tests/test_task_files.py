"""A task file is read as it was meant, or refused with file, what was found and what to do."""

import re
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlens import task_files, tasks
from anchorlens.tasks import SST2, Task, TaskError

TICKETS = r"""
name: tickets
template: "Ticket: {text}\nTeam:"
label_words: {billing: " Billing", tech: Support}
separator: "\n\n"
label_token: first
text: body
label: team
data: tickets.csv
pool: me/mine#train
"""


@pytest.fixture
def write(tmp_path):
    """Writes a task file, and gives its path as one would type it."""

    def written(content: str | bytes, name: str = "tickets.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return written


def refused(path: str, message: str):
    """The task must be refused with exactly ``message``, in which PATH stands for the file."""
    return pytest.raises(TaskError, match="^" + re.escape(message.replace("PATH", path)) + "$")


def test_a_task_file_says_all_that_a_task_is(write, tmp_path):
    assert tasks.get(write(TICKETS)) == Task(
        "tickets",
        "Ticket: {text}\nTeam:",
        (" Billing", " Support"),
        separator="\n\n",
        label_token="first",
        names={"billing": 0, "tech": 1},
        text="body",
        label="team",
        data="tickets.csv",
        pool="me/mine#train",
        folder=str(tmp_path),
    )


def test_template_and_label_words_are_enough_and_the_file_gives_the_name(write, tmp_path):
    path = write("template: 'Q: {text}\n\n  A:'\nlabel_words: [No way, ' Yes ']\n", "yes-no.yml")
    assert tasks.get(path) == Task("yes-no", "Q: {text}\nA:", (" No way", " Yes"), folder=str(tmp_path))


def test_a_block_of_lines_is_a_template(write):
    task = tasks.get(write("template: |-\n  Ticket: {text}\n  Team:\nlabel_words: [a, b]"))
    assert task.context("late fee") == "Ticket: late fee\nTeam:"


def test_names_may_be_whole_numbers(write):
    assert tasks.get(write(LABELS + "{1: bad, 5: good}")).names == {"1": 0, "5": 1}


def test_a_byte_order_mark_and_foreign_letters_are_read(write):
    content = "template: 'Отзыв: {text} 😀:'\nlabel_words: {да: Хорошо, нет: Плохо}"
    task = tasks.get(write(b"\xef\xbb\xbf" + content.encode()))
    assert (task.label_words, task.names) == ((" Хорошо", " Плохо"), {"да": 0, "нет": 1})


def test_the_home_folder_may_be_written_as_a_tilde(write, tmp_path, monkeypatch):
    write(TICKETS)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tasks.get("~/tickets.yaml").folder == str(tmp_path)


def test_what_is_given_with_the_name_goes_before_what_the_file_says(write):
    path = write(TICKETS)
    assert tasks.get(path, label_token="only").label_token == "only"
    told = tasks.get(path, text_column="subject")
    assert (told.text, told.label) == ("subject", "team")
    assert tasks.get(path, label_column="queue").label == "queue"


def test_columns_that_are_given_are_those_of_the_hub_too():
    told = tasks.get("sst2", text_column="words")
    assert told.hub is not None
    assert (told.text, told.label, told.hub.text, told.hub.label) == ("words", "label", "words", "label")
    assert tasks.get("sst2") is SST2


# --- what is refused

LABELS = "template: '{text}:'\nlabel_words: "
MINIMAL = LABELS + "[a, b]\n"
WHOLE = "put it in quotes (without them YAML reads yes, no, on, off, numbers and dates as no text)"
KEYS = "template, label_words, name, separator, label_token, text, label, data, pool"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "PATH: expected keys like template: and label_words:, found nothing."),
        ("- template", "PATH: expected keys like template: and label_words:, found list ['template']."),
        ("template: '{text}:'", "PATH: label_words missing; a task needs a template and its label words."),
        ("name: x", "PATH: template and label_words missing; a task needs a template and its label words."),
        (MINIMAL + "seperator: x", f"PATH: no key 'seperator'; did you mean 'separator'? It takes: {KEYS}."),
        (MINIMAL + "3: x", f"PATH: no key 3. It takes: {KEYS}."),
        (MINIMAL + "name: a\nname: b", "PATH, line 4: not readable as YAML (the key 'name' is there twice); QUOTE"),
        ("label_words: {a: x, a: y}", "PATH, line 1: not readable as YAML (the key 'a' is there twice); QUOTE"),
        (
            "template: Ticket: {text}",
            "PATH, line 1: not readable as YAML (mapping values are not allowed here); QUOTE",
        ),
        (MINIMAL + "name: 3", f"PATH: name is int 3, expected text; {WHOLE}."),
        (MINIMAL + "text: no", f"PATH: text is bool False, expected text; {WHOLE}."),
        (MINIMAL + "label:", f"PATH: label is nothing, expected text; {WHOLE}."),
        (MINIMAL + "data: ''", "PATH: data is empty; write it, or leave the key out where it may be."),
        (
            LABELS + "yes",
            "PATH: label_words: expected [word, word] or {name in the data: word}, found bool True.",
        ),
        (
            LABELS + "[No, Yes]",
            f"PATH: label_words, word 0 is bool False, expected text; {WHOLE}.",
        ),
        (
            LABELS + "{no: a, x: b}",
            f"PATH: label_words is bool False, expected text; {WHOLE}.",
        ),
        (LABELS + "{x: 1, y: b}", f"PATH: label_words, x is int 1, expected text; {WHOLE}."),
        (
            LABELS + "{1: a, '1': b}",
            "PATH, line 2: not readable as YAML (the key '1' is there twice); QUOTE",
        ),
        (
            LABELS + "{1: a, '1 ': b}",
            "PATH: label_words: the name '1' is there twice; give each class one name.",
        ),
        (
            LABELS + "{1.5: a, x: b}",
            f"PATH: label_words is float 1.5, expected text; {WHOLE}.",
        ),
        (
            LABELS + "[a, a]",
            "PATH: task 'tickets': label words [' a', ' a'] are not at least two different words; "
            "give each class a word of its own (a task without any is generation, which is out of scope).",
        ),
        (
            "template: '{test}:'\nlabel_words: [a, b]",
            "PATH: task 'tickets': template '{test}:' holds {text} 0 times; write it exactly once, "
            "where the example's text goes.",
        ),
        (MINIMAL + "label_token: last", "PATH: label_token='last': it may be 'task', 'only', 'first' or 'all'."),
        (
            MINIMAL + "text: label",
            "PATH: task 'tickets': text is column 'label' and label is column 'label'; name two different columns "
            "(text_column, label_column).",
        ),
        (MINIMAL + "name: sst2", "PATH: the name 'sst2' is that of one of the paper's tasks; choose another."),
        (
            "template: |\n  Q: {text}\n  A:\nlabel_words: [a, b]",
            "PATH: template 'Q: {text}\\nA:\\n' ends in a blank or a line break; the label word follows it after "
            "one blank of its own. Remove it (a block of lines wants |- in place of |).",
        ),
    ],
)
def test_a_file_that_describes_no_task_is_refused(write, content, message):
    with refused(write(content), message.replace("QUOTE", "quote texts that hold : or #.")):
        tasks.get(write(content))


def test_a_file_in_another_encoding_is_refused(write):
    with pytest.raises(TaskError, match=r"tickets\.yaml: not UTF-8 \(.* at byte 11\); save it as UTF-8\."):
        tasks.get(write("template: 'é{text}:'".encode("latin-1")))


def test_a_file_that_is_not_there_is_refused_with_the_nearest_one(write, tmp_path):
    write(MINIMAL)
    message = f"{tmp_path}/ticket.yaml: no such task file; did you mean 'tickets.yaml'? Give a YAML file with template"
    with pytest.raises(TaskError, match=re.escape(message)):
        tasks.get(str(tmp_path / "ticket.yaml"))
    with pytest.raises(TaskError, match=re.escape("/nowhere/x.yaml: no such task file. Give a YAML file")):
        tasks.get("/nowhere/x.yaml")


@pytest.mark.parametrize("name", ["tickets.json", "sub/tickets"])
def test_another_kind_of_file_is_no_task(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("tickets.json").write_text("{}")
    with pytest.raises(TaskError, match=f"task '{name}' is neither a name .sst2, trec, agnews, emo. nor a .yaml file"):
        tasks.get(name)


def test_yaml_tags_make_no_objects(write):
    with pytest.raises(
        TaskError, match=r"line 1: not readable as YAML \(could not determine a constructor for the tag"
    ):
        tasks.get(write("template: !!python/object/apply:os.getcwd []"))


SCRAPS = st.sampled_from(
    [*MINIMAL.split("\n"), "a: b", "- x", "{", "}", "[", "]", "!!", "&a", "*a", "<<:", "2020-13-45", "|", "'"]
)


@settings(deadline=None)
@given(content=st.text() | st.lists(SCRAPS | st.text(max_size=5), max_size=8).map("\n".join))
def test_any_text_is_a_task_or_refused_with_the_files_name(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        said = tasks.get(str(path)).folder
    except TaskError as error:
        said = str(error)
    assert str(path.parent) in said


def test_reading_a_task_file_imports_yaml_only_then():
    import subprocess
    import sys

    code = (
        "import sys\nfrom anchorlens import cli, tasks, rows\nprint({'yaml', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_fingerprint_is_of_what_a_task_means_not_of_where_it_is(write):
    def of(content: str, name: str = "tickets.yaml") -> str:
        return tasks.get(write(content, name)).fingerprint()

    assert of(TICKETS) == of(TICKETS, "other.yaml") == of("# a comment\n" + TICKETS.replace("Support", "' Support'"))
    assert of(TICKETS.replace("data: tickets.csv", "data: more.csv")) == of(TICKETS), "rows have their own"
    for old in ("Ticket:", "Billing", "billing", "\\n\\n", "first", "body", "team", "name: tickets"):
        new = {"first": "only", "\\n\\n": "\\n"}.get(old, f"{old}x")
        assert of(TICKETS.replace(old, new, 1)) != of(TICKETS), old


def test_every_key_of_a_file_is_one_of_a_task():
    assert set(task_files.REQUIRED + task_files.OPTIONAL) <= set(Task.__dataclass_fields__)


def test_the_task_of_the_docs_can_be_pasted_as_a_file_and_as_code(write):
    docs = Path(__file__).parent.parent / "docs"
    file, python = ((docs / name).read_text(encoding="utf-8") for name in ("own.md", "python.md"))
    (pasted,) = re.findall(r"```yaml\n( *# tickets.*?)```", file, re.DOTALL)
    found = tasks.get(write(textwrap.dedent(pasted)))
    assert (found.data, found.pool, found.names) == ("tickets.csv", "tickets_train.csv", {"billing": 0, "tech": 1})
    (code,) = re.findall(r"from anchorlens.tasks import Task\n\nrows = .*?\n(.*?)drawn", python, re.DOTALL)
    namespace: dict[str, Any] = {"Task": Task}
    exec(code, namespace)
    assert replace(found, data="", pool="", folder="", label_token="first") == namespace["task"]
