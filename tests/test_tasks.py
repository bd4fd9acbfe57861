"""The four tasks are the paper's, and tasks or label words that cannot work are refused."""

import re

import pytest

from anchorlens import parameters, tasks
from anchorlens.tasks import AGNEWS, EMO, SST2, TASKS, TREC, Task, TaskError

PAPER = {  # appendix A, table 4, and the released wrapper: template and label words in class order
    "sst2": ("Review: {text}\nSentiment:", [" Negative", " Positive"]),
    "trec": (
        "Question: {text}\nAnswer Type:",
        [" Abbreviation", " Entity", " Description", " Person", " Location", " Number"],
    ),
    "agnews": ("Article: {text}\nAnswer:", [" World", " Sports", " Business", " Technology"]),
    "emo": ("Dialogue: {text}\nEmotion:", [" Others", " Happy", " Sad", " Angry"]),
}
HUB_CLASSES = {  # the hub's own class names in the order of our label words
    "sst2": ["negative", "positive"],
    "trec": ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"],
    "agnews": ["World", "Sports", "Business", "Sci/Tech"],
}


def test_there_are_the_papers_four_tasks_and_no_other():
    assert list(TASKS) == list(PAPER)
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("name", PAPER)
def test_template_and_label_words_are_the_papers(name):
    task = tasks.get(name)
    assert (task.template, list(task.label_words)) == PAPER[name]
    assert task.separator == "\n"


@pytest.mark.parametrize("name", HUB_CLASSES)
def test_every_hub_class_stands_for_the_label_word_of_its_meaning(name):
    hub = tasks.get(name).hub
    assert hub is not None
    assert hub.names == {there: label for label, there in enumerate(HUB_CLASSES[name])}
    assert set(hub.splits) == {"query", "demonstration"}
    assert hub.splits["query"] != hub.splits["demonstration"]


def test_only_emo_has_no_rows_on_the_hub():
    assert [name for name, task in TASKS.items() if task.hub is None] == ["emo"]


def test_sst2_queries_come_from_validation_since_its_test_labels_are_hidden():
    assert SST2.hub is not None
    assert SST2.hub.splits["query"] == "validation"


def test_context_is_the_example_up_to_its_label_word():
    assert SST2.context("a joy") == "Review: a joy\nSentiment:"


def test_a_text_that_spells_the_placeholder_stays_as_it_is():
    assert SST2.context("{text} {0} {label}") == "Review: {text} {0} {label}\nSentiment:"


# --- get


def test_only_trec_lets_a_first_token_stand_for_its_label_word():
    assert {name: task.label_token for name, task in TASKS.items()} == {
        "sst2": "only",
        "trec": "first",
        "agnews": "only",
        "emo": "only",
    }


@pytest.mark.parametrize("label_token", ["only", "first", "all"])
@pytest.mark.parametrize("name", PAPER)
def test_label_token_overrides_the_tasks_own_and_nothing_else(name, label_token):
    task = tasks.get(name, label_token=label_token)
    assert task.label_token == label_token
    assert tasks.get(name, label_token="task") is TASKS[name]
    assert (task.template, task.label_words, task.hub) == (
        TASKS[name].template,
        TASKS[name].label_words,
        TASKS[name].hub,
    )


def test_an_unknown_label_token_is_refused():
    with pytest.raises(TaskError, match=r"label_token='last': it may be 'task', 'only', 'first' or 'all'\."):
        tasks.get("sst2", label_token="last")


def test_a_misspelt_task_is_refused_with_the_name_that_was_meant():
    message = "no task 'sts2'; did you mean 'sst2'? Tasks: sst2, trec, agnews, emo, or a .yaml file."
    with pytest.raises(TaskError, match=re.escape(message)):
        tasks.get("sts2")


def test_a_task_like_no_other_is_refused_without_a_guess():
    with pytest.raises(TaskError, match=r"^no task 'cola'\. Tasks: sst2, trec, agnews, emo, or a \.yaml file\.$"):
        tasks.get("cola")


# --- validation


@pytest.mark.parametrize(("template", "times"), [("Review:\nSentiment:", 0), ("{text}: {text}\nSentiment:", 2)])
def test_a_template_without_exactly_one_text_is_refused(template, times):
    with pytest.raises(TaskError, match=rf"task 'mine': template .* holds \{{text\}} {times} times; write it exactly"):
        Task("mine", template, (" No", " Yes"))


@pytest.mark.parametrize("words", [(), (" Yes",), (" Yes", " Yes"), (" No", " Yes", " No")])
def test_label_words_that_are_fewer_than_two_or_alike_are_refused(words):
    with pytest.raises(TaskError, match=r"task 'mine': label words \[.*\] are not at least two different words"):
        Task("mine", "{text}\n:", words)


def test_a_task_error_is_a_value_error():
    assert issubclass(TaskError, ValueError)


# --- other label words


@pytest.mark.parametrize("name", PAPER)
def test_natural_words_are_the_task_itself(name):
    assert tasks.with_words(TASKS[name], "natural") is TASKS[name]


def test_flipped_gives_each_class_the_word_of_the_next():
    assert tasks.with_words(SST2, "flipped").label_words == (" Positive", " Negative")
    assert tasks.with_words(EMO, "flipped").label_words == (" Happy", " Sad", " Angry", " Others")


@pytest.mark.parametrize("name", PAPER)
def test_flipped_leaves_no_class_its_own_word(name):
    flipped = tasks.with_words(TASKS[name], "flipped").label_words
    assert sorted(flipped) == sorted(TASKS[name].label_words)
    assert all(mine != other for mine, other in zip(flipped, TASKS[name].label_words, strict=True))


@pytest.mark.parametrize("given", ["bad|good", " bad | good "])
def test_listed_words_go_to_the_classes_in_order_with_one_leading_space(given):
    task = tasks.with_words(SST2, given)
    assert task.label_words == (" bad", " good")
    assert (task.template, task.label_token, task.hub) == (SST2.template, SST2.label_token, SST2.hub)


@pytest.mark.parametrize("given", ["good", "a|b|c", "a|", "|b", "", " | "])
def test_a_list_that_does_not_name_every_class_is_refused(given):
    message = f"label_words={given!r}: expected natural, random, flipped, auto, or 2 words joined by |, one for each "
    with pytest.raises(TaskError, match=re.escape(message) + "class of task 'sst2'"):
        tasks.with_words(SST2, given)


def test_the_message_counts_the_classes_of_the_task_at_hand():
    with pytest.raises(TaskError, match=r"or 6 words joined by \|, one for each class of task 'trec'"):
        tasks.with_words(TREC, "bad|good")


def test_one_word_for_two_classes_is_refused():
    with pytest.raises(TaskError, match="are not at least two different words"):
        tasks.with_words(SST2, "same|same ")


def test_giving_words_does_not_change_the_task_that_was_given():
    before = AGNEWS.label_words
    tasks.with_words(AGNEWS, "a|b|c|d")
    tasks.with_words(AGNEWS, "flipped")
    assert AGNEWS.label_words == before


def test_random_words_are_drawn_from_the_tasks_own_and_on_the_toy_from_all_sixteen():
    assert tasks.word_pool(SST2, toy=False) == (" Negative", " Positive")
    pool = tasks.word_pool(SST2, toy=True)
    assert len(pool) == len(set(pool)) == 16
    assert set(pool) == {word for _, words in PAPER.values() for word in words}


@pytest.mark.parametrize(
    "name", ["gsm8k", "xsum", "wmt14", "openai_humaneval", "summarization", "triviaqa", "squad_v2"]
)
def test_a_task_that_is_answered_by_free_text_is_out_of_scope_and_says_so(name):
    with pytest.raises(TaskError, match=rf"task '{name}' asks for text that is generated, which is out of scope"):
        tasks.get(name)


def test_a_task_without_label_words_is_out_of_scope():
    with pytest.raises(TaskError, match="a task without any is generation, which is out of scope"):
        tasks.Task("x", "{text}", ())


@pytest.mark.parametrize("name", ["sst3", "emotion", "mr", "math_topics"])
def test_any_other_unknown_task_is_simply_unknown(name):
    with pytest.raises(TaskError, match=f"no task '{name}'"):
        tasks.get(name)


def test_a_notebook_of_generation_is_out_of_scope():
    with pytest.raises(TaskError, match="notebook '4_generation' asks for text that is generated"):
        parameters.find("4_generation")


def test_a_placeholder_that_nothing_fills_is_refused():
    with pytest.raises(TaskError, match=r"holds \{label\}, for which nothing stands; \{text\} is all that is filled"):
        Task("tickets", "Ticket: {text} {label}\nTeam:", (" A", " B"))
    assert Task("json", '{"text": "{text}"} is', (" A", " B")).context("x") == '{"text": "x"} is'
