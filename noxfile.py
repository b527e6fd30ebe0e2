"""Everything that a change must pass: `nox` runs it all, `nox -s lint` one part of it."""

import nox

nox.options.default_venv_backend = "venv"  # virtualenv no longer makes Python 3.8 environments
nox.options.sessions = ["lint", "types", "current", "old"]
# A machine without one of the interpreters is told so, and runs the rest.
nox.options.error_on_missing_interpreters = False

CURRENT = (
    *("torch==2.13.0", "transformers==4.51.3", "setuptools<81"),
    *("psutil", "peft", "einops", "galore_torch"),  # what importing colossalai needs
    "ray==2.60.0",
)


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    session.install("ruff==0.17.6")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python="3.11")
def types(session: nox.Session) -> None:
    session.install("mypy==2.4.1", "torch==2.13.0", "pluggy", "rich", "wrapt", "packaging")
    session.run("mypy")


@nox.session(python="3.11")
def current(session: nox.Session) -> None:
    """The newest stack that coati HEAD runs on."""
    stack(session, *CURRENT, colossalai="0.5.0")
    test(session)


@nox.session(python="3.8")
def old(session: nox.Session) -> None:
    """The stack of coati's first two generations."""
    stack(
        session,
        *["torch==1.13.1", "transformers==4.31.0", "setuptools<70", "psutil"],
        "ray==2.10.0",
        colossalai="0.3.6",
    )
    test(session)


@nox.session(python="3.11")
def mutation(session: nox.Session) -> None:
    """How many small changes of the code the tests notice; takes an hour, and is no gate."""
    stack(session, *CURRENT, "cosmic-ray==8.7.0", "pytest-cov>=6", colossalai="0.5.0")
    arguments = session.posargs or ["--out", ".nox/mutation-results"]
    session.run("python", "maintenance/mutation.py", *arguments, env={"OMP_NUM_THREADS": "1"})


def stack(session: nox.Session, *packages: str, colossalai: str) -> None:
    """Install what the tests need."""
    launchers = ["click", "fabric"]  # what `colossalai run` needs
    session.install(".[test]", *packages, *launchers, "wheel")
    # Its own requirements would move torch, and its build looks for the torch that is installed.
    session.install("--no-deps", "--no-build-isolation", f"colossalai=={colossalai}")


def test(session: nox.Session) -> None:
    arguments = session.posargs or ["-n", "auto"]
    session.run("python", "-m", "pytest", *arguments, env={"OMP_NUM_THREADS": "1"})
