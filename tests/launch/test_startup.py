"""The flag: what a Python start imports, and that every kind of child process is armed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from coati_ext.launch import flag
from coati_ext.testing import standin
from helpers import ROOT
from helpers.interpreters import free_port, new_environment

ARMED = textwrap.dedent(
    """
    import coati.models
    print(coati.models.RewardModel.forward.__module__)
    """
)
OURS = "coati_ext.patches.eos_pooling.reward_model"
# Whether a process is armed is known before coati's modules come, which take seconds. That
# they are patched when they come is the same for every process that is armed.
PLAN = textwrap.dedent(
    """
    import coati, coati_ext
    print(*sorted({row.state for row in coati_ext.status().patches}))
    """
)
ARMED_PLAN = "already upstream applied off pending"  # applied: no sites; off: reward_scaling


def imported(python, **variables):
    """The names of the modules that starting Python and ending it imports."""
    listing = "import sys; print(*sorted(sys.modules))"
    return set(python("-c", listing, **variables).stdout.split())


def armed_below(installed, flags):
    """The states of the plan in a subprocess that has these flags."""
    # An isolated interpreter ignores PYTHONPATH, so the script itself says where coati is.
    child = f"import sys; sys.path.append({str(installed.folder)!r})\n{PLAN}"
    command = f"[sys.executable, *{flags!r}, '-c', {child!r}]"
    script = f"import subprocess, sys; subprocess.run({command}, check=True)"
    return installed("-c", script, COATI_EXT="1").stdout.strip()


@pytest.mark.slow
class TestInstalled:
    """From a wheel, or editable: how a start finds coati-ext and its start-up file."""

    def test_with_the_flag_unset_nothing_of_ours_is_imported(self, installed):
        plain = imported(installed)
        assert not [name for name in plain if "coati" in name]
        for off in ("", "0"):
            assert imported(installed, COATI_EXT=off) == plain

    def test_with_the_flag_set_a_start_imports_only_the_watch(self, installed):
        extra = imported(installed, COATI_EXT="1") - imported(installed)
        watch = {
            f"coati_ext.{name}"
            for name in ("_startup", "launch", "launch.flag", "launch.imports", "launch.watch")
        }
        assert extra == {"__future__", "coati_ext", *watch}

    def test_planning_imports_no_torch(self, installed):
        script = "import sys, coati_ext; coati_ext.status(); print('torch' in sys.modules)"
        assert installed("-c", script).stdout.strip() == "False"

    def test_an_unchanged_script_is_patched(self, installed):
        assert installed("-c", PLAN).stdout.strip() == "off"
        assert installed("-c", ARMED, COATI_EXT="1").stdout.strip() == OURS

    def test_an_isolated_subprocess_is_patched(self, installed):
        assert armed_below(installed, ["-I"]) == ARMED_PLAN


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["wheel"], indirect=True)
class TestStarted:
    """What a start does that has found it, which is the same file for both."""

    @pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
    def test_multiprocessing_children_are_patched(self, installed, tmp_path, method):
        (tmp_path / "script.py").write_text(
            textwrap.dedent(
                f"""
                import multiprocessing as mp

                def work(queue):
                    import coati, coati_ext
                    rows = coati_ext.status().patches
                    queue.put(" ".join(sorted({{row.state for row in rows}})))

                if __name__ == "__main__":
                    context = mp.get_context("{method}")
                    queue = context.Queue()
                    child = context.Process(target=work, args=(queue,))
                    child.start()
                    print(queue.get(timeout=100))
                    child.join()
                """
            )
        )
        assert installed("script.py", COATI_EXT="1").stdout.strip() == ARMED_PLAN

    @pytest.mark.parametrize("flags", [[], ["-s", "-E"]], ids=["plain", "-s -E"])
    def test_subprocesses_are_patched(self, installed, flags):
        assert armed_below(installed, flags) == ARMED_PLAN

    def test_torchrun_workers_are_patched(self, installed, tmp_path):
        (tmp_path / "script.py").write_text(
            "import os, sys\nimport coati.models\n"
            "place = coati.models.RewardModel.forward.__module__\n"
            "sys.stdout.write(f\"{os.environ['RANK']} {place}\\n\")\n"  # at once: two write there
        )
        command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
        done = installed(*command, free_port(), "script.py", COATI_EXT="1")
        assert sorted(done.stdout.split("\n"))[-2:] == [f"0 {OURS}", f"1 {OURS}"]
        # The first rank alone says so.
        assert done.stderr.count("coati-ext: distributed, eos_pooling") == 1

    def test_a_refusal_stops_the_import_every_time_and_tells_the_way_out(self, installed):
        script = textwrap.dedent(
            """
            for _ in range(2):
                try:
                    import coati
                except ImportError as error:
                    print(type(error).__name__, str(error).splitlines()[-1])
                else:
                    print("imported")
            """
        )
        done = installed("-c", script, COATI_EXT="1", COATI_EXT_SET="eos_pooling.lam=1")
        line = "RefusedError set COATI_EXT=0 to run without patches"
        assert done.stdout.strip().splitlines() == [line, line]

    def test_looking_for_coati_arms_nothing(self, installed):
        script = textwrap.dedent(
            """
            import sys
            from importlib.util import find_spec
            spec = find_spec("coati")
            assert spec.loader.is_package("coati") and spec.submodule_search_locations
            assert "coati_ext.switch" not in sys.modules and "coati" not in sys.modules
            import coati
            assert type(coati.__loader__).__name__ == "SourceFileLoader"
            assert coati.__spec__.loader is coati.__loader__
            assert "coati_ext.switch" in sys.modules
            """
        )
        installed("-c", script, COATI_EXT="1")

    def test_the_read_commands_work_under_the_flag(self, installed):
        done = installed("-m", "coati_ext", "doctor", COATI_EXT="1")
        assert done.stdout.startswith("verdict: READY. With COATI_EXT=1, ")
        script = "import sys; from coati_ext.cli import main; main(['plan'])"
        script += "; print('torch' in sys.modules)"
        done = installed("-c", script, COATI_EXT="eos_pooling")
        assert "left_padding" not in done.stdout
        assert done.stdout.splitlines()[-1] == "False"

    def test_run_arms_the_command_and_checks_first(self, installed, environment):
        command = str(Path(environment).parent / "coati-ext")

        def run(*arguments):
            return subprocess.run(
                [command, "run", *arguments],
                env=installed.environment(),
                cwd=str(installed.cwd),
                capture_output=True,
                text=True,
                check=False,
            )

        done = run("--set", "eos_pooling.pooling=masked_mean", "--", str(environment), "-c", ARMED)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == OURS
        assert re.search("coati-ext: .*, eos_pooling, .*token_saving on coati", done.stderr)
        done = run("--patch", "stable_losses", "--", str(environment), "-c", ARMED)
        assert done.stdout.strip().startswith("coati.models")
        done = run(
            "--set", "eos_pooling.pooling=median", "--", str(environment), "-c", "print('ran')"
        )
        assert done.returncode == 2
        assert "ran" not in done.stdout
        assert run("--", "no-such-command").returncode == 2
        assert run().returncode == 2
        status = run("--", str(environment), "-c", "raise SystemExit(7)").returncode
        assert status == 7

    def test_a_wheel_run_from_the_source_tree_works(self, environment):
        script = "import coati_ext.patches.eos_pooling as patch; print(patch.__file__)"
        done = subprocess.run(
            [str(environment), "-c", script],
            cwd=str(ROOT),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "eos_pooling" in done.stdout

    @pytest.mark.once(why="pytest finds an entry point alike on every stack")
    def test_pytest_takes_a_coati_without_naming_the_tests(self, installed):
        arguments = ["-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q"]
        done = subprocess.run(
            [installed.executable, *arguments, "--coati", str(standin("G2"))],
            env={**installed.environment(), "PYTHONPATH": ""},
            cwd=str(ROOT),
            capture_output=True,
            text=True,
            check=True,
        )
        fits = "tests/patching/test_steps.py::test_everything_fits_or_is_right_already"
        assert f"{fits}[G2]" in done.stdout
        assert f"{fits}[G1]" not in done.stdout


@pytest.mark.slow
def test_uninstalling_leaves_nothing(wheel, tmp_path):
    folder = tmp_path / "venv"
    pip = [sys.executable, "-m", "pip", "--python", str(new_environment(folder))]
    site = next((folder / "lib").glob("python*")) / "site-packages"
    subprocess.run([*pip, "install", "-q", "--no-deps", str(wheel)], check=True)
    assert (site / "coati_ext.pth").is_file()
    assert (site / "coati_ext.start").is_file()
    patches = site / "coati_ext" / "patches"
    assert (patches / "eos_pooling" / "__init__.py").is_file()
    assert (patches / "upstream.toml").is_file()
    assert not (site / "coati_ext" / "patches.py").exists()
    assert not (site / "patches").exists()
    subprocess.run([*pip, "uninstall", "-q", "-y", "coati-ext"], check=True)
    assert not list(site.glob("*"))


def test_a_bare_checkout_works_without_installing(python):
    script = "import coati_ext; coati_ext.enable()\n" + ARMED
    assert python.warm("-c", script).stdout.strip() == OURS


def test_the_top_level_folder_cannot_be_imported_by_its_own_name(bare_python):
    done = bare_python("-c", "import patches", check=False)
    assert "import coati_ext.patches, not patches" in done.stderr


def test_importing_the_package_imports_nothing_else(bare_python):
    script = textwrap.dedent(
        """
        import sys
        before = set(sys.modules)
        import coati_ext
        print(*sorted(set(sys.modules) - before))
        """
    )
    assert bare_python("-c", script).stdout.split() == ["__future__", "coati_ext"]


def test_missing_torch_is_told(python, tmp_path):
    script = (
        "import sys; from importlib import util\nfind = util.find_spec\n"
        "import coati_ext.switch as s\n"
        "s.find_spec = lambda name: None if name == 'torch' else find(name)\n"
        "import coati_ext; coati_ext.enable()"
    )
    done = python("-c", script, check=False)
    assert "torch is not importable by" in done.stderr


WHOLE = "from coati_ext.launch.watch import activate\nactivate()\n"


@pytest.fixture
def bare_site(tmp_path):
    """A Python whose site directory has the start-up file, and the start of a script."""
    python = new_environment(tmp_path / "venv")
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    shutil.copy(str(ROOT / "coati_ext" / "coati_ext.pth"), str(site))

    def run(script, **variables):
        environment = {"PYTHONPATH": str(standin("G4")), **variables}
        return subprocess.run(
            [str(python), "-c", script], env=environment, capture_output=True, text=True
        )

    return site, run


BROKEN = [None, "", "def", "\0", "import no_such_module\n", WHOLE]


@pytest.mark.parametrize("startup", BROKEN, ids=repr)
def test_a_start_up_file_without_its_package_stops_coati_alone(bare_site, startup):
    """As `rm -r coati_ext` leaves it, or a disk that was full."""
    site, run = bare_site
    if startup is not None:
        (site / "coati_ext").mkdir()
        (site / "coati_ext" / "__init__.py").touch()
        (site / "coati_ext" / "_startup.py").write_text(startup)
    done = run("print('ran')", COATI_EXT="1")
    assert (done.stdout, done.stderr, done.returncode) == ("ran\n", "", 0)
    for name in ("coati", "coati.models"):
        done = run(f"import {name}", COATI_EXT="1")
        assert done.returncode == 1
        told = done.stderr.splitlines()[-1]
        assert told.startswith(
            "ImportError: COATI_EXT asks for patches, but coati-ext is not whole"
        )
        assert told.endswith("install it again, or unset COATI_EXT")
    for off in ("0", "", " OFF ", "No", "false"):
        done = run("import coati, sys; print(*sys.modules)", COATI_EXT=off)
        assert done.stderr == ""
        assert "coati_ext" not in done.stdout


def test_the_start_up_file_and_the_flag_agree_about_off():
    line = (ROOT / "coati_ext" / "coati_ext.pth").read_text()
    assert line.count("\n") == 1
    assert f".strip().lower() in {flag.OFF!r} or ".replace("'", '"') in line
