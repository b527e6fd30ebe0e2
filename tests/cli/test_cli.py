"""The command line: facts as JSON, readable views, exit statuses, and no torch for reading."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from coati_ext.plugins import CHOICES

READ = (
    ["doctor"],
    ["list"],
    ["plan"],
    ["explain", "eos_pooling"],
    ["explain", "pool_reward"],
    ["diff", "eos_pooling"],
    ["config"],
    ["plugins"],
)


@pytest.fixture
def cli(upstream, monkeypatch, capsys):
    """Run the command line in this process: (status, standard output, standard error)."""
    from coati_ext.cli import main

    def run(*arguments):
        try:
            status = main(list(arguments))
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize("command", READ, ids=" ".join)
def test_read_commands_print_a_view_and_json(cli, command):
    status, view, error = cli(*command)
    assert (status, error) == (0, "")
    assert "\x1b" not in view  # not a terminal: no colour
    assert max(len(line) for line in view.splitlines()) > 20
    status, text, error = cli(*command, "--json")
    assert (status, error) == (0, "")
    assert isinstance(json.loads(text), dict)


def test_read_commands_import_no_torch(python):
    script = textwrap.dedent(
        f"""
        import sys
        from coati_ext.cli import main
        for command in {READ!r}:
            assert main(list(command)) == 0, command
        assert "torch" not in sys.modules and "coati" not in sys.modules
        """
    )
    python("-c", script)


def test_doctor(cli, upstream):
    _, view, _ = cli("doctor")
    assert str(upstream.package) in view
    assert f"generation {upstream.generation}" in view
    assert "COATI_EXT is not set" in view
    assert "verdict: everything fits" in view
    facts = json.loads(cli("doctor", "--json")[1])
    assert facts["plan"]["generation"] == upstream.generation
    assert {step["state"] for step in facts["plan"]["steps"]} <= {"pending", "already upstream"}


@pytest.mark.parametrize(("after", "verdict", "ended"), [(0.0, "right", 0), (0.25, "wrong", 1)])
def test_doctor_live_shows_each_defect_off_and_on(
    cli, upstream, monkeypatch, after, verdict, ended
):
    """What the numbers are is told by test_defects.py."""
    from coati_ext.cli import doctor

    def run_module(module, state, *, flag):
        value, found = (0.5, "wrong") if state == "off" else (after, verdict)
        facts = {"name": "first", "patch": "rollout", "summary": "a number", "right": 0.0}
        return [{**facts, "value": value, "verdict": found}]

    monkeypatch.setattr(doctor, "run_module", run_module)
    status, text, error = cli("doctor", "--live", "--json")
    assert (status, error) == (ended, "")
    (found,) = json.loads(text)["live"]
    assert (found["before"], found["after"], found["verdict"]) == (0.5, after, verdict)
    _, view, _ = cli("doctor", "--live")
    assert f"a number  0.5  {after:.3g}".split() == view.split("rollout")[-1].split()[:4]
    assert ("a defect remains" in view) == (verdict == "wrong")


@pytest.mark.slow
@pytest.mark.once(why="each step and loss is compared on every stack; this adds them up")
@pytest.mark.enough("G2", "G4", why="G1 and G3 are trained by the loops of G2 and G4")
def test_demo_trains_with_the_flag_off_and_on(cli, warm_children, upstream):
    sizes = ["--pairs", "16", "--held-out", "12", "--family", "llama"]
    status, text, _ = cli("demo", *sizes, "--json")
    assert status == 0
    facts = json.loads(text)
    assert facts["generation"] == upstream.generation
    off, on = facts["runs"]
    assert off["padding_shift"] > 0.01
    assert on["padding_shift"] <= 1e-5
    assert on["accuracy_right_padded"] == on["accuracy_left_padded"]
    assert on["end_tokens_kept"] == 1


@pytest.mark.slow
def test_demo_without_coati_uses_a_stand_in_and_says_so(bare_python):
    view = bare_python.cli("demo", "--pairs", "16", "--held-out", "8").stdout
    assert "No coati of yours, but coati-ext's own stand-in for one" in view
    assert "moves its score by up to" in view
    done = bare_python.cli("demo", "--family", "gtp2", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("coati-ext: coati_ext.cli.demo_script failed with COATI_EXT=0")
    assert "unknown model family 'gtp2'" in done.stderr


def test_plan_shows_order_choice_and_digest(cli, upstream):
    facts = json.loads(cli("plan", "--json")[1])
    assert [step["order"] for step in facts["steps"]] == list(range(1, len(facts["steps"]) + 1))
    assert set(facts["choices"]) == set(CHOICES)
    assert facts["choices"]["pool_reward"] == "eos"
    bandit = upstream.generation in ("G1", "G2")
    assert facts["choices"]["estimate_advantages"] == ("sequence" if bandit else "gae")
    assert len(facts["digest"]) == 12


def test_plan_of_an_unfit_coati_has_status_1(cli, upstream, tmp_path, monkeypatch):
    import shutil

    from helpers.upstreams import importable

    shutil.copytree(str(upstream.package), str(tmp_path / "coati"))
    for file in (tmp_path / "coati" / "models").rglob("reward_model.py"):
        file.write_text(file.read_text().replace("squeeze(", "reshape("))
    with importable(tmp_path):
        for command in ("plan", "doctor"):
            status, view, _ = cli(command)
            assert status == 1
            assert "refused" in view
            assert "differs from upstream's" in view
        assert "eos_pooling does not fit this coati" in view


def test_diff_shows_both_functions(cli, upstream):
    view = cli("diff", "eos_pooling")[1]
    assert "--- coati.models" in view
    assert "-def forward(" in view
    assert "+    return _score(self" in view
    assert "+    mask = tensors.token_mask(input_ids, attention_mask)" in view  # of what it calls
    wrapped = json.loads(cli("diff", "left_padding", "--json")[1])["diffs"]
    assert all("(calls the original)" in item["diff"] for item in wrapped)


def test_explain_a_patch_and_a_hook(cli, monkeypatch):
    monkeypatch.setenv("COATI_EXT_SET", "eos_pooling.pooling=masked_mean")
    view = cli("explain", "eos_pooling")[1]
    assert "option pooling = 'masked_mean' (environment COATI_EXT_SET)" in view
    assert "#4475" in view
    view = cli("explain", "pool_reward")[1]
    assert "pool_reward(hidden, attention_mask, positions, model)" in view
    assert "in use: masked_mean, chosen by environment COATI_EXT_SET" in view


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ["explain", "eos_poling"],
            "no patch or hook is called eos_poling; did you mean eos_pooling?",
        ),
        (["diff", "left_pading"], "no patch is called left_pading; did you mean left_padding?"),
        (["plugins", "--hook", "pool_rewards"], "did you mean pool_reward?"),
        (["run"], "nothing to run"),
        (["run", "--", "no-such-command"], "no command no-such-command on PATH"),
        (["run", "--set", "lam", "--", "true"], "lam: wants section.key=value"),
        (["run", "--set", "eos_pooling.pooling=min", "--", "true"], "(coati-ext run --set)"),
        (["doctr"], "invalid choice: 'doctr'"),
        ([], "COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_has_status_2_and_says_what_would_be_right(cli, command, told):
    status, _, error = cli(*command)
    assert status == 2
    assert told in error


def test_wrong_settings_have_status_2_as_text_and_as_json(cli):
    Path("coati-ext.toml").write_text("[eos_poling]\n")
    Path("coati-ext.toml").write_text("[eos_poling]\nenabled = true\n")
    status, _, error = cli("plan")
    assert status == 2
    assert "coati-ext.toml line 2" in error
    status, text, _ = cli("plan", "--json")
    assert status == 2
    assert json.loads(text)["error"] == "ConfigError"


def test_a_broken_plugin_leaves_the_command_line_alive(cli):
    Path("mine.py").write_text("import nowhere_to_be_found\n")
    Path("coati-ext.toml").write_text('plugins = ["./mine.py"]\n')
    assert cli("list")[0] == 0
    status, view, _ = cli("plugins")
    assert status == 1
    assert "broken" in view
    assert "mine.py, line 1" in view
    status, view, _ = cli("doctor")
    assert status == 1
    assert "a plugin is broken" in view


def test_without_coati(bare_python):
    for command in (["list"], ["config"], ["plugins"]):
        bare_python.cli(*command)
    done = bare_python.cli("doctor", check=False)
    assert done.returncode == 1
    assert "there is no coati to patch here" in done.stdout
    assert "coati-ext demo" in done.stdout
    assert bare_python.cli("plan", check=False).returncode == 1
    done = bare_python.cli("diff", "eos_pooling", check=False)
    assert done.returncode == 1
    assert "coati is not importable by" in done.stderr


def test_piping_into_head_is_no_error(python):
    import subprocess
    import sys

    script = f"{sys.executable} -m coati_ext explain eos_pooling | head -1"
    done = subprocess.run(
        script,
        shell=True,
        env=python.environment(),
        cwd=str(python.cwd),
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("eos_pooling:")
    assert done.stderr == ""


def test_the_version(cli):
    import coati_ext

    assert cli("--version")[1].strip() == f"coati-ext {coati_ext.__version__}"
