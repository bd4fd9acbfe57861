"""The shipped toy: what it must show (README of anchorlens/toy), and that its language is what was trained on."""

import hashlib
import random

import measures
import pytest
import torch

from anchorlens import models, tasks
from anchorlens.preflight import TOY_FOLDER
from anchorlens.rows import TOY_ROWS
from anchorlens.toy import corpus, episodes, network, train

TASKS = list(tasks.TASKS)
SHIPPED_BYTES = 4 * 2**20


@pytest.fixture(scope="module", params=TASKS)
def posed(request):
    return measures.pose(models.load("toy"), request.param)


@pytest.fixture(scope="module", params=TASKS)
def unanchored(request):
    return measures.pose(models.load("toy-unanchored"), request.param)


def test_it_answers_from_one_demonstration_per_class(posed):
    assert measures.accuracy(posed) >= 0.82


def test_without_demonstrations_it_is_at_chance(posed):
    assert measures.zero_shot(posed) <= posed.chance + 0.08


def test_isolating_label_words_in_the_first_layers_destroys_the_answer_bit_by_bit(posed):
    first = [measures.loyalty(posed, range(depth)) for depth in (1, 3, 5)]
    assert first[0] >= 0.80
    assert first[2] <= posed.chance + 0.20
    assert first[0] > first[1] >= first[2]


def test_isolating_label_words_in_the_last_layers_comes_too_late(posed):
    assert measures.loyalty(posed, range(4, 8)) >= 0.92
    assert measures.loyalty(posed, range(1, 8)) <= 0.75


def test_isolating_other_tokens_hardly_matters(posed):
    assert measures.loyalty(posed, range(8), control=True) >= 0.90


def test_information_is_gathered_in_shallower_layers_than_it_is_read_in(posed):
    assert measures.depth(posed.flows["S_pq"]) - measures.depth(posed.flows["S_wp"]) >= 1.5


def test_label_words_gather_more_than_other_tokens_and_in_the_untrained_twin_less(posed):
    trained, twin = posed.flows, measures.pose(models.load("toy-random"), posed.task.name).flows
    for layer in range(6):
        assert trained["S_wp"][layer] / trained["S_ww"][layer] >= 2.5
        assert twin["S_wp"][layer] / twin["S_ww"][layer] <= 0.8


def test_the_control_without_anchors_is_competent_and_its_label_words_do_not_matter(unanchored):
    assert measures.accuracy(unanchored) >= 0.82
    assert measures.loyalty(unanchored, range(5)) >= 0.90
    ratios = [wp / ww for wp, ww in zip(unanchored.flows["S_wp"], unanchored.flows["S_ww"], strict=True)]
    assert max(ratios[:6]) <= 0.8


def test_shipped_weights_are_float32_and_small():
    from safetensors.torch import load_file

    files = list(TOY_FOLDER.glob("*/model.safetensors"))
    assert {path.parent.name for path in files} == {"toy", "toy-unanchored"}
    assert sum(path.stat().st_size for path in files) <= SHIPPED_BYTES
    assert {tensor.dtype for path in files for tensor in load_file(path).values()} == {torch.float32}


# --- its language ---


def test_test_sets_are_what_their_seed_makes(tmp_path):
    corpus.write_test_sets(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert (TOY_ROWS / path.name).read_bytes() == path.read_bytes(), path.name


def test_test_sets_have_the_checksums_they_are_listed_with():
    for line in corpus.CHECKSUMS.read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((TOY_ROWS / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("noise", corpus.NOISE)
def test_test_sets_are_balanced_and_without_repeats(name, noise):
    rows = corpus.fixed_rows(corpus.LANGUAGES[name], noise)
    counts = [sum(row["label"] == label for row in rows) for label in range(len(tasks.TASKS[name].label_words))]
    assert len(rows) == 200
    assert max(counts) - min(counts) <= 1
    assert len({row["text"] for row in rows}) == 200


def test_every_word_is_one_token_and_survives_the_round_trip():
    tokenizer = corpus.tokenizer()
    for language in corpus.LANGUAGES.values():
        text = language.task.context(" ".join(language.sentence(random.Random(0), 0, 0.1, 0.1)))
        text += language.task.label_words[0] + language.task.separator
        encoded = tokenizer.encode(text)
        assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
        assert tokenizer.token_to_id(corpus.UNKNOWN) not in encoded.ids


def test_no_word_tells_the_class_of_two_classes():
    for name, language in corpus.LANGUAGES.items():
        words = [(word, label) for slot in language.cues.values() for label, each in enumerate(slot) for word in each]
        shared = {word for word, label in words for other, another in words if word == other and label != another}
        assert not shared, f"{name}: {shared}"


def test_an_episode_binds_each_label_word_to_one_class():
    level = train.Curriculum(train.INDEPENDENT).difficulty(0, long=False)
    inverse = {number: piece for piece, number in episodes.IDS.items()}
    labels = {"Ġ" + word.strip() for word in corpus.LABEL_WORDS}
    for seed in range(50):
        made = episodes.episode(random.Random(seed), level)
        assert len(made.ids) == len(made.kinds) == level.length
        met = set()
        for token, kind in zip(made.ids, made.kinds, strict=True):
            if kind is episodes.Kind.FIRST:
                assert token not in met, "a first label word that was shown before"
            if kind in (episodes.Kind.FIRST, episodes.Kind.LABEL):
                assert inverse[token] in labels
                assert kind is episodes.Kind.FIRST or token in met, "an answerable label word that was never shown"
                met.add(token)


def test_the_trained_network_and_its_shipped_form_are_one_function():
    torch.manual_seed(0)
    net = network.Network(network.Shape(len(episodes.IDS), corpus.CONTEXT), shared=True)
    ids = torch.randint(0, len(episodes.IDS), (2, 60))
    with torch.no_grad():
        want = net(ids)
        torch.testing.assert_close(network.to_hugging_face(net)(ids).logits, want, rtol=0, atol=1e-5)  # float32
        torch.testing.assert_close(net.unshared()(ids), want, rtol=0, atol=0)


def test_training_is_the_same_for_the_same_seed():
    def weights() -> torch.Tensor:
        torch.manual_seed(3)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        shape = network.Shape(len(episodes.IDS), corpus.CONTEXT, layers=2, width=32, heads=2)
        stage = train.Stage(steps=3, rate=1e-3, matrix_rate=1e-2, curriculum=True)
        net = train.train(network.Network(shape, shared=True), stage, random.Random(3))
        torch.set_num_threads(threads)
        return net.blocks[0].qkv.weight.detach()

    torch.testing.assert_close(weights(), weights(), rtol=0, atol=0)
