"""The command line: facts as JSON, readable views, exit statuses, and no torch for reading."""

from __future__ import annotations

import json
import re
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
    assert [line for line in view.splitlines() if line != line.rstrip()] == []
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
    facts = json.loads(cli("doctor", "--json")[1])
    assert facts["plan"]["generation"] == upstream.generation
    assert {step["state"] for step in facts["plan"]["steps"]} <= {"pending", "already upstream"}
    assert view.splitlines()[:2] == [f"verdict: {facts['verdict']}", f"next: {facts['next']}"]
    assert facts["verdict"].startswith("NOT PATCHED")
    bugs = len(facts["plan"]["defects"])
    assert f"({upstream.generation}) for {bugs} known RLHF bugs; all " in facts["verdict"]
    waiting = {it["target"] for it in facts["plan"]["steps"] if it["state"] == "pending"}
    assert f"all {len(waiting)} functions to patch were recognised" in facts["verdict"]


@pytest.mark.enough("G1", "G4", why="the words are the same for each; the first and the last")
def test_doctor_counts_only_the_bugs_that_are_covered(cli, monkeypatch):
    monkeypatch.setenv("COATI_EXT_SET", "eos_pooling.enabled=false")
    facts = json.loads(cli("doctor", "--json")[1])
    defects = facts["plan"]["defects"]
    assert {it["patch"] for it in defects if not it["covered"]} == {"eos_pooling"}
    assert f"bugs, {sum(it['covered'] for it in defects)} of them covered;" in facts["verdict"]


@pytest.mark.enough("G4", why="nothing of coati")
@pytest.mark.parametrize(
    ("there", "problem", "start"),
    [
        ([], None, "python"),
        (["torchrun"], None, "torchrun"),
        (["torchrun"], "it is of another Python", "python"),
        (["colossalai"], None, "python"),
    ],
)
def test_doctor_names_a_launcher_only_if_it_is_there(cli, monkeypatch, there, problem, start):
    from coati_ext.cli import doctor

    here = {"file": "/bin/it", "python": "/bin/python", "problem": problem}
    none = {"file": None, "python": None, "problem": None}
    launchers = [
        {"name": name, **(here if name in there else none)} for name in ("torchrun", "colossalai")
    ]
    monkeypatch.setattr(doctor, "_launchers", lambda: launchers)
    monkeypatch.setattr(doctor.installation, "gaps", list)
    assert json.loads(cli("doctor", "--json")[1])["next"].split()[:2] == ["COATI_EXT=1", start]


@pytest.mark.enough("G1", "G4", why="the words are the same for each; the first and the last")
def test_doctor_is_ready_where_the_flag_is_on_and_reaches_processes(cli, monkeypatch, tmp_path):
    from coati_ext.cli import doctor

    (tmp_path / "coati_ext.pth").write_text("import this\n")
    monkeypatch.setattr(doctor.installation, "gaps", list)
    monkeypatch.setattr(doctor.installation, "startup_file", lambda: tmp_path / "coati_ext.pth")
    monkeypatch.setenv("COATI_EXT", "1")
    facts = json.loads(cli("doctor", "--json")[1])
    assert facts["verdict"].startswith("READY. With COATI_EXT=1, ")
    assert "run -- torchrun" not in facts["next"]
    assert "Undo: unset COATI_EXT" in facts["next"]


@pytest.mark.parametrize(("after", "verdict", "ended"), [(0.0, "right", 0), (0.25, "wrong", 1)])
def test_doctor_live_shows_each_defect_off_and_on(
    cli, upstream, monkeypatch, after, verdict, ended
):
    """What the numbers are is told by test_defects.py."""
    from coati_ext.cli import doctor

    def side_by_side(module, runs):
        assert [(run.flag, run.arguments) for run in runs] == [("0", ("off",)), ("", ("on",))]
        facts = {"name": "first", "patch": "rollout", "summary": "a number"}
        ideal = {"right": 0.0, "tolerance": 0.1}
        return [
            {"defects": [{**facts, **ideal, "value": value, "verdict": found}], "notes": notes}
            for value, found, notes in ((0.5, "wrong", []), (after, verdict, ["it is so"]))
        ]

    monkeypatch.setattr(doctor, "side_by_side", side_by_side)
    status, text, error = cli("doctor", "--live", "--json")
    assert (status, error) == (ended, "")
    (found,) = json.loads(text)["live"]
    assert (found["before"], found["after"], found["verdict"]) == (0.5, after, verdict)
    _, view, _ = cli("doctor", "--live")
    told = f"a number 0.5 {after:.3g} 0 0.1 {verdict} note: it is so"
    assert told.split() == view.split("rollout")[-1].split()
    wrong = "DEFECTIVE. 1 of 1 bugs are not fixed by the patches, such as first: a number"
    right = "1 of 1 bugs reproduced here, 1 right with patches on. One, first: a number, 0.5 off"
    assert (wrong if verdict == "wrong" else right) in view.splitlines()[0]


def test_doctor_live_says_why_a_bug_was_not_measured_or_is_not_there(cli, upstream, monkeypatch):
    from coati_ext.cli import doctor

    def side_by_side(module, runs):
        ideal = {"patch": "rollout", "summary": "a number", "right": 0.0, "tolerance": 0.1}
        runs = [("there", 0.5, "wrong"), ("gone", 0.0, "right"), ("away", "no x", "not measured")]
        off, on = (
            [{**ideal, "name": name, "value": value, "verdict": found} for name, value, found in it]
            for it in (runs, [("there", 0.0, "right"), *runs[1:]])
        )
        return [{"defects": off, "notes": []}, {"defects": on, "notes": []}]

    monkeypatch.setattr(doctor, "side_by_side", side_by_side)
    status, view, _ = cli("doctor", "--live")
    assert status == 0
    told = "1 of 2 bugs reproduced here, 2 right with patches on, 1 not measured (no x). One, there"
    assert told in view.splitlines()[0]
    lines = [" ".join(line.split()) for line in view.splitlines()[-3:]]
    assert [line.split("a number ")[1] for line in lines] == [
        "0.5 0 0 0.1 right",
        "0 0 0 0.1 right, and right off too: this coati does not have it",
        "not measured: no x",
    ]


def test_doctor_live_notes_the_level_of_each_family(on):
    from coati_ext.cli.measure import notes
    from coati_ext.testing import families

    told = [note for note in notes() if note.startswith("token_saving computes ")]
    assert len({note.split()[2] for note in told}) >= len(families())
    assert "token_saving computes GPT2Model by prefix" in told
    assert "token_saving computes BloomModel by groups: it takes no position ids" in told


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
    assert view.startswith("verdict: REFUSED, nothing patched. RewardModel.forward has your edit (")


@pytest.fixture
def edited(upstream, tmp_path):
    """A copy of the coati under test with one edit: its file, line and text."""
    import shutil

    from helpers.upstreams import importable

    shutil.copytree(str(upstream.package), str(tmp_path / "coati"))
    (file,) = (tmp_path / "coati" / "models").rglob("reward_model.py")
    lines = file.read_text().splitlines(keepends=True)
    number = next(at for at, text in enumerate(lines) if "self.value_head(" in text)
    lines[number] = lines[number].replace("self.value_head(", "2.0 * self.value_head(", 1)
    file.write_text("".join(lines))
    with importable(tmp_path):
        yield file, number + 1, lines[number].strip()


def test_doctor_tells_of_an_edit_and_of_each_way_on(cli, edited):
    file, line, text = edited
    _, view, _ = cli("doctor")
    place = f"{file.parent.name}/{file.name}:{line}"
    first, second, *_ = view.splitlines()
    assert first == (
        f"verdict: REFUSED, nothing patched. RewardModel.forward has your edit ({place}): {text}"
    )
    for way in ("eos_pooling.enabled=false", "policy=structural", "COATI_EXT=0"):
        assert way in second
    facts = json.loads(cli("plan", "--json")[1])
    (found,) = facts["edits"]
    assert (found["file"], found["line"], found["text"]) == (str(file), line, text)


@pytest.mark.enough("G1", "G4", why="the words are the same for each; the first and the last")
def test_under_structural_an_edit_is_told_to_be_overwritten(cli, edited, monkeypatch):
    monkeypatch.setenv("COATI_EXT_SET", "policy=structural")
    _, line, _ = edited
    assert f"your edit at line {line} will be overwritten" in cli("plan")[1]
    status, view, _ = cli("doctor")
    assert status == 0
    lost = f"Your edit of RewardModel.forward at line {line} will be overwritten."
    assert lost in view.splitlines()[0]


def test_diff_marks_what_no_release_has(cli, edited):
    _, line, text = edited
    (found,) = json.loads(cli("diff", "eos_pooling", "--json")[1])["diffs"]
    assert line in found["edited"]
    marked = [it for it in found["diff"].splitlines() if it.startswith("!")]
    assert len(marked) == len(found["edited"])
    assert text in [it[1:].strip() for it in marked]
    assert "! marks what is in no release; the nearest is" in cli("diff", "eos_pooling")[1]
    left_padding = json.loads(cli("diff", "left_padding", "--json")[1])["diffs"]
    assert all("\n!" not in item["diff"] for item in left_padding)


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


def test_a_patch_without_sites_says_what_it_serves(cli, upstream, monkeypatch):
    served = "changes no upstream function; it serves last_hidden_states by auto"
    *_, last = cli("explain", "token_saving")[1].splitlines()
    assert last == f"here: {served}"
    assert f"token_saving: {served}\n" in cli("plan")[1]
    told = f"token_saving changes no function of a coati of {upstream.generation}\n"
    assert cli("diff", "token_saving")[1] == told
    monkeypatch.setenv("COATI_EXT_SET", "token_saving.enabled=false")
    assert "serves last_hidden_states by off\n" in cli("explain", "token_saving")[1]
    assert "serves" not in cli("plan")[1]


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
        (["run", "--", "torchrn"], "no command torchrn on PATH; did you mean torchrun?"),
        (["bench", "--rounds", "0"], "'0': expected a whole number, 1 or more"),
        (
            [
                *["migrate", "a", "--pretrained", "b", "--data", "c", "--output", "d"],
                *["--batch-size", "0"],
            ],
            "--batch-size 0: expected a whole number, 1 or more",
        ),
        (["run", "--set", "lam", "--", "true"], "lam: wants section.key=value"),
        (["run", "--set", "eos_pooling.pooling=min", "--", "true"], "(coati-ext run --set)"),
        (["doctr"], "invalid choice: 'doctr'"),
        (["doctr"], "did you mean doctor?"),
        (["explain", "Pool_Reward"], "did you mean pool_reward?"),
        (["explain", "NONSENSE"], "no patch or hook is called NONSENSE; the nearest is "),
        ([], "Where to start:\n\n  coati-ext doctor "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_has_status_2_and_says_what_would_be_right(cli, command, told):
    status, _, error = cli(*command)
    assert status == 2
    assert told in error


def test_one_word_for_one_state(cli):
    def states(items):
        return {it["target"]: it["state"] for it in items if it["target"] in explained}

    def lines(view):
        return [re.split(r" {2,}", line) for line in view.splitlines()]

    explain = json.loads(cli("explain", "stable_losses", "--json")[1])["here"]
    explained = {it["target"] for it in explain}
    assert states(explain) == states(json.loads(cli("plan", "--json")[1])["steps"])
    views = {name: lines(cli(*name.split())[1]) for name in ("plan", "explain stable_losses")}
    for target, state in states(explain).items():
        assert any(target in cells and state in cells for cells in views["explain stable_losses"])
        name = target.split(":")[1]
        assert any(name in cells and state in cells for cells in views["plan"])


@pytest.mark.enough("G4", why="the longest names")
@pytest.mark.parametrize("command", READ, ids=" ".join)
def test_no_target_is_broken_at_80_columns(cli, monkeypatch, command):
    from rich.console import Console

    from coati_ext.cli import screen

    targets = [it["target"].split(":")[1] for it in json.loads(cli("plan", "--json")[1])["steps"]]
    wide = cli(*command)[1]
    narrow = Console(highlight=False, force_terminal=True, no_color=True, width=80)
    monkeypatch.setattr(screen, "console", lambda: narrow)
    view = cli(*command)[1]
    for name in targets:
        assert view.count(name) == wide.count(name)
    if command == ["plan"]:
        assert max(len(line) for line in view.splitlines()[1:]) <= 80


def test_config_shows_what_is_in_force(cli, upstream, monkeypatch):
    def shown():
        rows = json.loads(cli("config", "--json")[1])["settings"]
        return {it["name"]: it["in_force"] for it in rows}

    assert " None " not in cli("config")[1]
    assert " None " not in cli("explain", "rollout")[1]
    bandit = upstream.generation in ("G1", "G2")
    assert shown()["rollout.kl"] == ("k3" if bandit else "k1")
    assert shown()["rollout.lam"] == "the maker's own, or 0.95"
    monkeypatch.setenv("COATI_EXT_SET", "rollout.advantage=gae,rollout.lam=0.9")
    assert shown()["rollout.kl"] == "k1"
    assert shown()["rollout.lam"] == 0.9


def test_explain_speaks_of_releases(cli):
    for name in ("eos_pooling", "rollout"):
        view = cli("explain", name)[1].split("\nhere")[0]
        assert "stand-in" not in view
        assert "v0.3.3 .. v0.3.6" in view


@pytest.mark.enough("G1", "G4", why="the words are the same for each; the first and the last")
def test_list_says_that_the_flag_is_off(cli, monkeypatch):
    assert "COATI_EXT is not set, so no patch is on now." in cli("list")[1]
    monkeypatch.setenv("COATI_EXT", "1")
    assert "so no patch is on" not in cli("list")[1]


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
    assert "REFUSED, nothing patched. Plugin mine is broken: " in view.splitlines()[0]


def test_without_coati(bare_python):
    for command in (["list"], ["config"], ["plugins"]):
        bare_python.cli(*command)
    done = bare_python.cli("doctor", check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("verdict: NO COATI to patch. coati is not importable by ")
    assert "coati-ext demo" in done.stdout.splitlines()[1]
    assert bare_python.cli("plan", check=False).returncode == 1
    done = bare_python.cli("diff", "eos_pooling", check=False)
    assert done.returncode == 1
    assert "coati is not importable by" in done.stderr


def test_with_chatgpt_the_verdict_and_the_next_step_agree(bare_python, tmp_path):
    file = tmp_path / "chatgpt" / "models" / "base" / "reward_model.py"
    file.parent.mkdir(parents=True)
    for name in ("", "__init__.py"):
        (file.parent.parent.parent / (name or "models/__init__.py")).write_text("")
    file.write_text("class RewardModel: ...\n")
    done = bare_python.cli("doctor", check=False)
    assert done.returncode == 1
    first, second, *_ = done.stdout.splitlines()
    assert "chatgpt, the predecessor of coati" in first
    assert second == "next: update ColossalAI to v0.2.8 or later"


@pytest.mark.enough("G4", why="the plan is made before anything of coati is imported")
def test_a_refusal_is_told_once(edited, tmp_path):
    from helpers.interpreters import Python

    script = "import coati_ext._startup, coati"
    done = Python(tmp_path, tmp_path)("-c", script, check=False, COATI_EXT="1")
    assert done.returncode == 1
    assert done.stderr.count("coati-ext refuses to patch code that it does not know") == 1
    assert "`coati-ext diff eos_pooling` marks your lines with `!`." in done.stderr


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
