"""The recipe is the file that the benchmark ran, and the benchmark's tasks say what they score."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch

import coati_ext
from coati_ext._toml import parse_toml
from coati_ext.testing import tiny_tokenizer
from coati_ext.testing.preferences import BAD, GOOD, PLAIN, TURN
from helpers import ROOT

RECIPE = ROOT / "examples" / "recipe" / "coati-ext.toml"


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the benchmark by its name; `benchmarks/` is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_recipe_is_in_force_where_it_is_given(upstream):
    sections = parse_toml(RECIPE.read_text(encoding="utf-8"))
    with coati_ext.applied(str(RECIPE)):
        for section, settings in sections.items():
            in_force = coati_ext.options(section)
            assert {name: getattr(in_force, name) for name in settings} == settings


def test_the_recipe_differs_from_the_defaults(upstream):
    with coati_ext.applied({}):
        defaults = dataclasses.asdict(coati_ext.options("rollout"))
    with coati_ext.applied(str(RECIPE)):
        assert dataclasses.asdict(coati_ext.options("rollout")) != defaults


@pytest.mark.slow
@pytest.mark.enough("G2", "G4", why="G1 and G3 learn by the loops and losses of G2 and G4")
@pytest.mark.once(why="each step and loss is compared on every stack; this adds them up")
def test_a_short_run_is_made_by_the_recipe_and_learns(upstream, benchmark, monkeypatch, tmp_path):
    recipe, tasks = benchmark("recipe"), benchmark("recipe_tasks")
    evaluate, found = tasks.evaluate, []

    def watched(*given):
        found.append(coati_ext.options("rollout"))
        return evaluate(*given)

    monkeypatch.setattr(tasks, "evaluate", watched)
    assert recipe.SETTINGS["recipe"].config == RECIPE
    before, after = recipe.train("credit", 0, recipe.SETTINGS["recipe"], tmp_path, steps=5)
    (settings,) = {*found}
    told = parse_toml(RECIPE.read_text(encoding="utf-8"))["rollout"]
    assert {name: getattr(settings, name) for name in told} == told
    assert after["score"] > before["score"] + 0.2
    assert 0 < after["kl"] < 20


@pytest.mark.parametrize(
    ("name", "answer", "ended", "score"),
    [
        ("credit", [*GOOD[:4], *BAD], True, 1.6),
        ("credit", [GOOD[0], BAD[0], GOOD[1]], True, 0.4),
        ("credit", [], True, 0),
        ("end", list(GOOD[:4]), True, 1),
        ("end", [GOOD[0]] * 16, False, -1),
        ("end", [], True, -1 / 3),
        ("context", list(PLAIN[4:8]), True, 1),
        ("context", [PLAIN[4]], True, 0.25),
        ("context", [PLAIN[4], *PLAIN[9:12]], True, 0.25),
    ],
)
def test_the_score_is_that_of_the_words(benchmark, name, answer, ended, score):
    tasks = benchmark("recipe_tasks")
    task = tasks.TASKS[name]
    asked = [PLAIN[30], PLAIN[0], TURN]
    assert task.score(asked, answer, ended) == pytest.approx(score)
    assert task.best >= score


@pytest.mark.parametrize("pad", ["pad", "eos"])
def test_the_reward_model_is_the_score_whatever_the_padding(benchmark, pad):
    tasks = benchmark("recipe_tasks")
    tokenizer = tiny_tokenizer(pad=pad)
    rule = tasks.Rule(tasks.TASKS["end"], tokenizer)
    ids = tokenizer.convert_tokens_to_ids
    asked, gap = ids([PLAIN[30], TURN]), tokenizer.pad_token_id
    ended = [*asked, *ids(GOOD[:4]), tokenizer.eos_token_id]
    cut = [*asked, *ids(GOOD[:1]) * tasks.ANSWER]
    rows = [[*[gap] * 3, *ended, *[gap] * 20], [*ended, *[gap] * 23], [gap, *cut, *[gap] * 11]]
    assert rule(torch.tensor(rows)).tolist() == pytest.approx([1, 1, -1])


def test_trl_is_given_the_same_score_and_each_critic_the_same_head(benchmark):
    tasks, trl = benchmark("recipe_tasks"), benchmark("recipe_trl")
    tokenizer = tiny_tokenizer(padding_side="left")
    rule = tasks.Rule(tasks.TASKS["credit"], tokenizer)
    texts = [f"{PLAIN[30]} {TURN} {GOOD[0]} {GOOD[1]} <eos>", f"{TURN} {BAD[0]} {PLAIN[9]} <eos>"]
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    model = trl.RuleModel(rule)
    hidden = model.rows(rows["input_ids"], rows["attention_mask"]).hidden_states[-1]
    assert model.score(hidden)[:, -1, 0].tolist() == rule(rows["input_ids"]).tolist()
    assert rule(rows["input_ids"]).tolist() == pytest.approx([0.8, -0.4])
    policy = tasks.new_policy(len(tokenizer))
    head = tasks.value_head(policy.config.hidden_size, seed=0)
    assert trl.ValueModel(policy.transformer, head).score.weight.equal(head)


def test_a_table_has_the_median_and_the_worst_seed(benchmark):
    draw = benchmark("recipe_draw")
    seeds = [[0.0, 1.0, 2.0], [0.0, 0.5, 1.0], [0.0, 0.0, 3.0]]
    rows = [
        {
            "who": "HEAD",
            "setting": "recipe",
            "task": "end",
            "seed": seed,
            "curve": [{"score": score, "kl": 1.0} for score in scores],
        }
        for seed, scores in enumerate(seeds)
    ]
    found = draw.curves(rows)
    of = found["HEAD: recipe", "end"]
    assert draw.reached(of, 0.5) == (0.5, 0)
    assert draw.reached(of, 1) == (2, 1)
    assert draw.learnt(of) == (1.5, 0.75)
    assert "| HEAD: recipe | end | 3 | 0.50 (0.00) | 2.00 (1.00) |" in draw.table(found)


def test_what_is_there_is_not_run_again(benchmark, tmp_path):
    recipe = benchmark("recipe")
    results, runs = tmp_path / "results.jsonl", []
    asked = recipe.parser({"a": None, "b": None}, "").parse_args(
        [str(results), "--tasks", "end", "--seeds", "0", "1"]
    )

    def learn(*given):
        runs.append(given[:3])
        return [{"score": 0.5}]

    for _ in range(2):
        recipe.each(asked, "somebody", learn)
    assert runs == [("end", seed, setting) for seed in (0, 1) for setting in "ab"]
    assert [row["setting"] for row in recipe.read(results)] == ["a", "b", "a", "b"]
