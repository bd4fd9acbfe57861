"""What is measured: models of a given shape with random weights, and prompts of random tokens."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anchorlens.batching import Group, groups
from anchorlens.prompts import Prompt, Role

SCORES = 1.9  # spread of attention scores; at GPT-2's own initialisation a random model attends to all tokens alike
BEFORE, AFTER = 3, 4  # tokens of the template around a text, the newline before it apart


@dataclass(frozen=True)
class Shape:
    """The size of a GPT-2."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 50257
    context: int = 1024

    @property
    def config(self) -> dict[str, Any]:
        """Its ``config.json``."""
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_layer": self.layers,
            "n_embd": self.width,
            "n_head": self.heads,
            "vocab_size": self.vocabulary,
            "n_positions": self.context,
            "n_ctx": self.context,
            "initializer_range": (SCORES / self.width) ** 0.5,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


SHAPES = {
    "gpt2": Shape(12, 768, 12),
    "gpt2-xl": Shape(48, 1600, 25),
    "tiny": Shape(3, 64, 4, 300, 256),
}


@dataclass(frozen=True)
class Size:
    """How many prompts of which length; ``demo`` and ``query`` are tokens, template and label word included."""

    examples: int = 64
    demonstrations: int = 4
    demo: int = 45
    query: tuple[int, int] = (30, 50)
    classes: int = 4
    training: int = 16


def write_folder(shape: Shape, folder: Path) -> Path:
    """A Hugging Face folder of a random model: config, a tokenizer of single bytes, weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    write_config(shape, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**shape.config)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(shape.config))  # the one that transformers writes has no n_ctx
    return folder


def write_config(shape: Shape, folder: Path) -> Path:
    """The same with an empty file of weights, for ``models.load`` to draw them by ``random_seed``."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!", bos_token="!").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(shape.config))
    save_file({}, folder / "model.safetensors")
    return folder


def prompts(shape: Shape, size: Size, *, training: bool = False, seed: int = 0) -> list[Prompt]:
    """Prompts of random tokens behind the same demonstrations, classes in turn; ``training``: other queries."""
    chance = random.Random(seed)
    labels = tuple(range(1, size.classes + 1))
    words = range(size.classes + 1, shape.vocabulary)
    template = chance.choices(words, k=BEFORE + AFTER)
    ids: list[int] = []
    roles: list[Role] = []
    parts: list[int] = []
    anchors: list[int] = []

    def say(tokens: Sequence[int], role: Role, part: int) -> None:
        ids.extend(tokens)
        roles.extend([role] * len(tokens))
        parts.extend([part] * len(tokens))

    def pose(source: random.Random, length: int, part: int) -> None:
        say(template[:BEFORE], Role.TEMPLATE, part)
        say(source.choices(words, k=length - BEFORE - AFTER), Role.TEXT, part)
        say(template[BEFORE:], Role.TEMPLATE, part)

    classes = tuple(n % size.classes for n in range(size.demonstrations))
    for part, label in enumerate(classes):
        pose(chance, size.demo - 2, part)
        anchors.append(len(ids))
        say([labels[label]], Role.ANCHOR, part)
        say([0], Role.TEMPLATE, part)
    before = len(ids)
    own = random.Random(seed + 1 + training)
    shortest, longest = size.query
    made = []
    for example in range(size.training if training else size.examples):
        pose(own, shortest + example * 8 % (longest - shortest + 1), len(classes))
        roles[-1] = Role.TARGET
        made.append(
            Prompt(
                text="",
                ids=tuple(ids),
                roles=tuple(roles),
                parts=tuple(parts),
                anchors=tuple(anchors),
                anchor_classes=classes,
                target=len(ids) - 1,
                labels=labels,
                gold=example % size.classes,
                example=example,
                seed=seed,
            )
        )
        del ids[before:], roles[before:], parts[before:]
    return made


def group(made: Sequence[Prompt]) -> Group:
    """Prompts that share their demonstrations, as one group."""
    (found,) = groups(made)
    return found
