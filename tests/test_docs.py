"""The documents say what the code does: hooks, commands, examples and the plugin of the README."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil

import pytest
import torch

import coati_ext
from coati_ext import hookspecs
from coati_ext.plugins import HOOKS
from helpers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_heading_with_its_exact_signature(hook):
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    assert f"## {hook}({arguments})\n" in (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120
    (table,) = re.findall(r"^## What it repairs\n\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    assert len(table.splitlines()) - 2 <= 10


def test_the_readmes_links_lead_to_files():
    links = re.findall(r"\]\((?!http)([\w./]+)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_page_has_its_place_in_the_nav_and_begins_with_its_title():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    assert sorted(re.findall(r": (\w+\.md)$", nav, flags=re.MULTILINE)) == sorted(PAGES)
    assert [name for name, page in PAGES.items() if not page.startswith("# ")] == []


def test_every_patch_has_a_page_with_its_options_its_source_and_how_to_leave_it_out():
    from coati_ext.plan import make_plan

    registry = make_plan().registry
    for name, patch in registry.patches.items():
        page = PAGES[f"{name}.md"]
        assert f"COATI_EXT_SET={name}.enabled=false" in page
        references = re.findall(r"#\d+|\d{4}\.\d{5}", patch.reference)
        assert references
        assert [item for item in references if item not in page] == []
        options = [field.name for field in dataclasses.fields(registry.options[name])]
        assert [option for option in options if f"| `{option}` |" not in page] == []


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_used_by_a_test(hook):
    tests = "".join(
        file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")
    )
    assert f"def {hook}(" in tests


def test_hook_arguments_are_pinned():
    """Plugins written today must keep working: an argument can be added, none renamed."""
    found = {hook: list(inspect.signature(getattr(hookspecs, hook)).parameters) for hook in HOOKS}
    assert found == {
        "action_log_probs": ["model", "frame"],
        "action_losses": [
            *("log_probs", "old_log_probs", "reference_log_probs", "advantages"),
            *("action_mask", "clip", "beta", "algorithm"),
        ],
        "align_prompts": ["input_ids", "attention_mask"],
        "compare_group": ["score", "kl", "group_size", "kl_coef"],
        "estimate_advantages": ["values", "rewards", "action_mask", "gamma", "lam"],
        "experience_made": ["experience", "maker", "rollout", "judgement"],
        "group_advantages": ["reward", "action_mask", "group_size", "algorithm"],
        "last_hidden_states": ["backbone", "input_ids", "attention_mask", "position_ids"],
        "mark_actions": ["sequences", "prompt_width", "stops"],
        "patch_applied": ["row"],
        "policy_step": ["trainer", "experience", "log_probs"],
        "pool_reward": ["hidden", "attention_mask", "positions", "model"],
        "register_defects": ["register"],
        "register_options": ["register"],
        "register_patches": ["register"],
        "report_made": ["note"],
        "reward_evaluated": ["trainer", "chosen_reward", "reject_reward"],
        "reward_step": ["trainer", "chosen_reward", "reject_reward"],
        "rows_scored": ["model", "input_ids", "attention_mask", "positions", "reward"],
        "sample_answers": [
            "maker",
            "input_ids",
            "attention_mask",
            "new_tokens",
            "generate_kwargs",
        ],
        "scale_advantages": ["advantages", "action_mask"],
        "scale_reward": ["reward", "model", "maker"],
        "score_rows": ["model", "frame", "extras"],
        "shape_reward": ["score", "log_ratio", "action_mask", "kl_coef"],
        "state_values": ["model", "frame"],
        "tokens_computed": ["backbone", "computed", "real", "columns"],
    }


def test_the_commands_in_the_readme_exist():
    from coati_ext.cli import _parser

    known = (
        "doctor|list|plan|explain|diff|run|config|plugins|demo|show|bench|plot|migrate|calibrate"
    )
    commands = set(re.findall(rf"coati-ext ({known})", README))
    usage = _parser().format_help()
    assert commands >= {"doctor", "run", "demo", "show", "bench", "migrate", "calibrate"}
    for command in commands:
        assert f"\n    {command} " in usage


def test_the_readme_names_every_patch_and_the_fixed_names():
    from coati_ext.plan import make_plan

    for name in make_plan().registry.patches:
        assert f"`{name}`" in README
    for name in ("COATI_EXT=1", "COATI_EXT_SET", "coati-ext.toml", "disable()"):
        assert name in README


def test_the_readmes_plugin_runs_in_15_lines(upstream, tmp_path):
    from coati_ext.testing import assert_padding_invariant, tiny_reward_model

    (code,) = re.findall(r"```python\n# (?:[\w/]+\.py)\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 15
    (tmp_path / "mine.py").write_text(code)
    with coati_ext.applied({"plugins": ["./mine.py"]}):
        assert_padding_invariant(tiny_reward_model("llama"))


@pytest.mark.once(why="a page's files, on the stand-in that they name")
def test_the_page_on_plugins_passes_its_own_tests(bare_python):
    named = r"```python\n(# (\w+\.py)\n.*?)```"
    for code, name in re.findall(named, PAGES["plugins.md"], flags=re.DOTALL):
        (bare_python.cwd / name).write_text(code)
    for name in ("test_last_tokens.py", "test_monte_carlo.py"):
        told = bare_python.warm("-m", "pytest", "-p", "no:cacheprovider", name).stdout
        assert "2 passed" in told


@pytest.mark.once(why="the steps of a rollout are the same on every stack")
@pytest.mark.generations("G4")
@pytest.mark.parametrize("grpo", [False, True])
def test_the_page_on_plugins_changes_every_step(upstream, tmp_path, capsys, grpo):
    from coati_ext.testing import (
        cpu_only,
        experience_maker,
        make_experience,
        ppo_trainer,
        tiny_models,
        tiny_tokenizer,
        training_step,
    )

    code = re.findall(r"```python\n(# every_step\.py\n.*?)```", PAGES["plugins.md"], re.DOTALL)
    (tmp_path / "every_step.py").write_text(*code)
    tokenizer, models = tiny_tokenizer(padding_side="left"), tiny_models()
    group = {"use_grpo": True, "num_generation": 2} if grpo else {}
    used = models._replace(critic=None) if grpo else models
    prompts = torch.tensor([[0, 1, 9, 8], [1, 5, 7, 6]])

    def made():
        torch.manual_seed(0)
        maker = experience_maker(used, tokenizer=tokenizer, kl_coef=0.1, **group)
        return make_experience(maker, prompts, prompts != 0, tokenizer=tokenizer, max_length=48)

    with cpu_only():
        with coati_ext.applied():
            before = made()
        with coati_ext.applied({"plugins": ["./every_step.py"]}):
            after = made()
            told = capsys.readouterr().out
            if not grpo:
                trainer = ppo_trainer(models, tokenizer=tokenizer, max_length=48)
                trainer.writer = None
                training_step(trainer, after)
    assert "rewards: " in told
    assert not after.advantages.equal(before.advantages)
    assert int(after.action_mask.sum(dim=1).max()) <= 32 < int(before.action_mask.sum(dim=1).max())


def test_the_example_plugin(upstream, tmp_path):
    from coati_ext.testing import assert_padding_invariant, tiny_reward_model

    shutil.copy(str(ROOT / "examples" / "own_pooling" / "last_tokens.py"), str(tmp_path))
    with coati_ext.applied({"plugins": ["./last_tokens.py"]}):
        assert_padding_invariant(tiny_reward_model("llama"))


@pytest.mark.enough("G1", "G4", why="the same lines on every coati; the first and the last")
def test_the_example_check(python):
    lines = python.warm(str(ROOT / "examples" / "check_my_model" / "run.py")).stdout.splitlines()
    assert "no: the reward depends on padding" in lines[1]
    assert lines[2].split() == ["patches", "on:", "yes"]


def test_the_changelog_has_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{coati_ext.__version__}]" in changelog


def test_every_public_name_is_there():
    for name in coati_ext.__all__:
        assert getattr(coati_ext, name) is not None
    assert set(coati_ext.__all__) == set(coati_ext._HOMES)
    (documented,) = re.findall(r"::: coati_ext\n.*\n +members: \[(.*)\]", PAGES["api.md"])
    assert sorted(documented.split(", ")) == sorted(coati_ext.__all__)
    with pytest.raises(AttributeError, match="no attribute 'enabel'"):
        coati_ext.enabel
