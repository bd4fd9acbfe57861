"""The toy's synthetic language: vocabulary, tokenizer, sentences of a class, and the fixed test sets.

``python -m anchorlens.toy.corpus`` writes the test sets anew (they are the same bytes for the same seed).
"""

import hashlib
import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from anchorlens import tasks
from anchorlens.rows import TOY_ROWS

PAD, UNKNOWN = "<|endoftext|>", "<|unk|>"
CONTEXT = 256  # longest prompt, tokens
NOISE = {"clean": (0.1, 0.1), "hard": (0.3, 0.15)}  # chance of a confusable cue, of a neutral word
ROWS_PER_SET, ROWS_SEED = 200, 0
CHECKSUMS = TOY_ROWS / "SHA256SUMS"

_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False)


@dataclass(frozen=True)
class Language:
    """How one task's texts are made; classes in the order of the task's label words."""

    task: tasks.Task
    patterns: tuple[tuple[str, ...], ...]
    cues: dict[str, list[list[str]]]  # slot -> class -> words
    neutral: dict[str, list[str]]  # slot -> words without a class
    filler: dict[str, list[str]]  # other slots -> words without a class
    confusable: list[list[int]]  # class -> classes that it is confused with

    @property
    def n_classes(self) -> int:
        return len(self.task.label_words)

    @property
    def around(self) -> tuple[str, str]:
        """The template before and after the text; the space that joins them belongs to the text's first word."""
        before, after = self.task.template.split("{text}")
        return before.rstrip(" "), after

    def cue(self, rng: random.Random, label: int, slot: str, confused: float = 0.0, neutral: float = 0.0) -> str:
        """A word for ``slot``: neutral or of a confusable class with the given chances, else of ``label``."""
        chance = rng.random()
        if chance < neutral:
            return rng.choice(self.neutral[slot])
        if chance < neutral + confused:
            label = rng.choice(self.confusable[label])
        return rng.choice(self.cues[slot][label])

    def sentence(self, rng: random.Random, label: int, confused: float, neutral: float) -> list[str]:
        """The words of one sentence of class ``label``."""
        words = []
        for word in rng.choice(self.patterns):
            slot = word[1:-1]
            if not word.startswith("{"):
                words.append(word)
            elif slot in self.filler:
                words.append(rng.choice(self.filler[slot]))
            else:
                words.append(self.cue(rng, label, slot, confused, neutral))
        return words

    def any_cue(self, rng: random.Random, label: int) -> str:
        """A cue word of ``label`` for a slot drawn by chance."""
        return self.cue(rng, label, rng.choice(list(self.cues)))


def _language(task: tasks.Task, entry: dict[str, Any]) -> Language:
    return Language(
        task=task,
        patterns=tuple(tuple(pattern.split()) for pattern in entry["patterns"]),
        cues={slot: [words.split() for words in classes] for slot, classes in entry["cues"].items()},
        neutral={slot: words.split() for slot, words in entry["neutral"].items()},
        filler={slot: words.split() for slot, words in entry["filler"].items()},
        confusable=entry["confusable"],
    )


def _load() -> dict[str, Language]:
    with (Path(__file__).parent / "language.toml").open("rb") as file:
        entries = tomllib.load(file)
    return {name: _language(task, entries[name]) for name, task in tasks.TASKS.items()}


LANGUAGES = _load()
LABEL_WORDS = [word for language in LANGUAGES.values() for word in language.task.label_words]  # all 16


def pieces(text: str) -> list[str]:
    """The tokens of ``text``: words with their leading space, punctuation, newlines."""
    return [piece for piece, _ in _SPLIT.pre_tokenize_str(text)]


def vocabulary() -> dict[str, int]:
    """Every token the toy knows, numbered in the order in which the language names them."""
    known = [PAD, UNKNOWN]
    for language in LANGUAGES.values():
        for text in (*language.around, language.task.separator):
            known += pieces(text)
        groups = [group for classes in language.cues.values() for group in classes]
        groups += [*language.neutral.values(), *language.filler.values()]
        groups += [[word for word in pattern if not word.startswith("{")] for pattern in language.patterns]
        for text in [*language.task.label_words, *(" " + word for group in groups for word in group)]:
            known += pieces(text)
    return {piece: number for number, piece in enumerate(dict.fromkeys(known))}


def tokenizer() -> Tokenizer:
    """A word-level tokenizer with byte-level pieces, so that every text of the language survives the round trip."""
    made = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def write_tokenizer(folder: Path) -> None:
    """Save the tokenizer as a Hugging Face folder has it."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), eos_token=PAD, pad_token=PAD, unk_token=UNKNOWN, model_max_length=CONTEXT
    ).save_pretrained(folder)


def fixed_rows(language: Language, noise: str) -> list[dict[str, object]]:
    """``ROWS_PER_SET`` rows with balanced classes and no text twice, the same at every call."""
    rng = random.Random(f"{language.task.name} {noise} {ROWS_SEED}")
    rows: list[dict[str, object]] = []
    seen = set()
    while len(rows) < ROWS_PER_SET:
        label = len(rows) % language.n_classes
        text = " ".join(language.sentence(rng, label, *NOISE[noise]))
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, "label": label})
    return rows


def write_test_sets(folder: Path = TOY_ROWS) -> None:
    """Write every task's test sets as JSONL, and their checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = []
    for name, language in LANGUAGES.items():
        for noise in NOISE:
            content = "".join(json.dumps(row) + "\n" for row in fixed_rows(language, noise)).encode()
            (folder / f"{name}_{noise}.jsonl").write_bytes(content)
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}_{noise}.jsonl\n")
    (folder / CHECKSUMS.name).write_text("".join(sums))


if __name__ == "__main__":
    write_test_sets()
    print(f"wrote {len(LANGUAGES) * len(NOISE)} sets of {ROWS_PER_SET} rows to {TOY_ROWS}")
