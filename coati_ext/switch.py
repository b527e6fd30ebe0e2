"""Switch the patches on and off in this process.

A session is one enabled plan. Functions in modules that are already imported are patched at once,
in one transaction. The others are patched by wrapt's post-import hooks, before other code can
import their names. If one of these does not fit, all patches are undone and the import fails, so
that coati is never partly patched.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from coati_ext import active
from coati_ext.errors import AlreadyEnabledError, CoatiExtError, RefusedError
from coati_ext.launch import rank_check
from coati_ext.patching.apply import Write, apply_steps, undo
from coati_ext.patching.steps import Step
from coati_ext.patching.unreached import captured, overriding
from coati_ext.plan import Plan, make_plan
from coati_ext.report import APPLIED, OFF, PENDING, REFUSED, Report, Row
from coati_ext.settings import ConfigArgument, Layers, collect

WAY_OUT = "set COATI_EXT=0 to run without patches"

_session: Optional[_Session] = None
_lock = threading.RLock()


class _Session:
    """One enabled plan, with the ledger (the list of writes for undo)."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ledger: List[Write] = []
        self.captured: Tuple[str, ...] = ()
        self.closed = False
        self.failure: Optional[CoatiExtError] = None

    def start(self) -> None:
        """Patch the imported modules and register post-import hooks for the others."""
        waiting: Dict[str, List[Step]] = {}
        for step in self.plan.steps:
            if step.state == PENDING:
                waiting.setdefault(step.site.module, []).append(step)
        here = [name for name in waiting if name in sys.modules]
        registry = self.plan.registry
        active.put_in_force(
            self.plan.functions(),
            self.plan.settings.instances(registry.options),
            {"experience_made": registry.observer("experience_made")},
        )
        self._apply([step for name in here for step in waiting.pop(name)])
        self.captured = captured(self.ledger)
        for name in waiting:
            steps = waiting[name]
            self._once_imported(name, lambda steps=steps: self._apply(steps))  # type: ignore[misc]
        if self.plan.settings.rank_check.value:
            self._check_ranks()

    def _check_ranks(self) -> None:
        """Compare plans with the other ranks, now and at each ``init_process_group``."""
        digest, limit = self.plan.digest, self.plan.settings.rank_check.value

        def watch() -> None:
            writes = rank_check.writes(digest, limit)
            for write in writes:
                write.do()
            self.ledger += writes

        if rank_check.HOME not in sys.modules:
            self._once_imported(rank_check.HOME, watch)
            return
        watch()
        rank_check.compare(digest, limit)

    def _once_imported(self, name: str, work: Callable[[], None]) -> None:
        import wrapt

        def hook(module: ModuleType) -> None:
            # wrapt cannot unregister a hook, so the hook of a closed session does nothing.
            with _lock:
                if self.failure is not None:
                    raise self.failure
                if not self.closed:
                    try:
                        work()
                    except Exception as error:
                        self._fail(error)

        wrapt.register_post_import_hook(hook, name)

    def _apply(self, steps: List[Step]) -> None:
        modules = {step.site.module: sys.modules[step.site.module] for step in steps}
        self.ledger += apply_steps(steps, modules)
        for step in steps:
            row = Row(step.patch, APPLIED, step.site.target, step.reason)
            self.plan.registry.observer("patch_applied")(row=row)

    def _fail(self, error: Exception) -> None:
        kind = "" if isinstance(error, CoatiExtError) else f"{type(error).__name__}: "
        self.failure = RefusedError(f"{kind}{error}\n{WAY_OUT}")
        self.stop()
        raise self.failure from error

    def stop(self) -> None:
        """Restore the original functions."""
        undo(self.ledger)
        self.ledger.clear()
        self.closed = True
        active.put_in_force({}, {}, {})

    def report(self) -> Report:
        """The plan as a report, with what has been patched so far."""
        targets = {step.site.target for step in self.plan.steps}
        written = tuple(write.where for write in self.ledger)
        notes = tuple(
            f"rebound {where}"
            for where in written
            if where not in targets and not where.startswith(rank_check.HOME)
        )
        return self.plan.report(written, (*notes, *overriding(self.ledger), *self.captured))


def enable(config: ConfigArgument = None) -> Report:
    """Switch the patches on in this process, before or after coati was imported.

    Args:
        config: ``None`` to read the environment and the files in the working directory, the path
            of a configuration file, or a mapping of the same shape.

    Returns:
        A report of what was patched. A second call with the same plan changes nothing.

    Raises:
        ConfigError: the settings are wrong.
        PluginError: a plugin is broken.
        CoatiNotFoundError: there is no coati here.
        RefusedError: upstream's code is not what a patch was written for.
        AlreadyEnabledError: another plan is already enabled.
    """
    global _session
    with _lock:
        plan = make_plan(config)
        if plan.layers.killed:
            return _off(plan, "COATI_EXT says off")
        plan.check()
        _require_torch()
        if _session is not None:
            if _session.failure is not None:
                raise _session.failure
            if _session.plan.digest != plan.digest:
                raise AlreadyEnabledError(_differences(_session.plan, plan))
            return _session.report()
        session = _Session(plan)
        try:
            session.start()
        except BaseException:
            session.stop()
            raise
        _session = session
        return session.report()


def disable() -> None:
    """Switch the patches off and restore the original functions.

    Raises:
        DisturbedError: something else has overwritten a patched function; nothing is undone.
    """
    global _session
    with _lock:
        if _session is not None:
            _session.stop()
            _session.failure = None
            _session = None


def status() -> Report:
    """A report of the enabled plan. If none is, every patch is ``off``, or ``refused``."""
    with _lock:
        return _session.report() if _session is not None else _off(make_plan(), "not enabled")


def layers_in_force() -> Layers:
    """The settings layers of the enabled plan, or those that :func:`enable` would read."""
    with _lock:
        return _session.plan.layers if _session is not None else collect()


@contextmanager
def applied(config: ConfigArgument = None) -> Iterator[Report]:
    """Run a block with the patches on. Switch them off afterwards, unless they were on before."""
    was_on = _session is not None
    report = enable(config)
    try:
        yield report
    finally:
        if not was_on:
            disable()


def arm() -> None:
    """Enable the patches from the environment at the first import of coati, or stop that import.

    Raises:
        ImportError: the patches cannot be enabled; the message says how to run without them.
    """
    if _session is not None:
        return
    try:
        report = enable()
    except CoatiExtError as error:
        raise RefusedError(f"{error}\n{WAY_OUT}") from None
    if os.environ.get("RANK", "0") == "0":  # one line per job, not per rank
        print(report.headline, file=sys.stderr)


def _require_torch() -> None:
    if "torch" not in sys.modules and find_spec("torch") is None:
        raise RefusedError(
            f"torch is not importable by {sys.executable}, so coati cannot be either: install the "
            "torch that your coati was written for"
        )


def _off(plan: Plan, reason: str) -> Report:
    report = plan.report()
    rows = tuple(
        row if row.state in (OFF, REFUSED) else Row(row.name, OFF, row.target, reason)
        for row in report.patches
    )
    return Report(report.generation, rows, report.digest)


def _differences(old: Plan, new: Plan) -> str:
    before, after = _facts(old), _facts(new)
    lines = [
        f"  {key}: {before.get(key, 'absent')} in force, {after.get(key, 'absent')} asked for"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    return "\n".join(
        ["coati-ext is already enabled with another plan; call disable() first.", *lines]
    )


def _facts(plan: Plan) -> Dict[str, str]:
    facts = {f"{name}.enabled": str(item.value) for name, item in plan.settings.enabled.items()}
    for section, values in plan.settings.sections.items():
        facts.update({f"{section}.{key}": str(item.value) for key, item in values.items()})
    facts.update({f"use.{hook}": item.name for hook, item in plan.choices.items()})
    facts.update({step.site.target: step.fingerprint for step in plan.steps})
    facts["digest"] = plan.digest
    facts["policy"] = plan.settings.policy.value
    facts["generation"] = str(plan.coati and plan.coati.generation)
    return facts
