"""Everything that a change must pass: `nox` runs it all, `nox -s lint` one part of it."""

import os

import nox

nox.options.default_venv_backend = "venv"  # virtualenv no longer makes Python 3.8 environments
nox.options.sessions = ["lint", "types", "docs", "current", "old"]
# A machine without one of the interpreters is told so, and runs the rest.
nox.options.error_on_missing_interpreters = False
# Of some ten thousand modules of torch, transformers and Ray a run imports a tenth. Those are
# compiled once, when they are first imported, whatever the machine's environment says.
UNCOMPILED = ["--no-compile"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}

RUFF = "ruff==0.17.6"
CURRENT = (
    *("torch==2.13.0", "transformers==4.51.3", "setuptools<81"),
    *("psutil", "peft", "einops", "galore_torch"),  # what importing colossalai needs
    "ray==2.60.0",
)


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    session.install(RUFF, "import-linter==2.17")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "pyproject.toml")


@nox.session(python="3.11")
def types(session: nox.Session) -> None:
    packages = ["mypy==2.4.1", "torch==2.13.0", "numpy", "pluggy", "rich", "packaging"]
    session.install(*UNCOMPILED, *packages)
    session.run("mypy")


@nox.session(python="3.11")
def docs(session: nox.Session) -> None:
    """The site: a link or an anchor that leads nowhere and a page outside the nav are errors."""
    session.install(*UNCOMPILED, ".[docs]", RUFF)  # which wraps long signatures
    session.run("mkdocs", "build", "--strict", "--site-dir", session.create_tmp())


@nox.session(python="3.11")
def current(session: nox.Session) -> None:
    """The newest stack that coati HEAD runs on."""
    stack(session, *CURRENT, colossalai="0.5.0")
    test(session)


@nox.session(python="3.11", reuse_venv=True)
def quick(session: nox.Session) -> None:
    """For the inner loop: every room in two minutes, by turns on the generations and families."""
    session.env.update(ENVIRONMENT)
    session.install(*UNCOMPILED, ".[test]", "torch==2.13.0", "transformers==4.51.3")
    test(session, "--quick")


@nox.session(python="3.8")
def old(session: nox.Session) -> None:
    """The stack of coati's first two generations, and what may depend on a stack."""
    stack(
        session,
        *["torch==1.13.1", "transformers==4.31.0", "setuptools<70", "psutil"],
        *["peft==0.7.1", "accelerate==0.25.0", "ray==2.10.0"],
        colossalai="0.3.6",
    )
    # No coati of G4 runs on a torch before 2. What it alone has is for Python 3.8 to run, too.
    test(session, "-m", "not once", "--but", "G4")


@nox.session(python="3.11")
def upstream(session: nox.Session) -> None:
    """Record trees of upstream: `nox -s upstream -- v0.5.2=PATH`; see maintenance/upstream.py."""
    session.install("-e", ".")
    session.run("python", "maintenance/upstream.py", *session.posargs)


@nox.session(python="3.11")
def theirs(session: nox.Session) -> None:
    """Upstream's own tests, flag off beside flag on: `nox -s theirs -- --coati PATH`; no gate."""
    more = ["datasets", "jsonlines", "sentencepiece", "protobuf", "tensorboard", "wandb", "jinja2"]
    stack(session, *CURRENT, *more, colossalai="0.5.0")
    session.run("python", "maintenance/theirs.py", *session.posargs)


@nox.session(python="3.11")
def attack(session: nox.Session) -> None:
    """Every fault, kill and fuzzed input, of which `current` runs a sample; no gate."""
    stack(session, *CURRENT, colossalai="0.5.0")
    test(session, "-m", "attack", "--full")


@nox.session(python="3.11")
def mutation(session: nox.Session) -> None:
    """How many small changes of the code the tests notice; takes an hour, and is no gate."""
    stack(session, *CURRENT, "cosmic-ray==8.7.0", "pytest-cov>=6", colossalai="0.5.0")
    arguments = session.posargs or ["--out", ".nox/mutation-results"]
    session.run("python", "maintenance/mutation.py", *arguments)


def stack(session: nox.Session, *packages: str, colossalai: str) -> None:
    """Install what the tests need."""
    session.env.update(ENVIRONMENT)
    launchers = ["click", "fabric"]  # what `colossalai run` needs
    session.install(*UNCOMPILED, ".[test]", *packages, *launchers, "wheel")
    # Its own requirements would move torch, and its build looks for the torch that is installed.
    alone = ["--no-deps", "--no-build-isolation"]
    session.install(*UNCOMPILED, *alone, f"colossalai=={colossalai}")


def test(session: nox.Session, *selection: str) -> None:
    # One more than there are cores: many tests wait for processes that they started.
    arguments = session.posargs or ["-n", str((os.cpu_count() or 1) + 1)]
    session.run("python", "-m", "pytest", *selection, *arguments)
