"""The released code's numbers, and the small models that they belong to; each is loaded once."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from conftest import BACKENDS, FIXTURES
from safetensors.torch import load_file

from anchorlens import models, tasks
from anchorlens.batching import Group, groups
from anchorlens.drafts import Draft
from anchorlens.models import Lens
from anchorlens.prompts import Encoder, Prompt
from anchorlens.rows import Example


def model(family: str, dtype: str, backend: str = "") -> Lens:
    """``family``-tiny, gpt2 or gptj; on the first backend that is there, or another one."""
    backend = backend or BACKENDS[0]
    if (family, backend) == ("gptj", "bridge"):
        pytest.skip("the bridge runs no GPT-J exactly and refuses it (test_families)")
    return _loaded(family, dtype, backend)


def both(*given: tuple) -> list[tuple]:
    """Each of ``given`` on the first backend that is there; those of GPT-2, not in float32, on the bridge as well."""
    more = [each for each in given if "gpt2" in each and "float32" not in each]
    return list(dict.fromkeys([*((*each, BACKENDS[0]) for each in given), *((*each, "bridge") for each in more)]))


@cache
def _loaded(family: str, dtype: str, backend: str) -> Lens:
    return models.load(str(FIXTURES / f"{family}-tiny"), dtype=dtype, backend=backend)


@cache
def numbers(family: str, name: str) -> Any:
    """What is stored in <name>.json."""
    return json.loads((FIXTURES / "released" / family / f"{name}.json").read_text())


@cache
def tensors(family: str, name: str) -> dict[str, torch.Tensor]:
    """What is stored in <name>.safetensors."""
    return load_file(FIXTURES / "released" / family / f"{name}.safetensors")


def drafts_of(key: str, entry: dict[str, Any]) -> list[Draft]:
    """The prompts of an entry "<task>.s<shots>" with one set of demonstrations; examples count its queries."""
    demonstrations = tuple(Example(each["text"], each["label"]) for each in entry["demonstrations"])
    queries = [Example(each["text"], each["label"], row) for row, each in enumerate(entry["queries"])]
    return [Draft(tasks.get(key.split(".")[0]), demonstrations, query) for query in queries]


def prompts_of(lens: Lens, drafts: list[Draft]) -> list[Prompt]:
    encode = Encoder(lens.tokenizer, lens.cfg.n_ctx)
    return [encode(draft) for draft in drafts]


def group_of(lens: Lens, key: str, entry: dict[str, Any]) -> Group:
    """The prompts of an entry as the one group that they are."""
    (group,) = groups(prompts_of(lens, drafts_of(key, entry)))
    return group


def error(found: torch.Tensor, stored: torch.Tensor) -> float:
    """Largest difference over the largest value stored."""
    return ((found.double() - stored.double()).abs().max() / stored.double().abs().max()).item()
