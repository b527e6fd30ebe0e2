"""What a reward model or critic was trained with, and where a checkpoint says so.

A stamp lives in two places. In the ``_metadata`` of a state dict it survives ``torch.save`` and
``load_state_dict`` and adds no key. Beside a checkpoint, as a file of its own, it serves the
formats that keep no metadata (safetensors, shards); there it names the weights that it was written
for by their seal, so that it never speaks for others.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from coati_ext.checkpoints import atomic
from coati_ext.errors import StampError

KEY = "coati_ext"
FILE = "coati_ext.stamp.json"
REWARD_MODEL = "reward model"
CRITIC = "critic"
EOS = "eos"
MEAN_POOLED = "mean over all columns"
FRAME = {"padding": "left", "position_ids": "from the mask"}
"""The form of rows in one left-padded frame."""
_WEIGHTS = (".bin", ".pt", ".pth", ".safetensors", ".index.json")
_BLOCK = 1 << 16
_BLOCKS = 64


@dataclass(frozen=True)
class Stamp:
    """The form in which a model saw its rows, and who gave it that form."""

    kind: str
    """``REWARD_MODEL`` or ``CRITIC``."""
    pooling: str
    """What the value head scores: ``EOS``, ``MEAN_POOLED``, a plugin's name."""
    padding: str
    """That of ``FRAME``, or ``as it comes``."""
    position_ids: str
    """Those of ``FRAME``, or ``by column``."""
    end_token: Optional[int]
    """Id of the token that ended a row; ``None`` where nobody said."""
    tokenizer: str
    """See :func:`tokenizer_fingerprint`; empty where no tokenizer was seen."""
    generation: str
    """``G1`` to ``G4``."""
    version: str
    """Of coati-ext."""
    digest: str
    """Of the plan in force."""

    def as_dict(self) -> Dict[str, Any]:
        """Texts and a number, which every format and ``weights_only`` loading can carry."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: object, source: str) -> Stamp:
        """The stamp that ``as_dict`` was made of.

        Raises:
            StampError: it is none.
        """
        names = {item.name for item in fields(cls)}
        if not isinstance(content, Mapping) or not names <= set(content):
            raise _corrupt(source, f"expected {sorted(names)}, found {content!r}"[:300])
        values = {name: content[name] for name in names}
        end_token = values["end_token"]
        texts = [value for name, value in values.items() if name != "end_token"]
        if not all(isinstance(text, str) for text in texts) or not (
            end_token is None or isinstance(end_token, int)
        ):
            raise _corrupt(source, f"a value of another type in {values!r}"[:300])
        return cls(**values)

    def differences(self, other: Stamp) -> List[str]:
        """The fields in which another stamp tells of another form; unknown values differ from none.

        How values are pooled is compared between models of one kind only: a critic may start from
        a reward model.
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
        """The form in words."""
        return (
            f"pooling {self.pooling}, padding {self.padding}, position ids {self.position_ids}, "
            f"end token {'unknown' if self.end_token is None else self.end_token}, tokenizer "
            f"{self.tokenizer or 'unknown'}"
        )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """12 hexadecimal digits that tell tokenizers apart by what they make of a text, if they can.

    Which token pads, even one added for it, and on which side do not count: masks keep pads out of
    every number, and scripts choose them as they need.
    """
    if not hasattr(tokenizer, "get_vocab"):  # nothing to tell it by
        return ""
    vocabulary = {
        token: number
        for token, number in tokenizer.get_vocab().items()
        if token != tokenizer.pad_token or number < tokenizer.vocab_size
    }
    content = [sorted(vocabulary.items()), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def put(state_dict: Any, stamp: Stamp, prefix: str = "") -> None:
    """Write a stamp into the metadata of a state dict, whose keys stay as they are.

    Args:
        state_dict: from ``module.state_dict()``, or any ``OrderedDict``.
        stamp: what to write.
        prefix: of the stamped module's own keys, without the last dot.
    """
    if not hasattr(state_dict, "_metadata"):
        state_dict._metadata = {}
    state_dict._metadata.setdefault(prefix, {})[KEY] = stamp.as_dict()


def of_metadata(metadata: Mapping[str, Any], source: str) -> Optional[Stamp]:
    """The stamp in one module's part of a state dict's metadata, or ``None``.

    Raises:
        StampError: it is corrupt.
    """
    return Stamp.from_dict(metadata[KEY], source) if KEY in metadata else None


def remove(checkpoint: Path) -> None:
    """Take away the file that speaks for a checkpoint, before its weights are written anew."""
    for file in (checkpoint / FILE, _file_beside(checkpoint)):
        if file.is_file():
            file.unlink()


def traces(checkpoint: Path) -> Dict[str, Tuple[int, int]]:
    """Size and time of each file of weights, by which to tell whether they were written anew."""
    states = {file.name: file.stat() for file in _weights(checkpoint)}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


def write(checkpoint: Path, stamp: Stamp) -> None:
    """Write a stamp beside weights that are complete, at once or not at all.

    Args:
        checkpoint: a file of weights, or a folder of them.
        stamp: what to write.
    """
    content = {**stamp.as_dict(), "weights": _seals(checkpoint)}
    text = json.dumps(content, indent=2) + "\n"
    atomic.put(_home(checkpoint), partial(Path.write_text, data=text, encoding="utf-8"))


def read(checkpoint: Path) -> Tuple[Optional[Stamp], str]:
    """The stamp of a checkpoint, or ``None`` and why there is none.

    Args:
        checkpoint: a file of weights, a folder of them, or the index in that folder.

    Raises:
        StampError: the stamp is corrupt.
    """
    if checkpoint.name.endswith(".index.json"):
        checkpoint = checkpoint.parent
    file = _home(checkpoint)
    why = "it carries no stamp"
    if file.is_file():
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON and of UTF-8
            raise _corrupt(str(file), str(error)) from error
        stamp = Stamp.from_dict(content, str(file))
        if content.get("weights") == _seals(checkpoint):
            return stamp, ""
        why = f"{file} is the stamp of other weights"
    return (_inside(checkpoint), why) if checkpoint.is_file() else (None, why)


def _inside(file: Path) -> Optional[Stamp]:
    """The stamp in the metadata of a file that ``torch.save`` wrote of a state dict."""
    if file.suffix == ".safetensors":
        return None
    import torch

    # Without reading the weights, where this torch can.
    mapped = {"mmap": True} if "mmap" in signature(torch.load).parameters else {}
    try:
        content = torch.load(str(file), map_location="cpu", weights_only=True, **mapped)
    except Exception:  # whoever loads the weights tells better what is wrong with them
        return None
    metadata: Mapping[str, Any] = getattr(content, "_metadata", {})
    stamps = [of_metadata(item, str(file)) for item in metadata.values()]
    return next((stamp for stamp in stamps if stamp is not None), None)


def _home(checkpoint: Path) -> Path:
    return checkpoint / FILE if checkpoint.is_dir() else _file_beside(checkpoint)


def _file_beside(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.{FILE}")


def _seals(checkpoint: Path) -> Dict[str, str]:
    """Of each file of weights, its size and a hash of blocks from all over it."""
    return {file.name: _seal(file) for file in _weights(checkpoint)}


def _weights(checkpoint: Path) -> List[Path]:
    if checkpoint.is_dir():
        return sorted(file for file in checkpoint.iterdir() if file.name.endswith(_WEIGHTS))
    return [checkpoint] if checkpoint.is_file() else []


def _seal(file: Path) -> str:
    size = file.stat().st_size
    last = max(0, size - _BLOCK)
    starts = sorted({last * part // (_BLOCKS - 1) for part in range(_BLOCKS)})
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for start in starts:
            stream.seek(start)
            digest.update(stream.read(_BLOCK))
    return f"{size}-{digest.hexdigest()[:16]}"


def _corrupt(source: str, what: str) -> StampError:
    return StampError(
        f"the stamp of how a model was trained is corrupt in {source}: {what}. If you trust the "
        "weights, remove the stamp, or set provenance.on_mismatch = ignore"
    )
