"""A reward model says in its checkpoint how it was trained, and is not used in another way.

A value head fitted to the mean over all columns gives numbers at EOS too, only meaningless ones,
and nothing in upstream tells (ColossalAI #4475). What a reward model or critic was trained with is
stamped when it is saved and compared when it is loaded: in a state dict's metadata, and beside the
files of a ``Booster``, which every ``Strategy`` and ``save_checkpoint`` of coati goes through.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, MutableMapping, Optional, Tuple

import coati_ext
from coati_ext import Defect, Patch, Site, hookimpl, option, options
from coati_ext.checkpoints import stamp
from coati_ext.checkpoints.stamp import CRITIC, EOS, FRAME, MEAN_POOLED, REWARD_MODEL, Stamp
from coati_ext.errors import StampError
from coati_ext.report import OFF
from coati_ext.rollout.models import layers_of

_KINDS = {"RewardModel": REWARD_MODEL, "Critic": CRITIC}
_AS_UPSTREAM = {"padding": "as it comes", "position_ids": "by column"}
_ATTRIBUTE = "coati_ext_stamp"


@dataclass(frozen=True)
class Options:
    """``[provenance]``."""

    on_mismatch: str = option(
        "error",
        "what to do when a reward model was trained in another form than it would be used in: "
        "error, warn or ignore (a critic, which is trained further, only ever warns)",
        choices=("error", "warn", "ignore"),
    )


# --- the form of this run --------------------------------------------------------------------


@dataclass
class _Rows:
    """What last made rows for coati in this process."""

    tokenizer: Any = None
    end_token: Optional[int] = None
    fingerprint: str = ""


_rows = _Rows()


def see(tokenizer: Any) -> None:
    """Remember what makes the rows, for the stamps of this process; ``None`` tells nothing."""
    if tokenizer is not None and _rows.tokenizer is not tokenizer:
        _rows.tokenizer = tokenizer
        _rows.end_token = tokenizer.eos_token_id
        _rows.fingerprint = stamp.tokenizer_fingerprint(tokenizer)


def form_here(kind: str) -> Stamp:
    """The form in which a model of that kind sees its rows in this run."""
    report = coati_ext.status()
    on = {row.name for row in report.patches if row.state != OFF}
    generation = str(report.generation)
    first = generation == "G1"
    framed = ("eos_pooling" if kind == REWARD_MODEL else "rollout") in on
    if kind == REWARD_MODEL:
        pooling = MEAN_POOLED if first else EOS
        pooling = options("eos_pooling").pooling if framed else pooling
    else:
        pooling = MEAN_POOLED if first else "at each token"
        pooling = "before each token" if framed else pooling
    return Stamp(
        kind=kind,
        pooling=pooling,
        **(FRAME if framed else _AS_UPSTREAM),
        end_token=_rows.end_token,
        tokenizer=_rows.fingerprint,
        generation=generation,
        version=coati_ext.__version__,
        digest=report.digest,
    )


def valued(model: Any) -> Tuple[Any, str]:
    """The reward model or critic of coati inside any wrappers, and which of the two; or nothing."""
    for layer in layers_of(model):
        for cls in type(layer).__mro__:
            if cls.__module__.split(".")[0] == "coati" and cls.__name__ in _KINDS:
                return layer, _KINDS[cls.__name__]
    return None, ""


# --- saving ----------------------------------------------------------------------------------


def save_to_state_dict(
    original: Callable[..., None], self: Any, destination: Any, prefix: str, keep_vars: bool
) -> None:
    """Write the stamp beside the version that torch keeps of each module."""
    original(self, destination, prefix, keep_vars)
    current = _stamp_of(self)
    if current is not None and hasattr(destination, "_metadata"):
        stamp.put(destination, current, prefix[:-1])


def save_model(
    original: Callable[..., Any], self: Any, model: Any, checkpoint: Any, *args: Any, **kwargs: Any
) -> Any:
    """Save through a Booster; at no moment does a stamp lie beside weights that it is not of."""
    inner, _ = valued(model)
    if inner is None or not _is_master():
        return original(self, model, checkpoint, *args, **kwargs)
    path = Path(checkpoint)
    stamp.remove(path)
    before = stamp.traces(path)
    result = original(self, model, checkpoint, *args, **kwargs)
    if hasattr(self.checkpoint_io, "_sync_io"):  # use_async: the weights must be there
        self.checkpoint_io._sync_io()
    current = _stamp_of(inner)
    # Upstream only logs that it wrote nothing, as when a file stands where a folder should.
    if current is not None and stamp.traces(path) != before:
        stamp.write(path, current)
    return result


def _stamp_of(model: Any) -> Optional[Stamp]:
    """What a model was trained with: in this run, unless it was loaded and not trained since."""
    if _ATTRIBUTE not in vars(model):
        return form_here(valued(model)[1])
    loaded = vars(model)[_ATTRIBUTE]
    return None if loaded is None else Stamp.from_dict(loaded, "a loaded model")


# --- loading ---------------------------------------------------------------------------------

_judged = False


@contextmanager
def _already_judged() -> Iterator[None]:
    global _judged
    before, _judged = _judged, True
    try:
        yield
    finally:
        _judged = before


def load_from_state_dict(
    original: Callable[..., None],
    self: Any,
    state_dict: Any,
    prefix: str,
    local_metadata: Mapping[str, Any],
    *args: Any,
) -> None:
    """Compare the stamp before any weight is taken over.

    G2's training script saves the model inside its DDP or ZeRO wrapper, and its PPO script loads
    that with ``strict=False``: nothing of it, since every key begins with the wrapper's name. Those
    names are taken off first.
    """
    wrapper = _unwrap(self, state_dict, prefix)
    if not _judged:
        source = "a state dict"
        metadata = getattr(state_dict, "_metadata", {}).get(wrapper, {}) if wrapper else {}
        judge(
            self,
            lambda: (
                stamp.of_metadata(metadata or local_metadata, source),
                "it carries no stamp",
            ),
            source,
        )
    original(self, state_dict, prefix, local_metadata, *args)


def _unwrap(model: Any, state_dict: Any, prefix: str) -> str:
    """Take off the names of wrappers that all keys begin with; the names, without the last dot."""
    wrapped = prefix
    while state_dict and all(key.startswith(f"{wrapped}module.") for key in state_dict):
        wrapped += "module."
    if wrapped == prefix or hasattr(model, "module"):
        return ""
    for key in list(state_dict):
        state_dict[prefix + key[len(wrapped) :]] = state_dict.pop(key)
    return wrapped[:-1]


def load_model(
    original: Callable[..., Any], self: Any, model: Any, checkpoint: Any, *args: Any, **kwargs: Any
) -> Any:
    """Load through a Booster, having compared the stamp before any weight is taken over."""
    inner, _ = valued(model)
    if inner is None:
        return original(self, model, checkpoint, *args, **kwargs)
    judge(inner, lambda: stamp.read(Path(checkpoint)), str(checkpoint))
    with _already_judged():
        return original(self, model, checkpoint, *args, **kwargs)


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
    elif vars(model).get(_ATTRIBUTE, "") is not None:  # else it was said when they came before
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
    elif _is_master() and options("provenance").on_mismatch != "ignore":
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
    setattr(model, _ATTRIBUTE, None if found is None else found.as_dict())
    if model in _watched:  # weights may come again and again, as in Ray
        _watched.pop(model).remove()
    owner = weakref.ref(model)

    @unserializable_hook  # type: ignore[untyped-decorator]
    def trained(gradient: object) -> None:
        vars(owner()).pop(_ATTRIBUTE, None)

    trainable = (item for item in model.parameters() if item.requires_grad)
    parameter = next(trainable, None)
    if parameter is not None:
        _watched[model] = parameter.register_hook(trained)


# --- the rows --------------------------------------------------------------------------------


def reward_dataset(
    original: Callable[..., None],
    self: Any,
    dataset: Any,
    tokenizer: Any,
    *args: Any,
    **kwargs: Any,
) -> None:
    """See the tokenizer of a reward model's training rows, in G1 and G2."""
    see(tokenizer)
    original(self, dataset, tokenizer, *args, **kwargs)


def reward_trainer(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """See the tokenizer of a reward model's training rows, in G3 and G4."""
    original(self, *args, **kwargs)
    see(self.tokenizer)
    _compare_rows(self.model)


def make_experience(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """See what ends a row in PPO before the reward model scores one."""
    see(getattr(self, "tokenizer", None))
    if not hasattr(self, "tokenizer") and "eos_token_id" in kwargs:  # G1's maker has only ids
        _rows.end_token = kwargs["eos_token_id"]
    _compare_rows(self.reward_model)
    return original(self, *args, **kwargs)


def _compare_rows(model: Any) -> None:
    """Compare what made the rows of a loaded model with what makes those of this run."""
    inner, kind = valued(model)
    loaded = vars(inner).get(_ATTRIBUTE) if inner is not None else None
    rows = (_rows.end_token, _rows.fingerprint)
    if loaded is not None and (loaded["end_token"], loaded["tokenizer"]) != rows:
        _compare(Stamp.from_dict(loaded, "a loaded model"), form_here(kind), "a loaded model")


def _is_master() -> bool:
    from coati_ext.rollout import ranks

    return ranks.is_first()


# --- the patch -------------------------------------------------------------------------------


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[provenance]``."""
    register("provenance", Options)


def _sites() -> Iterator[Site]:
    everywhere = ("G1", "G2", "G3", "G4")
    ours = "coati_ext.patches.provenance:"
    booster = "colossalai.booster.booster:Booster."
    for name in ("save_model", "load_model"):
        yield Site(
            booster + name,
            ours + name,
            everywhere,
            mode="wrap",
            takes=("model", "checkpoint"),
            optional=True,  # coati's models and makers also run where there is no colossalai
        )
    for module, generations in (
        ("coati.models.base.reward_model:RewardModel", ("G1", "G2")),
        ("coati.models.base.critic:Critic", ("G1", "G2")),
        ("coati.models.reward_model:RewardModel", ("G3", "G4")),
        ("coati.models.critic:Critic", ("G3", "G4")),
    ):
        for name in ("save_to_state_dict", "load_from_state_dict"):
            yield Site(f"{module}._{name}", ours + name, generations, mode="extend")
    for name in ("RmStaticDataset", "HhRlhfDataset"):
        yield Site(
            f"coati.dataset.reward_dataset:{name}.__init__",
            ours + "reward_dataset",
            ("G1", "G2"),
            mode="wrap",
            takes=("dataset", "tokenizer"),
        )
    yield Site(
        "coati.trainer.rm:RewardModelTrainer.__init__",
        ours + "reward_trainer",
        ("G3", "G4"),
        mode="wrap",
        takes=("model", "tokenizer"),
    )
    yield Site(
        "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
        ours + "make_experience",
        everywhere,
        mode="wrap",
        takes=("input_ids",),
    )


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="provenance",
            summary="a checkpoint says how its reward model was trained; no other use of it",
            default=True,
            after=("left_padding", "rollout", "stable_losses"),
            changes=(
                "No number of a run that used its reward model as it was trained. Saving a reward "
                "model or critic stamps it with its pooling, padding, position ids, end token, "
                "tokenizer, generation and plan; loading a reward model of another form is an "
                "error. State-dict keys stay as they are. Weights that were saved inside a "
                "wrapper, as by G2's script, are loaded instead of ignored."
            ),
            reference="ColossalAI #4475, #3492",
            sites=tuple(_sites()),
        )
    )


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    register(
        Defect(
            "lost weights",
            "provenance",
            "share of a reward model's weights lost when it was saved inside a DDP wrapper",
            ("G2",),
            "coati_ext.patches.provenance:measure_lost_weights",
        )
    )
    register(
        Defect(
            "other forms",
            "provenance",
            "reward models of another form (pooling, end token, tokenizer) loaded without a word",
            ("G1", "G2", "G3", "G4"),
            "coati_ext.patches.provenance:measure_other_forms",
        )
    )


def measure_other_forms() -> float:
    """How many of three reward models of another form load."""
    from coati_ext.testing import tiny_reward_model, tiny_tokenizer

    see(tiny_tokenizer())
    patched = Stamp(
        kind=REWARD_MODEL,
        pooling=EOS,
        **FRAME,
        end_token=_rows.end_token,
        tokenizer=_rows.fingerprint,
        generation="G1",
        version="",
        digest="",
    )
    model = tiny_reward_model("gpt2")
    loaded = 0
    for other in (
        replace(patched, pooling=MEAN_POOLED),
        replace(patched, end_token=3),
        replace(patched, tokenizer="another"),
    ):
        weights = model.state_dict()
        stamp.put(weights, other)
        try:
            model.load_state_dict(weights)
        except StampError:
            continue
        loaded += 1
    return float(loaded)


def measure_lost_weights() -> float:
    """The share of the weights that do not arrive on G2's way from training to PPO."""
    import torch

    from coati_ext.testing import tiny_reward_model

    saved = tiny_reward_model("gpt2").state_dict()
    model = tiny_reward_model("gpt2", seed=1)
    own = model.state_dict()
    differing = [key for key, value in own.items() if not torch.equal(value, saved[key])]
    model.load_state_dict({f"module.module.{k}": v for k, v in saved.items()}, strict=False)
    lost = [key for key in differing if not torch.equal(model.state_dict()[key], saved[key])]
    return len(lost) / len(differing)
