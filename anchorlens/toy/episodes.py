"""Training episodes: streams of demonstrations whose label words are bound to classes anew in each episode."""

import random
from dataclasses import dataclass, field
from enum import IntEnum

from anchorlens.toy.corpus import LABEL_WORDS, LANGUAGES, PAD, Language, pieces, vocabulary

IDS = vocabulary()


class Kind(IntEnum):
    """What a position of an episode is trained for."""

    TEXT = 0  # plain language modelling
    LABEL = 1  # a label word whose class was shown before: it can be answered
    FIRST = 2  # a label word met for the first time: it cannot
    GLOSS = 3  # a cue word of the class, written after the label word


@dataclass(frozen=True)
class Difficulty:
    """Chances and sizes of an episode; the training schedule changes them step by step."""

    length: int  # tokens
    max_classes: int
    natural: float  # label words keep their own meaning
    gloss: float  # a label word is followed by one cue word of its class
    confused: float  # largest chance of a confusable cue
    neutral: float  # largest chance of a neutral word
    short: float  # bare cue words instead of a sentence
    repeat: float  # a later demonstration repeats an earlier text of its class
    mixed: float = 0.4  # classes of several tasks together
    pool: float = 0.5  # label words from all 16, otherwise permuted within the task
    start: float = 0.25  # the episode begins with the start token


@dataclass
class Episode:
    ids: list[int] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)

    def add(self, ids: list[int], kind: Kind = Kind.TEXT) -> None:
        self.ids += ids
        self.kinds += [kind] * len(ids)


def encode(text: str) -> list[int]:
    return [IDS[piece] for piece in pieces(text)]


_AROUND = {name: tuple(encode(text) for text in language.around) for name, language in LANGUAGES.items()}
_NEWLINE = encode("\n")


def _words(words: list[str]) -> list[int]:
    return [IDS["Ġ" + word] for word in words]


def _binding(rng: random.Random, level: Difficulty) -> tuple[str, list[tuple[Language, int]], list[str], bool]:
    """The task whose template is used, the classes (language, label), a label word for each, whether natural."""
    natural = rng.random() < level.natural
    if mixed := rng.random() < level.mixed:
        every = [(language, label) for language in LANGUAGES.values() for label in range(language.n_classes)]
        classes = rng.sample(every, rng.randint(2, level.max_classes))
        template = rng.choice(list(LANGUAGES))
    else:
        template = rng.choice(list(LANGUAGES))
        language = LANGUAGES[template]
        labels = rng.sample(range(language.n_classes), min(language.n_classes, level.max_classes))
        classes = [(language, label) for label in labels]
    own = [language.task.label_words[label] for language, label in classes]
    if natural:
        return template, classes, own, True
    if not mixed and rng.random() >= level.pool:
        return template, classes, rng.sample(LANGUAGES[template].task.label_words, len(classes)), False
    return template, classes, rng.sample(LABEL_WORDS, len(classes)), False


def episode(rng: random.Random, level: Difficulty) -> Episode:
    """One episode of exactly ``level.length`` tokens: each class once in random order, then classes by chance."""
    confused, neutral = rng.random() * level.confused, rng.random() * level.neutral
    template, classes, words, natural = _binding(rng, level)
    before, after = _AROUND[template]
    short = rng.random() < level.short
    made = Episode()
    if rng.random() < level.start:
        made.add([IDS[PAD]])
    order = rng.sample(range(len(classes)), len(classes))
    shown: dict[int, list[list[int]]] = {}
    separator: list[int] = []
    while len(made.ids) < level.length:
        which = order.pop() if order else rng.randrange(len(classes))
        language, label = classes[which]
        if which in shown and rng.random() < level.repeat:
            text = rng.choice(shown[which])
        elif short:
            text = _words([language.any_cue(rng, label) for _ in range(rng.randint(1, 4))])
        else:
            text = _words(language.sentence(rng, label, confused, neutral))
        # a natural label word can be answered even when met first
        kind = Kind.LABEL if natural or which in shown else Kind.FIRST
        shown.setdefault(which, []).append(text)
        made.add(separator + before + text + after)
        made.add(encode(words[which]), kind)
        if rng.random() < level.gloss:
            made.add(_words([language.any_cue(rng, label)]), Kind.GLOSS)
        separator = _NEWLINE
    return Episode(made.ids[: level.length], made.kinds[: level.length])
