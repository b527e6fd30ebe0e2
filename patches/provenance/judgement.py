"""Whether a checkpoint may be loaded: how its model was trained against how this run uses it."""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any, Callable, MutableMapping, Optional, Tuple

from coati_ext import options
from coati_ext.checkpoints.stamp import FRAME, REWARD_MODEL, Stamp
from coati_ext.errors import StampError

from .this_run import form_here, is_master, rows_seen, valued

ATTRIBUTE = "coati_ext_stamp"
"""Where a loaded model keeps the stamp of its checkpoint until it is trained."""


def judge(model: Any, read: Callable[[], Tuple[Optional[Stamp], str]], source: str) -> None:
    """Let a reward model or critic have the weights of a checkpoint, or say why not.

    Args:
        model: the unwrapped model that is loaded.
        read: gives the checkpoint's stamp, or ``None`` and why there is none.
        source: the checkpoint, in words.

    Raises:
        StampError: it was trained in another form, or its stamp is corrupt, and
            ``provenance.on_mismatch`` is not ``ignore``.
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
    elif vars(model).get(ATTRIBUTE, "") is not None:  # else it was said when they came before
        _judge_unstamped(here, source, why)
    _remember(model, found)


def _judge_unstamped(here: Stamp, source: str, why: str) -> None:
    if here.kind == REWARD_MODEL and here.generation == "G1" and here.padding == FRAME["padding"]:
        _tell(
            here.kind,
            f"{source}: {why}, so upstream's G1 trained this reward model on the mean over all "
            f"columns, pads included; this run reads it otherwise: {here.form}. Re-fit its value "
            "head with `coati-ext migrate`, train it again",
        )
    elif is_master() and options("provenance").on_mismatch != "ignore":
        print(
            f"coati-ext: {source}: {why}; taken for a {here.kind} that was trained as this run "
            "uses it",
            file=sys.stderr,
        )


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
"""What takes the hook back that waits for a loaded model's first gradient."""


def _remember(model: Any, found: Optional[Stamp]) -> None:
    """Let the model keep its stamp, or its lack of one, until it is trained."""
    from torch.utils.hooks import unserializable_hook

    # As plain values, so that a pickled model needs no coati-ext.
    setattr(model, ATTRIBUTE, None if found is None else found.as_dict())
    if model in _watched:  # weights may come again and again, as in Ray
        _watched.pop(model).remove()
    owner = weakref.ref(model)

    @unserializable_hook  # type: ignore[untyped-decorator]
    def trained(gradient: object) -> None:
        vars(owner()).pop(ATTRIBUTE, None)

    trainable = (item for item in model.parameters() if item.requires_grad)
    parameter = next(trainable, None)
    if parameter is not None:
        _watched[model] = parameter.register_hook(trained)


def stamp_of(model: Any) -> Optional[Stamp]:
    """What a model was trained with: in this run, unless it was loaded and not trained since."""
    if ATTRIBUTE not in vars(model):
        return form_here(valued(model)[1])
    loaded = vars(model)[ATTRIBUTE]
    return None if loaded is None else Stamp.from_dict(loaded, "a loaded model")


def compare_rows(model: Any) -> None:
    """Compare what made the rows of a loaded model with what makes those of this run."""
    inner, kind = valued(model)
    loaded = vars(inner).get(ATTRIBUTE) if inner is not None else None
    rows = (rows_seen.end_token, rows_seen.fingerprint)
    if loaded is not None and (loaded["end_token"], loaded["tokenizer"]) != rows:
        _compare(Stamp.from_dict(loaded, "a loaded model"), form_here(kind), "a loaded model")
