"""Real launchers: every worker runs what `coati-ext run` checked, wherever it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from importlib.metadata import version

import pytest

from coati_ext.cli.run import _flags
from coati_ext.launch import ray
from coati_ext.settings import FROZEN
from helpers import ROOT
from helpers.interpreters import free_port, new_environment

WORKER = textwrap.dedent(
    """
    import json, os
    from pathlib import Path

    here = Path(__file__).resolve().parent
    os.chdir(os.sep)  # where there is no coati-ext.toml
    import coati.models
    import coati_ext

    facts = {
        "forward": coati.models.RewardModel.forward.__module__,
        "digest": coati_ext.status().digest,
        "note": coati_ext.options("mine").note,
        "frozen": set(os.environ["COATI_EXT_FROZEN"]) <= set(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        ),
        "pool": coati_ext.choice("pool_reward").__name__,
    }
    (here / f"rank{os.environ['RANK']}.json").write_text(json.dumps(facts))
    """
)
PLUGIN = textwrap.dedent(
    """
    from dataclasses import dataclass
    from coati_ext import hookimpl, option

    @dataclass(frozen=True)
    class Options:
        note: str = option("", "any text")

    @hookimpl
    def register_options(register):
        register("mine", Options)

    @hookimpl(specname="pool_reward")
    def first(hidden):
        return hidden[:, 0]
    """
)
HARD = """a,b "c" 'd' $HOME `id`"""


def launch(environment, installed, *command, **variables):
    """Run ``coati-ext run`` in a process whose PATH begins with the environment's commands."""
    return subprocess.run(
        [str(environment.parent / "coati-ext"), "run", *command],
        env={**minimal(environment), "PYTHONPATH": str(installed.folder), **variables},
        cwd=str(installed.cwd),
        capture_output=True,
        text=True,
        timeout=300,
    )


def minimal(environment):
    """Only what a shell needs: `colossalai run` exports every variable unquoted."""
    path = os.pathsep.join([str(environment.parent), "/usr/local/bin", "/usr/bin", "/bin"])
    return {"PATH": path, "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def job(installed, tmp_path):
    """A folder with a script, a plugin and settings."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "coati-ext.toml").write_text(
        'plugins = ["./mine.py"]\n[eos_pooling]\npooling = "first"\n'
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["wheel"], indirect=True)
class TestRun:
    @pytest.mark.parametrize(
        ("launcher", "script"),
        [
            ("torchrun", ["worker.py"]),
            ("colossalai", ["worker.py"]),
            ("colossalai", ["-m", "worker"]),
        ],
        ids=["torchrun", "colossalai run", "colossalai run -m"],
    )
    def test_workers_have_the_settings_of_the_launching_folder(
        self, environment, installed, job, launcher, script
    ):
        command = [launcher, "--nproc_per_node", "2", "--master_port", free_port(), *script]
        if launcher == "colossalai":
            pytest.importorskip("fabric", reason="colossalai run needs fabric")
            if ("-m" in script) != (version("colossalai") >= "0.4.7"):
                pytest.skip("colossalai run has -m since 0.4.7, and then that is tried: it is more")
            command.insert(1, "run")
        done = launch(
            environment,
            installed,
            *["--set", f"mine.note={HARD}", "--", *command],
            PYTHONPATH=os.pathsep.join([str(installed.folder), str(job)]),
            COATI_EXT_SET="rollout.lam=0.5",
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        digest = re.search(r"coati-ext: .*, digest (\w+)", done.stderr).group(1)
        for rank in (0, 1):
            assert json.loads((job / f"rank{rank}.json").read_text()) == {
                "forward": "coati_ext.patches.eos_pooling.reward_model",
                "digest": digest,
                "note": HARD,
                "frozen": True,
                "pool": "checked",  # a plugin's, not a built-in one
            }

    def test_the_shell_of_another_node_gives_a_worker_all_that_it_needs(
        self, environment, installed, job
    ):
        """What `colossalai run` types there: `export k="v"` of each one-line variable."""
        show = "import json, os; print(json.dumps(dict(os.environ)))"
        command = ["--set", f"mine.note={HARD}", "--", str(environment), "-c", show]
        done = launch(environment, installed, *command, COATI_EXT_SET="rollout.lam=0.5")
        sent = json.loads(done.stdout.splitlines()[-1])
        assert not {"COATI_EXT_SET", "COATI_EXT_CONFIG"} & set(sent)
        (job / "coati-ext.toml").unlink()
        export = " ".join(f'{name}="{value}"' for name, value in sent.items())
        shell = f"cd / && export {export} && {environment} {job / 'worker.py'}"
        node = subprocess.run(
            ["/bin/sh", "-c", shell], env={"RANK": "0"}, capture_output=True, text=True, timeout=300
        )
        assert node.returncode == 0, node.stderr
        facts = json.loads((job / "rank0.json").read_text())
        assert facts["note"] == HARD
        assert facts["digest"] in done.stderr

    def test_a_launcher_of_another_python_is_refused(self, environment, installed, tmp_path):
        other = new_environment(tmp_path / "other", packages=True)
        path = os.pathsep.join([str(other.parent), minimal(environment)["PATH"]])
        for command in (["torchrun", "x.py"], ["colossalai", "run", "x.py"], [str(other), "x.py"]):
            done = launch(environment, installed, "--", *command, PATH=path)
            assert done.returncode == 1
            assert f"{command[0]} runs under {other}, whose processes would not be" in done.stderr
        # The launcher is ours, but the torchrun that it takes from PATH is not.
        ours = str(environment.parent / "colossalai")
        done = launch(environment, installed, "--", ours, "run", "x.py", PATH=path)
        assert f"torchrun runs under {other}" in done.stderr
        (other.parent / "torchrun").unlink()
        done = launch(environment, installed, "--", ours, "run", "x.py", PATH=str(other.parent))
        assert done.returncode == 2
        assert "no torchrun on PATH" in done.stderr

    def test_options_of_python_that_skip_the_start_up_file_are_refused(
        self, environment, installed
    ):
        def run(*flags):
            script = "import sys; print([name for name in sys.modules if 'coati_ext' in name])"
            return launch(environment, installed, "--", str(environment), *flags, "-c", script)

        done = run("-X", "utf8", "-uS")
        assert done.returncode == 1
        assert f"{environment} -S, whose processes would not be patched" in done.stderr
        for flags in (["-u"], ["-I"], ["-s", "-E"]):
            assert "coati_ext.launch.watch" in run(*flags).stdout, flags

    def test_a_command_that_does_not_say_its_python_is_run(self, environment, installed, tmp_path):
        """Such as a shell script: then it is this Python that has to be armed."""
        (tmp_path / "train.sh").write_text(f"#!/bin/sh\nexec {environment} -c 'import coati'\n")
        (tmp_path / "train.sh").chmod(0o755)
        done = launch(environment, installed, "--", "./train.sh")
        assert done.returncode == 0, done.stderr
        one, other = re.findall(r"digest (\w+)", done.stderr)  # of the command, of its process
        assert one == other

    def test_a_run_within_a_run_keeps_what_is_frozen(self, environment, installed, job):
        command = str(environment.parent / "coati-ext")

        def settings(*inner):
            outer = ["--set", "mine.note=x", "--"]
            inner = [command, "run", *inner, "--", command, "config", "--json"]
            done = launch(environment, installed, *outer, *inner)
            assert done.returncode == 0, done.stderr
            return {item["name"]: item for item in json.loads(done.stdout)["settings"]}

        found = settings("--set", "eos_pooling.pooling=masked_mean")
        assert found["mine.note"]["origin"] == "coati-ext run --set, frozen"
        assert found["plugins"]["origin"] == "coati-ext.toml line 1, frozen"
        assert found["eos_pooling.pooling"]["value"] == "masked_mean"
        assert found["eos_pooling.pooling"]["origin"] == "coati-ext run --set, frozen"
        (job / "other.toml").write_text("rank_check = 5\n")
        found = settings("--config", "other.toml")  # naming a file means that file
        assert "mine.note" not in found
        assert found["rank_check"]["value"] == 5


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["train.py", "-S"], []),
        (["-S", "train.py"], ["-S"]),
        (["-uIm", "train", "-S"], ["-I"]),
        (["-X", "-S", "-s", "-c", "x"], ["-s"]),
        (["-Xutf8", "-WSs", "-E", "-"], ["-E"]),
        (["--help", "-S"], ["-S"]),
        ([], []),
    ],
)
def test_options_of_python_are_read_up_to_its_script(arguments, flags):
    assert _flags(arguments) == flags


def test_the_page_on_launchers_names_what_there_is():
    page = (ROOT / "docs" / "launchers.md").read_text(encoding="utf-8")
    for name in (FROZEN, ray.RAY_HOOK, ray.SETUP, "ray_runtime_env"):
        assert name in page
    for name in ("startup_file", "startup_why", "gaps", "launchers"):
        assert f"`{name}`" in page
