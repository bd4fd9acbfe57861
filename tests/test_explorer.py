"""The flow explorer: its numbers are those of the analysis, its page holds them all and nothing that runs unasked."""

import base64
import json
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BACKENDS
from hypothesis import given
from hypothesis import strategies as st

from anchorlens import edges, explorer, models
from anchorlens.analyses import information_flow as flow
from anchorlens.batching import collate
from anchorlens.drafts import Draft
from anchorlens.hooks import SettingError, Site, capturing
from anchorlens.prompts import Encoder
from anchorlens.rows import Example
from anchorlens.tasks import SST2

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
KINDS = {"counts": "<u2", "totals": "<f4", "means": "<f8", "weights": "<f4"}


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the text in each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data

    @property
    def data(self) -> dict:
        """The page's data with its arrays as numpy has them."""
        told = json.loads(self.scripts[0])
        kinds = {**KINDS, "cells": "<u4" if told["wide"] else "<u2"}
        return told | {name: np.frombuffer(base64.b64decode(told[name]), kind) for name, kind in kinds.items()}


def lists(data: dict) -> dict[tuple[int, int, int], list[tuple[int, int, np.float32]]]:
    """(query, key, weight) of each edge, by measure, layer and head (0: all together)."""
    shape = (len(data["measures"]), data["layers"], data["heads"] + 1)
    found, ends = {}, np.cumsum(data["counts"])
    for n, (end, count) in enumerate(zip(ends, data["counts"], strict=True)):
        at = slice(end - count, end)
        found[tuple(map(int, np.unravel_index(n, shape)))] = [
            (*divided(int(cell)), weight) for cell, weight in zip(data["cells"][at], data["weights"][at], strict=True)
        ]
    return found


def divided(cell: int) -> tuple[int, int]:
    """Query and key of a cell's number, by counting."""
    query = 0
    while cell >= query:
        cell -= query
        query += 1
    return query, cell


def some_edges(n_tokens: int = 3, n_layers: int = 1, n_heads: int = 1, seed: int = 0) -> edges.Edges:
    """Edges of made-up maps, the last token but one being a label word."""
    chance = np.random.default_rng(seed)
    cells = np.stack(np.tril_indices(n_tokens, -1), 1)
    limits = edges.most(n_layers, n_heads)
    measures = [
        [edges.Layer.of(chance.random((1 + n_heads, len(cells)), np.float32), cells, limits) for _ in range(n_layers)]
        for _ in edges.MEASURES
    ]
    return edges.joined(measures, chance.random((n_layers, 3)), [n_tokens - 2], n_tokens)


def last_edge(n_tokens: int) -> edges.Edges:
    """Nothing but the edge from the last token but one to the last."""
    one = edges.Layer.of(np.array([[0.0, 1.0]]), np.array([[1, 0], [n_tokens - 1, n_tokens - 2]]), (1, 1))
    return edges.joined([[one], [one]], np.zeros((1, 3)), [n_tokens - 2], n_tokens)


def some_page(tokens: list[str], found: edges.Edges | None = None, **said: str) -> str:
    roles = ["TEXT"] * (len(tokens) - 2) + ["ANCHOR", "TARGET"]
    return explorer.html(found or some_edges(len(tokens)), tokens, roles, **said)


# --- numbers ---


@pytest.fixture(scope="module")
def alone(prompts):
    return collate(prompts[:1])


@pytest.fixture(scope="module")
def found(model, alone) -> edges.Edges:
    return flow.largest_edges(model, alone)


@pytest.fixture(scope="module")
def shown(found, prompts, tokenizer) -> dict:
    one = prompts[0]
    return Page(explorer.html(found, one.pieces(tokenizer), [role.name for role in one.roles])).data


def test_the_means_of_the_edges_are_those_that_are_stored(model, alone, found):
    stored = flow.information_flow(model, alone)["value"].to_numpy().reshape(3, 3)
    np.testing.assert_array_equal(found.means, stored)
    maps = flow.saliency_maps(model, alone)[0]
    by_hand = [[maps[layer][cells[0]].mean() for cells in flow.pairs(alone).values()] for layer in range(3)]
    np.testing.assert_allclose(found.means, by_hand, rtol=1e-12)  # float64 rounding


def test_every_weight_on_the_page_is_that_of_its_map_in_float32(model, alone, shown):
    with torch.enable_grad(), capturing(model, Site.PATTERN, range(3), grad=True) as pattern:
        logits = model(alone.tokens)[0, alone.target].gather(1, alone.labels)
        torch.nn.functional.cross_entropy(logits, alone.gold).backward()
    maps, edge_lists = flow.saliency_maps(model, alone)[0], lists(shown)
    cells = torch.stack(list(flow.pairs(alone).values())).any(0)[0]
    assert len(edge_lists) == 2 * 3 * 3
    for (measure, layer, head), each in edge_lists.items():
        act, grad = pattern[layer].detach()[0], pattern[layer].grad[0]
        whole = [maps[layer], *(act * grad).abs()] if measure == 0 else [act.mean(0), *act]
        for query, key, weight in each:
            # float64 in another order of operations may round to the next float32
            assert weight == pytest.approx(np.float32(whole[head][query, key]), rel=1e-7)
        largest = whole[head][cells].sort(descending=True).values[: len(each)]
        assert [float(weight) for *_, weight in each] == pytest.approx(largest.tolist(), rel=1e-6), (
            "and no larger is left"
        )
    for layer in range(3):
        for query, key, weight in edge_lists[0, layer, 0]:
            assert weight == np.float32(maps[layer, query, key]), "I_l itself is the same to the bit"


def test_the_edges_are_the_largest_of_their_map_and_begin_with_the_largest(model, alone, shown):
    maps = flow.saliency_maps(model, alone)[0]
    cells = torch.stack(list(flow.pairs(alone).values())).any(0)[0]
    for layer in (0, 1):
        weights = [weight for *_, weight in lists(shown)[0, layer, 0]]
        assert weights == sorted(weights, reverse=True)
        rest = maps[layer][cells].float().sort(descending=True).values
        np.testing.assert_array_equal(weights, rest[: len(weights)])
        assert sum(weights) >= edges.COVERED * float(rest.sum())


def test_a_line_has_the_colour_of_the_flow_that_its_cell_is_counted_in(alone, shown):
    cells = [cells[0] for cells in flow.pairs(alone).values()]
    anchors, target = set(shown["anchors"]), len(shown["tokens"]) - 1
    for each in lists(shown).values():
        for query, key, _ in each:
            named = 0 if query in anchors else 1 if query == target and key in anchors else 2
            assert [bool(cell[query, key]) for cell in cells] == [flow == named for flow in range(3)]


def test_nothing_is_drawn_from_a_start_token(model, prompts):
    one = collate(prompts[:1])
    late = flow.largest_edges(model, type(one)(**{**vars(one), "start": one.start + 1}))
    assert 0 not in late.key
    assert 0 in flow.largest_edges(model, one).key


def test_heads_that_are_summed_by_size_are_drawn_so(model, alone):
    each = flow.largest_edges(model, alone, heads="each")
    want = flow.saliency_maps(model, alone, "each")[0, 0].numpy()
    assert each.weight[0] == np.float32(want[each.query[0], each.key[0]])
    assert each.weight[0] != flow.largest_edges(model, alone).weight[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_backends_give_the_edges_of_the_toy(backend):
    lens = models.load("toy", backend=backend, dtype="float64")
    encode = Encoder(lens.tokenizer, lens.cfg.n_ctx)
    draft = Draft(SST2, (Example("a funny film", 1), Example("a messy scene", 0)), Example("the movie", 1))
    one = collate([encode(draft)])
    seen = flow.largest_edges(lens, one)
    maps = flow.saliency_maps(lens, one)[0].numpy()
    at, shape = 0, seen.counts.shape
    assert shape == (2, lens.cfg.n_layers, 1 + lens.cfg.n_heads)
    for layer in range(lens.cfg.n_layers):
        n = int(seen.counts[0, layer, 0])
        part = slice(at, at + n)
        np.testing.assert_array_equal(seen.weight[part], maps[layer, seen.query[part], seen.key[part]].astype("f4"))
        at += int(seen.counts[0, layer].sum())


def test_edges_of_several_prompts_are_refused(model, batch):
    with pytest.raises(SettingError, match=r"2 prompts, where the edges of one are drawn"):
        flow.largest_edges(model, batch)


def test_of_a_map_the_largest_cells_are_kept():
    weights = np.array([1.0, 5.0, 0.0, 3.0])
    assert edges.largest(weights, 2).tolist() == [1, 3]
    assert edges.largest(weights, 9).tolist() == [1, 3, 0], "a cell without weight is no edge"
    assert edges.largest(np.array([1e-3, 1.0, 1e-4]), 9).tolist() == [1], "0.1 % that cannot be seen"
    assert edges.largest(np.array([2.0, 2.0, 2.0]), 2).tolist() == [0, 1], "of equals the first"
    assert edges.largest(np.zeros(3), 2).tolist() == edges.largest(np.zeros(0), 2).tolist() == []


def test_the_total_counts_all_cells_also_those_that_are_not_kept():
    layer = edges.Layer.of(np.array([[4.0, 2.0, 1.0], [1.0, 0.0, 0.0]]), np.array([[1, 0], [2, 0], [2, 1]]), (2, 1))
    assert (layer.counts.tolist(), layer.totals.tolist()) == ([2, 1], [7.0, 1.0])
    assert list(zip(layer.query, layer.key, layer.weight, strict=True)) == [(1, 0, 4.0), (2, 0, 2.0), (1, 0, 1.0)]


# --- the page ---


def test_a_long_prompt_on_a_deep_model_stays_below_200_kilobytes():
    page = some_page([" evidence"] * 300, some_edges(300, n_layers=48, n_heads=25))
    assert len(page.encode()) < 200_000
    assert min(Page(page).data["counts"]) >= 5, "and each head keeps some lines"


@pytest.mark.parametrize(("n_tokens", "wide"), [(362, False), (363, True)])
def test_cells_of_prompts_of_any_length_come_back_as_they_were(n_tokens, wide):
    found = some_edges(n_tokens)
    data = Page(some_page(["a"] * n_tokens, found)).data
    assert data["wide"] is wide
    for cell, query, key in zip(data["cells"][:20].tolist(), found.query, found.key, strict=False):
        assert divided(cell) == (query, key)
    cells = Page(some_page(["a"] * n_tokens, last_edge(n_tokens))).data["cells"].tolist()
    assert [divided(cell) for cell in cells] == [(n_tokens - 1, n_tokens - 2)] * 2


@given(st.lists(st.text(), min_size=3, max_size=6), st.text(), st.text())
def test_whatever_a_text_says_it_stays_text(tokens, title, caption):
    page = Page(some_page([*tokens, HOSTILE], title=title, caption=caption + HOSTILE))
    plain = Page(some_page(["a"] * (len(tokens) + 1)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert page.data["tokens"] == [*tokens, HOSTILE]
    assert page.scripts[1] == plain.scripts[1]


def test_a_page_asks_no_network_for_anything():
    page = some_page(["a", "b", "c"])
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert [attrs for _, attrs in Page(page).elements if {"src", "href"} & set(attrs)] == []
    (policy,) = [attrs["content"] for tag, attrs in Page(page).elements if tag == "meta" and "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'")


def test_tokens_or_roles_of_another_prompt_are_refused():
    with pytest.raises(ValueError, match="tokens: 2 were given for the edges of a prompt of 3 tokens"):
        explorer.html(some_edges(3), ["a", "b"], ["TEXT", "ANCHOR", "TARGET"])
    with pytest.raises(ValueError, match="roles: 4 were given"):
        explorer.html(some_edges(3), ["a", "b", "c"], ["TEXT", "TEXT", "ANCHOR", "TARGET"])
    with pytest.raises(ValueError, match="roles 'WORD': a role may be TEXT, TEMPLATE"):
        explorer.html(some_edges(3), ["a", "b", "c"], ["WORD", "ANCHOR", "TARGET"])


def test_a_notebook_shows_the_page_that_it_saves_in_a_document_of_its_own(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("IPython.display.display", told.append)
    page = some_page(["a", '"quoted" & <b>', "c"])
    explorer.show(page, tmp_path)
    assert (tmp_path / "flow.html").read_text(encoding="utf-8") == page
    (frame,) = [attrs for tag, attrs in Page(told[0].data).elements if tag == "iframe"]
    assert frame["srcdoc"] == page
    assert frame["sandbox"] == "allow-scripts", "it may run, and touch nothing of the notebook"


def dumped(page: str, folder: Path) -> str:
    """The page's elements after its script has run."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not found:
        pytest.skip("no Chromium or Chrome is installed")
    (folder / "flow.html").write_text(page, encoding="utf-8")
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--dump-dom", (folder / "flow.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_browser_draws_the_words_and_says_the_widest_line(tmp_path):
    one = edges.Layer.of(np.array([[0.0, 0.0, 0.25], [0.5, 0, 0]]), np.array([[1, 0], [2, 0], [2, 1]]), (3, 3))
    found = edges.joined([[one], [one]], np.array([[1.0, 3.0, 0.0]]), [1], 3)
    dom = unescape(dumped(explorer.html(found, [HOSTILE, "\n", "  "], ["TEXT", "ANCHOR", "TARGET"]), tmp_path))
    assert "⏎ → ␣␣  0.250  (100 %)" in dom
    assert "S_wp, text → label word: mean of its pairs 1.00, 25 % of the three means" in dom
    assert dom.count(f">{HOSTILE}<") == 2, "once on either side, as text"


@pytest.mark.parametrize("n_tokens", [362, 363])
def test_a_browser_finds_the_words_of_a_line_in_a_prompt_of_any_length(tmp_path, n_tokens):
    page = some_page([f"w{n}" for n in range(n_tokens)], last_edge(n_tokens))
    assert f"w{n_tokens - 2} → w{n_tokens - 1}  1.00  (100 %)" in unescape(dumped(page, tmp_path))
