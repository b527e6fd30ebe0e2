"""Switch the patches on and off in this process.

A session is one enabled plan. Functions in modules that are already imported are patched at once.
The others are patched when their module has been executed, before other code can import its names,
each time that it is executed. If one of these does not fit, all patches are undone and the import
fails, so that coati is never partly patched.

An exception can come from anywhere: Ctrl-C, a plugin, another patcher. So nothing depends on a
handler, which may not have run. A session is known before its first write, and is ``whole`` only
from the end of a change to the beginning of the next. One that is found otherwise was interrupted:
no module of coati can be imported, and the next :func:`enable` or :func:`disable` gives back what
it still holds.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType, ModuleType
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from coati_ext import active
from coati_ext.errors import (
    AlreadyEnabledError,
    CoatiExtError,
    DisturbedError,
    PluginError,
    RefusedError,
)
from coati_ext.implementations import OBSERVERS
from coati_ext.launch import imports, rank_check
from coati_ext.launch.flag import kills
from coati_ext.patching.apply import (
    Write,
    described,
    give_back,
    way_back,
    write_all,
    writes_for,
    written,
)
from coati_ext.patching.steps import Step
from coati_ext.patching.unreached import captured, overriding
from coati_ext.plan import Plan, make_plan
from coati_ext.report import APPLIED, OFF, PENDING, REFUSED, Report, Row
from coati_ext.settings import ConfigArgument, Layers, collect

WAY_OUT = "set COATI_EXT=0 to run without patches"
INTERRUPTED = (
    "patching was interrupted, and what was patched has been or will be given back: call "
    "coati_ext.enable() to patch again, or coati_ext.disable() to go on without patches"
)

_session: Optional[_Session] = None
_lock = threading.RLock()


class _Session:
    """One enabled plan, with the ledger (the list of writes for undo)."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.before = imports.guard()
        self.ledger: List[Write] = []
        self.captured: Tuple[str, ...] = ()
        self.steps: Dict[str, List[Step]] = {}
        for step in plan.steps:
            if step.state == PENDING:
                self.steps.setdefault(step.site.module, []).append(step)
        self.whole = False
        """Whether the patches are all in force, and no change is under way or was interrupted."""
        self.failure: Optional[CoatiExtError] = None
        self.interrupted = False
        """Whether the failure says nothing about coati, so that ``enable`` may try again."""

    def start(self) -> None:
        """Patch the imported modules, and wait for the others.

        Raises:
            RefusedError: an imported module does not fit, or is being imported right now.
            RankError: another rank of the running group has another plan.
        """
        imports.put(self)  # first, since another thread may import one of them meanwhile
        for name in self.steps:
            module = sys.modules.get(name)
            if imports.being_executed(module) and not imports.under_guard(module):
                raise RefusedError(
                    f"{name} is being imported right now: call coati_ext.enable() before or after"
                )
        here = [name for name in self.steps if _executed(name)]
        registry, enabled = self.plan.registry, self.plan.settings.enabled
        off = [name for name, on in enabled.items() if not on.value]
        active.put_in_force(
            self.plan.functions(),
            self.plan.settings.instances(registry.options),
            {hook: registry.observer(hook, off) for hook in OBSERVERS},
        )
        self._apply([step for name in here for step in self.steps[name]])
        self.captured = captured(self.ledger)
        if self._limit and rank_check.HOME in sys.modules:
            self._watch_ranks()
            rank_check.compare(self.word(), self._limit)
        self._raise_failure()
        self.whole = True

    def wants(self, name: str) -> bool:
        """Whether an import is shown to this session: of any coati, or of a patched module."""
        return name.split(".")[0] == "coati" or name in self.steps or name == rank_check.HOME

    def load(self, module: ModuleType, execute: Callable[[], None], again: bool) -> None:
        """Execute a module and patch it, or fail its import.

        Raises:
            RefusedError: the module does not fit, or the session has failed before.
        """
        with _lock:
            self.require_sound()
        if again:
            self._load_again(module.__name__, execute)
            return
        execute()
        with _lock:
            _came(module.__name__)

    def came(self, name: str) -> None:
        """Patch a module that has been executed."""
        self.require_sound()
        try:
            self._patch(name)
        except BaseException as error:
            self._fail(error)
            raise

    def _load_again(self, name: str, execute: Callable[[], None]) -> None:
        """Execute and patch a module which stays imported if that fails, in part unpatched."""
        was, self.whole = self.whole, False
        try:
            execute()
            with _lock:
                _came(name)
        except BaseException as error:
            if _session is self:
                self._fail(error)
            raise
        self.whole = was

    def patch_again(self) -> None:
        """Patch what has become upstream's function again since it was patched.

        Raises:
            RefusedError: something else has overwritten a patch.
        """
        self._raise_failure()
        lost = self._lost() if self.whole else {}
        steps = [step for name in self.steps for step in self.steps[name]]
        try:
            self._apply([step for step in steps if step.site.target in lost])
        except BaseException as error:
            if not self.whole:
                self._fail(error)
            raise

    def _patch(self, name: str) -> None:
        if self._limit and name == rank_check.HOME:
            self._watch_ranks()
        self._apply(self.steps.get(name, []))

    def _apply(self, steps: Sequence[Step]) -> None:
        self._write(writes_for(steps, {name: sys.modules[name] for name in _modules_of(steps)}))
        for step in steps:
            row = Row(step.patch, APPLIED, step.site.target, step.reason)
            active.announce("patch_applied", row=row)

    def _watch_ranks(self) -> None:
        """Compare plans with the other ranks at each ``init_process_group``."""
        ours = [write.new for write in self.ledger]
        writes = rank_check.writes(self.word, self._limit)
        self._write([write for write in writes if write.old not in ours])

    def _write(self, writes: Sequence[Write]) -> None:
        self._raise_failure()  # of an import within this one, whose error somebody has caught
        was, self.whole = self.whole, False
        write_all(writes, self.ledger)
        self.whole = was

    @property
    def _limit(self) -> float:
        limit: float = self.plan.settings.rank_check.value
        return limit

    @property
    def sound(self) -> bool:
        """Whether it is whole, or on its way there further up this thread's stack."""
        return self.failure is None and (self.whole or _changes_under_way() > 0)

    def require_sound(self) -> None:
        """Raise if this session has failed or was interrupted."""
        self._raise_failure()
        if not self.sound:
            raise RefusedError(INTERRUPTED)

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _fail(self, error: BaseException) -> None:
        """Give everything back, and let no module of coati be imported from now on."""
        self.whole = False
        if self.failure is None:
            self.interrupted = not isinstance(error, Exception)
            kind = "" if isinstance(error, CoatiExtError) else f"{type(error).__name__}: "
            told = INTERRUPTED if self.interrupted else f"{kind}{error}\n{WAY_OUT}"
            self.failure = RefusedError(told)
        try:
            self.stop()
        except DisturbedError as disturbed:
            self.failure = RefusedError(f"{self.failure}\n{disturbed}")
        if not self.interrupted and error is not self.failure:
            # Our own words are in the failure's already, and would be printed twice.
            raise self.failure from (None if isinstance(error, CoatiExtError) else error)

    def settle(self) -> None:
        """Give back what an interrupt has left, and make way for another session.

        Raises:
            RefusedError: this session was refused, and stays so until :func:`disable`.
        """
        if self.whole:
            return
        self.stop()
        if not self.interrupted:
            self._raise_failure()
        _end(self.before)

    def stop(self) -> None:
        """Give the original functions back; again, after an interrupt.

        Raises:
            DisturbedError: something else has overwritten a patched function; nothing is undone.
        """
        back = way_back(self.ledger)
        self.whole = False
        for slot in back:
            give_back(*slot)
        active.put_in_force({}, {}, {})
        self.ledger.clear()

    def word(self) -> str:
        """What the other ranks have to have, too: the digest, and the patches that are lost."""
        return " without ".join([self.plan.digest, *sorted(self._lost())])

    def _lost(self) -> Dict[str, str]:
        """The targets in imported modules that the patches are not in force on, and why."""
        lost = {}
        for name, steps in self.steps.items():
            for step in steps if _executed(name) else ():
                write = written(step, self.ledger)
                if write is None:
                    lost[step.site.target] = (
                        "its module was executed again unseen by coati-ext, and holds upstream's "
                        "function: call coati_ext.enable() again"
                    )
                elif not write.in_force:
                    lost[step.site.target] = f"overwritten: it is now {described(write.held)}"
        return lost

    def report(self) -> Report:
        """The plan as a report, with what is patched now."""
        lost = self._lost()
        steps = [step for name in self.steps if _executed(name) for step in self.steps[name]]
        patched = tuple(step.site.target for step in steps if step.site.target not in lost)
        mine = [write for write in self.ledger if write.in_force]
        targets = {step.site.target for step in self.plan.steps}
        ours = {id(write.new) for write in self.ledger}
        notes = [
            f"rebound {write.where}"
            for write in mine
            if write.where not in targets and not write.where.startswith(rank_check.HOME)
        ]
        notes += [
            f"{write.where} is wrapped by {described(write.held)}"
            for write in mine
            if id(write.held) not in ours
        ]
        notes += [*overriding(mine), *self.captured]
        try:
            active.announce("report_made", note=notes.append)
        except PluginError as error:  # what is in force is told all the same
            notes.append(str(error))
        report = self.plan.report(patched, tuple(dict.fromkeys(notes)), in_force=self.sound)
        state, reason = REFUSED, ""
        if not self.sound:
            state = REFUSED if self.failure is not None and not self.interrupted else OFF
            reason = str(self.failure or INTERRUPTED).splitlines()[0]
        rows = tuple(
            dataclasses.replace(row, state=state, reason=reason or lost[row.target])
            if row.target in lost or (reason and row.state == PENDING)
            else row
            for row in report.patches
        )
        return dataclasses.replace(report, patches=rows)


def enable(config: ConfigArgument = None) -> Report:
    """Switch the patches on in this process, before or after coati was imported.

    Args:
        config: ``None`` to read the environment and the files in the working directory, the path
            of a configuration file, or a mapping of the same shape.

    Returns:
        A report of what was patched. A second call with the same plan changes nothing, but for
        functions that are upstream's again: they are patched again.

    Raises:
        ConfigError: the settings are wrong.
        PluginError: a plugin is broken.
        CoatiNotFoundError: there is no coati here.
        RefusedError: upstream's code is not what a patch was written for, or something else has
            changed it.
        AlreadyEnabledError: another plan is already enabled.
        DisturbedError: an earlier call was interrupted, and what it left cannot be undone.
    """
    global _session
    with _lock:
        if _session is not None and _changes_under_way() == 1:
            _session.settle()
        try:
            plan = make_plan(config)
        except CoatiExtError as error:
            if not kills(os.environ.get("COATI_EXT", "")):
                raise
            off = Report(None, (), "", (f"COATI_EXT says off; without it: {error}",))
            return _session.report() if _session else off
        if plan.layers.killed:
            return _session.report() if _session else _off(plan, "COATI_EXT says off")
        plan.check()
        _require_torch()
        if _session is not None:
            if _session.plan.digest != plan.digest:
                raise AlreadyEnabledError(_differences(_session.plan, plan))
            _session.patch_again()
            return _session.report()
        _session = session = _Session(plan)
        try:
            session.start()
        except BaseException:
            _end(session.before)
            raise
        return session.report()


def disable() -> None:
    """Switch the patches off and restore the original functions.

    Raises:
        DisturbedError: something else has overwritten a patched function; nothing is undone.
    """
    with _lock:
        _end(None)


def _came(name: str) -> None:
    """Show an executed module to the session, which its own code may have ended or begun."""
    if _session is not None:
        _session.came(name)


def _end(guard: Optional[imports.Guard]) -> None:
    """Give everything back, imports to another guard included."""
    global _session
    if _session is not None:
        _session.stop()
    imports.put(guard)
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
    was_on = _session is not None and _session.sound
    report = enable(config)
    guard = imports.guard() if _session is None else _session.before
    try:
        yield report
    finally:
        if not was_on:
            with _lock:
                _end(guard)


def arm() -> None:
    """Enable the patches from the environment at the first import of coati, or stop that import.

    Raises:
        ImportError: the patches cannot be enabled; the message says how to run without them.
    """
    if _changes_under_way() or (_session is not None and _session.sound):
        return
    try:
        report = enable()
    except CoatiExtError as error:
        raise RefusedError(f"{error}\n{WAY_OUT}") from None
    if os.environ.get("RANK", "0") == "0":  # one line per job, not per rank
        print(report.headline, file=sys.stderr)


def _changes_under_way() -> int:
    """How many changes of the patches this thread is in: a plugin may import coati meanwhile.

    The stack tells, and not a counter, which an interrupt could leave too high.
    """
    changes = (enable.__code__, _Session._load_again.__code__)
    frame: Optional[FrameType] = sys._getframe()
    count = 0
    while frame is not None:
        count += frame.f_code in changes
        frame = frame.f_back
    return count


def _executed(name: str) -> bool:
    """Whether a module is imported, and not only being so."""
    module = sys.modules.get(name)
    return module is not None and not imports.being_executed(module)


def _modules_of(steps: Sequence[Step]) -> List[str]:
    return sorted({step.site.module for step in steps})


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
