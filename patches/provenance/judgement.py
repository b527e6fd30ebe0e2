"""Decide whether a checkpoint may be loaded: compare its stamp with the settings of this run."""

from __future__ import annotations

import sys
import warnings
import weakref
from dataclasses import replace
from typing import Any, Callable, MutableMapping, Optional, Set, Tuple

from coati_ext import options
from coati_ext.checkpoints.stamp import (
    CRITIC,
    FRAME,
    LOADED,
    REWARD_MODEL,
    SOURCE,
    Stamp,
    running_scale,
)
from coati_ext.errors import StampError

from .this_run import form_here, is_master, rows_seen, valued

_of_reward_models: Set[str] = set()
"""The checkpoints that reward models of this process were loaded from."""


def judge(model: Any, read: Callable[[], Tuple[Optional[Stamp], str]], source: str) -> None:
    """Compare a checkpoint's stamp with this run: return, warn or raise; the model keeps the stamp.

    Args:
        model: the unwrapped model that is loaded.
        read: returns the checkpoint's stamp, or ``None``, and what is to be said of it or why
            there is none.
        source: the name of the checkpoint, for messages.

    Raises:
        StampError: a reward model was trained with another pooling, padding or tokenizer and
            ``provenance.on_mismatch`` is ``error``, or the stamp is corrupt and it is not
            ``ignore``.
    """
    try:
        found, why = read()
    except StampError:
        if options("provenance").on_mismatch != "ignore":
            raise
        found, why = None, "its stamp is corrupt"
    here = form_here(valued(model)[1])
    if found is not None:
        _compare(found, here, source)
        if why:
            _note(f"{source}: {why}")
    elif vars(model).get(LOADED, "") is not None:  # None: already reported for this model
        _judge_unstamped(here, source, why)
    if here.kind == REWARD_MODEL:
        _of_reward_models.add(source)
    _remember(model, found, source)


def _judge_unstamped(here: Stamp, source: str, why: str) -> None:
    framed = here.padding == FRAME["padding"]
    if here.kind == REWARD_MODEL and here.generation == "G1" and framed:
        _tell(
            here.kind,
            f"{source}: {why}, so upstream's G1 trained this reward model on the mean over all "
            f"columns, pads included; this run reads it otherwise: {here.form}. Re-fit its value "
            "head with `coati-ext migrate`, train it again",
        )
    elif here.kind == CRITIC and framed:
        if source not in _of_reward_models:
            _judge_unstamped_critic(here.generation, source, why)
    else:
        _note(f"{source}: {why}; taken for a {here.kind} that was trained as this run uses it")


def _judge_unstamped_critic(generation: str, source: str, why: str) -> None:
    late = generation in ("G3", "G4")
    learnt = (
        "returns that grow with the length of the answer, and values one token late, and PPO that "
        "goes on from there can collapse"
        if late
        else "the value of a finished answer, where this run asks for the value before it"
    )
    line = (
        f"{source}: {why}, so it is a reward model or a critic of a run without coati-ext. A "
        f"critic may start from a reward model. Such a critic has learnt {learnt}: start from the "
        "reward model instead"
    )
    if late:
        _tell(CRITIC, line)
    else:
        _note(line)


def _note(line: str) -> None:
    if is_master() and options("provenance").on_mismatch != "ignore":
        print(f"coati-ext: {line}", file=sys.stderr)


def _compare(found: Stamp, here: Stamp, source: str) -> None:
    different = found.differences(here)
    if different:
        _tell(
            here.kind,
            f"{source}: this {found.kind} was trained in another form ({', '.join(different)}).\n"
            f"  trained with: {found.form} ({found.generation}, coati-ext {found.version}, plan "
            f"{found.digest})\n"
            f"  used here as: {here.form}\n"
            "Use the settings and the tokenizer that it was trained with, train it again",
        )


def _tell(kind: str, message: str) -> None:
    mode = options("provenance").on_mismatch
    if mode == "error" and kind == REWARD_MODEL:
        raise StampError(f"{message}, or set provenance.on_mismatch = warn")
    if mode != "ignore":
        warnings.warn(message, stacklevel=2)


_watched: MutableMapping[Any, Any] = weakref.WeakKeyDictionary()
"""By loaded model, the handle of the hook that waits for its first gradient."""


def _remember(model: Any, found: Optional[Stamp], source: str) -> None:
    """Store the stamp, or ``None``, and its source on the model until its first gradient."""
    from torch.utils.hooks import unserializable_hook

    # As a dict, so that a pickled model needs no coati-ext.
    setattr(model, LOADED, None if found is None else found.as_dict())
    setattr(model, SOURCE, source)
    if model in _watched:  # with Ray, a model is loaded repeatedly
        _watched.pop(model).remove()
    owner = weakref.ref(model)

    @unserializable_hook  # type: ignore[untyped-decorator]
    def trained(gradient: object) -> None:
        for name in (LOADED, SOURCE):
            vars(owner()).pop(name, None)

    trainable = (item for item in model.parameters() if item.requires_grad)
    parameter = next(trainable, None)
    if parameter is not None:
        _watched[model] = parameter.register_hook(trained)


def stamp_of(model: Any) -> Optional[Stamp]:
    """The stamp to save: that of this run, or the loaded one if not trained since loading."""
    if LOADED not in vars(model):
        current = form_here(valued(model)[1])
    elif vars(model)[LOADED] is None:
        return None
    else:
        current = Stamp.from_dict(vars(model)[LOADED], _source_of(model))
    scale = running_scale(model) if current.kind == CRITIC else None
    return current if scale is None else replace(current, scale=scale)


def compare_rows(model: Any) -> None:
    """Compare the EOS token and tokenizer of a loaded model with those of this run."""
    inner, kind = valued(model)
    loaded = vars(inner).get(LOADED) if inner is not None else None
    rows = (rows_seen.end_token, rows_seen.fingerprint)
    if loaded is not None and (loaded["end_token"], loaded["tokenizer"]) != rows:
        source = _source_of(inner)
        _compare(Stamp.from_dict(loaded, source), form_here(kind), source)


def _source_of(model: Any) -> str:
    # A model that an older version has pickled has a stamp without a source.
    return str(vars(model).get(SOURCE, "a loaded model"))
