"""The benchmarks run, show every row, and fail where results disagree; on a tiny model, whose timings say nothing."""

import importlib.util
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import __main__ as bench
from benchmarks import cases, gpu, ours, scaling, shapes
from benchmarks.floor import Floor
from benchmarks.plain import Plain
from benchmarks.table import Row, markdown
from benchmarks.timing import Timed, Way, alternating

from anchorlens import models, planner

DOCS = Path(__file__).parent.parent / "docs"
CPU = torch.device("cpu")
MAKERS = {
    "extraction": cases.extraction,
    "isolation": cases.isolation,
    "saliency": cases.saliency,
    "re-weighting": cases.reweighting,
    "compression": lambda bench: cases.compression(bench, 6, 4),
}


@pytest.fixture(scope="module")
def contest() -> cases.Bench:
    """The three contestants on a tiny model; the plain way does four of six prompts in two rounds."""
    from transformers import GPT2LMHeadModel

    shape, size = shapes.SHAPES["tiny"], bench.QUICK
    with tempfile.TemporaryDirectory() as folder:
        shapes.write_folder(shape, Path(folder))
        lens = models.load(folder)
        plain = GPT2LMHeadModel.from_pretrained(folder).eval().requires_grad_(False)
    shown, training = shapes.prompts(shape, size), shapes.prompts(shape, size, training=True)
    return cases.Bench(lens, Plain(plain), Floor(plain), shown, training, slices=2, subset=4, epochs=2)


def agreements(contest: cases.Bench, name: str) -> list[cases.Agreement]:
    case = MAKERS[name](contest)
    return case.agree(alternating(case.ways, 2, CPU))


def test_the_quick_run_shows_every_row_and_all_results_agree(tmp_path, capsys):
    assert bench.main(["--quick", "--out", str(tmp_path / "out.json")]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    rows = {(row["analysis"], row["against"].split(",")[0]): row for row in told["rows"]}
    assert list(rows) == [
        ("extraction", "plain / ours"),
        ("extraction", "ours / sdpa with the same reuse"),
        ("isolation", "plain / ours"),
        ("isolation", "passes of the queries (5 + 12 / layers)"),
        ("isolation", "tokens with padding / without"),
        ("saliency", "plain / ours"),
        ("saliency", "ours / forward and backward alone"),
        ("re-weighting", "plain / ours"),
        ("re-weighting", "tokens per step"),
        ("re-weighting, full batch", "plain / ours"),
        ("compression, batch 2", "whole prompts / ours"),
        ("compression, batch 2", "ours / sdpa with cached demonstrations"),
        ("compression, batch 2", "ours / sdpa with the same kept tokens"),
        ("a sweep by one worker", "wall of a run"),
        ("anchorlens --help", "wall"),
        ("anchorlens --help", "times torch is imported"),
    ]
    left_out = {row for row, told in rows.items() if told["measured"] is None}
    assert left_out == {
        ("a sweep by one worker", "wall of a run")
    }  # starting a kernel would take longer than all the rest
    assert rows["re-weighting", "tokens per step"]["measured"] == 1
    # the clean pass, and 2 of 3 layers each for the first 1, the first 3 and the last 3; the last 1 changes nothing
    assert rows["isolation", "passes of the queries (5 + 12 / layers)"]["measured"] == pytest.approx(3)
    assert all(each["agrees"] and each["error"] < each["tolerance"] for each in told["agreement"])
    assert {"cpu", "cores", "threads", "ram_gb", "gpu", "versions"} <= set(told["machine"])
    assert set(told["seconds"]["extraction"]) == {"plain", "floor", "ours"}
    shown = capsys.readouterr().out
    assert all(f"| {analysis} " in shown for analysis, _ in rows)
    assert "DISAGREES" not in shown


def test_the_command_fails_where_a_result_disagrees(monkeypatch, capsys):
    right = ours.flows
    monkeypatch.setattr(ours, "flows", lambda *given: right(*given) * 1.001)
    assert bench.main(["--quick"]) == 1
    assert "DISAGREES: saliency: S_wp, S_pq, S_ww by layer, ours and plain: 1.0e-03" in capsys.readouterr().out


@pytest.mark.parametrize("name", MAKERS)
def test_all_ways_of_an_analysis_agree_when_the_plain_way_does_a_slice_of_the_prompts(contest, name):
    assert [each for each in agreements(contest, name) if not each.holds] == []


def spoil(value):
    """The first prompt, or step, is off by a thousandth of the largest."""
    if isinstance(value, tuple):
        return tuple(map(spoil, value))
    spoilt = value.clone()
    spoilt[0] += value.abs().max() / 1000
    return spoilt


@pytest.mark.parametrize(
    ("name", "where", "attribute"),
    [
        ("extraction", ours, "extract"),
        ("extraction", Floor, "answers"),
        ("isolation", ours, "isolate"),
        ("saliency", ours, "flows"),
        ("re-weighting", ours, "learn"),
        ("compression", ours, "respond"),
        ("compression", Floor, "answers"),
        ("compression", Floor, "whole"),
    ],
)
def test_a_small_error_in_one_way_is_seen(contest, monkeypatch, name, where, attribute):
    right: Callable = getattr(where, attribute)
    monkeypatch.setattr(where, attribute, lambda *given, **named: spoil(right(*given, **named)))
    assert any(not each.holds for each in agreements(contest, name))


def test_full_batch_steps_are_held_against_the_plain_way_too(contest, monkeypatch):
    right = ours.learn

    def wrong(*given, full_batch=False, **named):
        found = right(*given, full_batch=full_batch, **named)
        return spoil(found) if full_batch else found

    monkeypatch.setattr(ours, "learn", wrong)
    held = {each.what: each.holds for each in agreements(contest, "re-weighting")}
    assert [what for what, holds in held.items() if not holds] == [
        "losses of two full-batch steps on a few, ours and plain"
    ]


def test_a_result_that_is_not_a_number_disagrees():
    one, none = torch.ones(2), torch.tensor([1.0, torch.nan])
    for pair in ((one, none), (none, one)):
        assert not cases.worst("", [(one, one), pair], cases.LOGITS).holds
    assert cases.worst("", [(one, one)], cases.LOGITS).holds


def test_isolation_in_no_layer_would_not_pass_for_isolation(contest):
    clean, *runs = contest.plain.isolation(contest.prompts[:1], [[0], [0, 1], [2]])[0]
    assert [bool(torch.allclose(clean, run)) for run in runs] == [False, False, True]  # the last layer's are not read


def test_what_a_way_left_out_is_made_up_for_by_tokens(contest):
    way = contest.plainly(lambda prompts: [prompt.example for prompt in prompts], 6)
    assert [way.run(number) for number in range(3)] == [[0, 2], [1, 3], [0, 2]]
    lengths = [len(prompt.ids) for prompt in contest.prompts]
    assert way.factor(1) == sum(lengths) / (lengths[1] + lengths[3])


def test_ways_take_turns_at_being_first_and_times_are_multiplied():
    order = []
    ways = {
        "a": Way(lambda number: order.append(("a", number))),
        "b": Way(lambda number: order.append(("b", number)), lambda number: math.inf if number else 0.0),
    }
    timed = alternating(ways, 2, CPU)
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert timed["b"].seconds == [0.0, math.inf]
    assert Timed([3.0, 1.0, 2.0]).median == 2
    assert Timed([3.0, 1.0, 2.0]).spread == 1


@pytest.mark.parametrize(
    ("goal", "measured", "met"),
    [
        ({"least": 2}, 2.0, True),
        ({"least": 2}, 1.9, False),
        ({"most": 2}, 2.0, True),
        ({"most": 2}, 2.1, False),
        ({"most": 0}, 0.0, True),
        ({"most": 0}, 1.0, False),
        ({}, 2.0, None),
        ({"least": 2}, None, None),
    ],
)
def test_a_goal_is_met_or_missed(goal, measured, met):
    row = Row("what", "whom", measured, **goal)
    assert row.met is met
    said = {True: "yes", False: "NO", None: "-"}[met]
    assert markdown([row]).splitlines()[-1].split("|")[-2].strip() == said


def test_prompts_have_the_lengths_asked_for_and_share_their_demonstrations():
    made = shapes.prompts(shapes.SHAPES["gpt2"], shapes.Size())
    shown = shapes.group(made)
    assert shown.length == 4 * 45
    assert {len(prompt.ids) - shown.length for prompt in made} == set(range(30, 51))
    assert [prompt.gold for prompt in made[:5]] == [0, 1, 2, 3, 0]
    assert all(
        prompt.ids[at] == prompt.labels[label]
        for prompt in made
        for at, label in zip(prompt.anchors, prompt.anchor_classes, strict=True)
    )


def test_the_plain_ways_attention_is_not_uniform(contest):
    (pattern, *_) = contest.plain._run(contest.prompts[0]).attentions
    row = pattern[0, :, -1]
    assert (row.amax(-1) > 3 / row.shape[-1]).all(), "a model that attends to all alike would agree with anything"


def test_the_paper_is_projected_from_every_analysis_on_any_device(tmp_path, capsys):
    how = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--examples", "4", "--rounds", "1"]
    assert gpu.main([*how, "--peak", "1", "--out", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["found"]
    assert [each["analysis"][:3] for each in found] == ["2.1", "2.2", "2.3", "3.1", "3.1", "3.2", "3.3"]
    for each in found:
        sets = 4 * 5 * (1 if "training" in each["analysis"] else 1000 / 4)
        assert each["projected_minutes"] == pytest.approx(each["seconds"] * sets / 60)
        assert each["utilisation"] == pytest.approx(each["tflops"])  # of 1e12 a second
    assert "| all | float32 |" in capsys.readouterr().out


def test_utilisation_counts_tokens_by_the_formula():
    lens = gpu.load(shapes.SHAPES["tiny"], "cpu", "float32")
    size = replace(bench.QUICK, query=(12, 12))
    shown = shapes.group(shapes.prompts(shapes.SHAPES["tiny"], size))
    extraction = next(work for work in gpu.works(lens, shown, shown) if work.name.startswith("2.3"))
    found = gpu.measure(lens, shown, extraction, 1, None)
    sized = planner.of_model(lens.cfg)
    done = planner.operations(sized, 64) + 6 * planner.operations(sized, 12, 64)
    assert found.tflops * found.seconds * 1e12 == pytest.approx(done)
    assert found.tokens_per_second * found.seconds == pytest.approx(64 + 6 * 12)
    assert found.utilisation is None


def test_scaling_is_measured_and_drawn(tmp_path):
    assert scaling.main(["--quick", "--out", str(tmp_path / "scaling.json")]) == 0
    told = json.loads((tmp_path / "scaling.json").read_text())
    assert [(point["panel"], point["value"]) for point in told["points"]] == [
        (panel, value) for panel, values in scaling.QUICK.items() for value in values
    ]
    by_layers = [point["operations"] for point in told["points"] if point["panel"] == "layers"]
    output = 2 * 64 * 300
    assert by_layers[1] - output == 2 * (by_layers[0] - output)
    figure = drawing().figure(told)
    assert len(figure.data) == 9
    once = [trace for trace in figure.data if trace.name == "by formula, demonstrations once"]
    ratios = [
        y / point["operations"] for y, point in zip([y for trace in once for y in trace.y], told["points"], strict=True)
    ]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))  # one rate for all panels


def test_the_picture_in_the_docs_can_be_drawn_from_what_was_measured():
    told = json.loads((DOCS / "scaling.json").read_text())
    assert len(told["points"]) == sum(map(len, scaling.VARIED.values()))
    assert len(drawing().figure(told).data) == 9


def drawing():
    """``docs/scaling.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("drawing", DOCS / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
