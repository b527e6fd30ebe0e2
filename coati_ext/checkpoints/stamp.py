"""Stamps: metadata in a checkpoint that says how its reward model or critic was trained.

A stamp is stored in one of two places. In the ``_metadata`` of a state dict it survives
``torch.save`` and ``load_state_dict`` and adds no key. Formats without metadata (safetensors,
shards) get a file beside the checkpoint. That file records the seals of the weights (``seal``), so
that it is ignored if they have changed. Both carry a checksum of themselves, which those of 0.3.0
lack.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, TypedDict

from coati_ext._files import read_text
from coati_ext._json import parse_json
from coati_ext.checkpoints import atomic, seal
from coati_ext.errors import StampError, shown


class Layout(TypedDict):
    """How rows are padded, and what counts their positions."""

    padding: str
    position_ids: str


KEY = "coati_ext"
FILE = "coati_ext.stamp.json"
REWARD_MODEL = "reward model"
CRITIC = "critic"
EOS = "eos"
MEAN_POOLED = "mean over all columns"
FRAME: Layout = {"padding": "left", "position_ids": "from the mask"}
"""Padding and position ids of rows in a frame, the left-padded batch layout."""
_CHECKSUM = "checksum"
_WITHOUT_CHECKSUM = ("0.3.0",)
"""The releases whose stamps have none."""
_MOST = 1 << 24
"""Bytes of a stamp file, which has a line for each file of weights."""
LOADED = "coati_ext_stamp"
"""The attribute that holds the stamp of a loaded model, as a dict or ``None``, until its first
gradient."""
SOURCE = "coati_ext_checkpoint"
"""The attribute that holds the name of the checkpoint of that stamp."""
MOMENTS = "coati_ext_reward_moments"
"""The attribute of a critic and its reward model that holds the ``tensors.reward_moments`` of all
rollouts, by which rewards are scaled."""
RUNNING = "rollouts"


@dataclass(frozen=True)
class Scale:
    """What is taken off rewards, and what they are divided by."""

    mean: float
    spread: float
    count: int
    """How many rewards these were measured on."""
    source: str
    """A fingerprint of the reference answers, or ``RUNNING``."""

    def as_dict(self) -> Dict[str, str]:
        """The fields as texts: ``weights_only`` loading of torch 1.13 knows no fraction."""
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: object, source: str) -> Scale:
        """The inverse of :meth:`as_dict`.

        Raises:
            StampError: the content is not one.
        """
        names = [item.name for item in fields(cls)]
        if isinstance(content, Mapping) and all(type(content.get(name)) is str for name in names):
            mean, spread, count, measured = (content[name] for name in names)
            with suppress(ValueError):
                scale = cls(float(mean), float(spread), int(count), measured)
                if math.isfinite(scale.mean) and 0 < scale.spread < math.inf:
                    return scale
        raise _corrupt(source, f"expected a scale of {', '.join(names)}, found {shown(content)}")


@dataclass(frozen=True)
class Stamp:
    """How the rows of a model were pooled, padded and tokenized, and by which coati and plan."""

    kind: str
    """``REWARD_MODEL`` or ``CRITIC``."""
    pooling: str
    """Which hidden states the value head scores: ``EOS``, ``MEAN_POOLED`` or a plugin's name."""
    padding: str
    """That of ``FRAME``, or ``as it comes``."""
    position_ids: str
    """Those of ``FRAME``, or ``by column``."""
    end_token: Optional[int]
    """Id of the token at the end of a row; ``None`` if unknown."""
    tokenizer: str
    """See :func:`tokenizer_fingerprint`; empty if unknown."""
    generation: str
    """``G1`` to ``G4``."""
    version: str
    """Of coati-ext."""
    digest: str
    """Of the enabled plan."""
    scale: Optional[Scale] = None
    """Of a calibrated reward model, or of the rewards that a critic has learnt from."""

    def as_dict(self) -> Dict[str, Any]:
        """The fields as strings and one number, which ``weights_only`` loading accepts."""
        content = asdict(self)
        del content["scale"]  # none is as before there were any
        return content if self.scale is None else {**content, "scale": self.scale.as_dict()}

    @classmethod
    def from_dict(cls, content: object, source: str) -> Stamp:
        """The inverse of :meth:`as_dict`.

        Raises:
            StampError: the content is not a stamp.
        """
        names = {item.name for item in fields(cls)} - {"scale"}
        if not isinstance(content, Mapping) or not names <= set(content):
            raise _corrupt(source, f"expected {', '.join(sorted(names))}, found {shown(content)}")
        values = {name: content[name] for name in names}
        end_token = values["end_token"]
        texts = [value for name, value in values.items() if name != "end_token"]
        number = isinstance(end_token, int) and not isinstance(end_token, bool)
        if not all(isinstance(text, str) for text in texts) or not (end_token is None or number):
            raise _corrupt(source, f"a value of another type in {shown(values)}")
        scale = Scale.from_dict(content["scale"], source) if "scale" in content else None
        return cls(**values, scale=scale)

    def differences(self, other: Stamp) -> List[str]:
        """The names of the fields in which the training differed. Unknown values are not compared.

        Pooling is compared only between models of the same kind, because a critic may be
        initialised from a reward model.
        """
        names = ["padding", "position_ids", "end_token", "tokenizer"]
        if self.kind == other.kind:
            names.insert(0, "pooling")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [
            name
            for name, mine, theirs in pairs
            if mine != theirs and not {mine, theirs} & {None, ""}
        ]

    @property
    def form(self) -> str:
        """Pooling, padding, position ids, end token and tokenizer as one text."""
        return (
            f"pooling {self.pooling}, padding {self.padding}, position ids {self.position_ids}, "
            f"end token {'unknown' if self.end_token is None else self.end_token}, tokenizer "
            f"{self.tokenizer or 'unknown'}"
        )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash (12 hexadecimal digits) of vocabulary, BOS and EOS; empty without ``get_vocab``.

    The pad token, even an added one, and the padding side do not count: they do not affect a
    masked result, and scripts change them freely.
    """
    if not hasattr(tokenizer, "get_vocab"):
        return ""
    vocabulary = {
        token: number
        for token, number in tokenizer.get_vocab().items()
        if token != tokenizer.pad_token or number < tokenizer.vocab_size
    }
    content = [sorted(vocabulary.items()), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def running_scale(model: Any) -> Optional[Scale]:
    """By what the rewards of the last rollout were scaled, if a critic has learnt from such."""
    moments = vars(model).get(MOMENTS)
    if moments is None:
        return None
    from coati_ext import tensors

    mean, spread = tensors.mean_and_spread(moments)
    return Scale(float(mean), float(spread), int(moments[0]), RUNNING)


def put(state_dict: Any, stamp: Stamp, prefix: str = "") -> None:
    """Write a stamp into the metadata of a state dict, without adding a key.

    Args:
        state_dict: from ``module.state_dict()``, or any ``OrderedDict``.
        stamp: what to write.
        prefix: the key prefix of the stamped module, without the last dot.
    """
    if not hasattr(state_dict, "_metadata"):
        state_dict._metadata = {}
    state_dict._metadata.setdefault(prefix, {})[KEY] = _signed(stamp.as_dict())


def of_metadata(metadata: Mapping[str, Any], source: str) -> Optional[Stamp]:
    """The stamp in the state-dict metadata of one module, or ``None``.

    Raises:
        StampError: it is corrupt.
    """
    return _checked(metadata[KEY], source) if KEY in metadata else None


def file_of(checkpoint: Path) -> Path:
    """The stamp file of a checkpoint, which is in its folder or beside its file."""
    return checkpoint / FILE if checkpoint.is_dir() else _file_beside(checkpoint)


def remove(checkpoint: Path) -> None:
    """Delete the stamp file of a checkpoint before its weights are overwritten."""
    for file in (checkpoint / FILE, _file_beside(checkpoint)):
        if file.is_file() or file.is_symlink():
            file.unlink()


def traces(checkpoint: Path) -> Dict[str, Tuple[int, int]]:
    """Size and modification time of each weight file, to detect whether it was rewritten."""
    states = {file.name: file.stat() for file in seal.weights_of(checkpoint)}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


def write(checkpoint: Path, stamp: Stamp) -> None:
    """Write a stamp file atomically beside weights that are completely written.

    Args:
        checkpoint: a file of weights, or a folder of them.
        stamp: what to write.
    """
    seals = seal.seals_of(seal.weights_of(checkpoint))
    text = json.dumps(_signed({**stamp.as_dict(), "weights": seals}), indent=2) + "\n"
    atomic.put(file_of(checkpoint), partial(Path.write_text, data=text, encoding="utf-8"))


def read(checkpoint: Path) -> Tuple[Optional[Stamp], str]:
    """The stamp of a checkpoint, or ``None``, and what is to be said of it or why there is none.

    Args:
        checkpoint: a file of weights, a folder of them, or the index in that folder.

    Raises:
        StampError: the stamp is corrupt.
    """
    if checkpoint.name.endswith(".index.json"):
        checkpoint = checkpoint.parent
    file = file_of(checkpoint)
    try:
        text = read_text(file, _MOST)
    except FileNotFoundError:
        inside = _inside(checkpoint)
        return inside, "it carries no stamp" if inside is None else ""
    except ValueError as error:
        raise _corrupt(str(file), str(error)) from error
    stamp, seals = _parsed(text, str(file))
    if seal.fit(seals, seal.weights_of(checkpoint)):
        return stamp, _SAMPLED_SEAL if seal.sampled(seals) else ""
    # Other weights may have been saved over those, with a stamp inside. If it is the same stamp,
    # the weights may as well have been altered.
    inside = _inside(checkpoint)
    if inside is not None and inside != stamp:
        return inside, ""
    return None, f"{file} is the stamp of other weights"


_SAMPLED_SEAL = (
    "its stamp was sealed by coati-ext 0.3.0, which hashed samples of the weights: changes between "
    "them go unnoticed, until it is saved again"
)


def _parsed(text: str, source: str) -> Tuple[Stamp, Dict[str, str]]:
    """The stamp and the seals in the text of a stamp file."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise _corrupt(source, str(error)) from error
    stamp = _checked(content, source)
    seals = content.get("weights")
    texts = isinstance(seals, dict) and all(isinstance(item, str) for item in seals.values())
    if not texts or not seal.known(seals):
        raise _corrupt(source, f"expected the seal of each file of weights, found {shown(seals)}")
    if not seal.sampled(seals) and _CHECKSUM not in content:
        raise _corrupt(source, "its checksum is missing")
    return stamp, seals


def _signed(content: Dict[str, Any]) -> Dict[str, Any]:
    return {**content, _CHECKSUM: _sum(content)}


def _sum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checked(content: object, source: str) -> Stamp:
    """The stamp in its stored form, whose checksum is right; old ones have none."""
    stamp = Stamp.from_dict(content, source)
    assert isinstance(content, Mapping)
    rest = {key: value for key, value in content.items() if key != _CHECKSUM}
    if _CHECKSUM in content:
        try:
            right = content[_CHECKSUM] == _sum(rest)
        except (ValueError, TypeError, RecursionError):  # no content of ours
            right = False
        if not right:
            raise _corrupt(source, "its checksum is that of another stamp")
    elif stamp.version not in _WITHOUT_CHECKSUM or not set(rest) <= {*stamp.as_dict(), "weights"}:
        raise _corrupt(source, "its checksum is missing")
    return stamp


def _inside(file: Path) -> Optional[Stamp]:
    """The stamp in the metadata of a state dict saved by ``torch.save``, or ``None``."""
    if file.suffix == ".safetensors" or not file.is_file():
        return None
    import torch

    # mmap avoids reading the weights; old torch lacks it.
    mapped = {"mmap": True} if "mmap" in signature(torch.load).parameters else {}
    try:
        content = torch.load(str(file), map_location="cpu", weights_only=True, **mapped)
    except Exception:  # loading the weights will raise a clearer error
        return None
    metadata = getattr(content, "_metadata", {})
    entries = list(metadata.values()) if isinstance(metadata, Mapping) else []
    stamps = [of_metadata(item, str(file)) for item in entries if isinstance(item, Mapping)]
    return next((stamp for stamp in stamps if stamp is not None), None)


def _file_beside(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.{FILE}")


def _corrupt(source: str, what: str) -> StampError:
    return StampError(
        f"the stamp of how a model was trained is corrupt in {source}: {what}. If you trust the "
        "weights, remove the stamp, or set provenance.on_mismatch = ignore"
    )
