"""The log of a trainer: its sums since they were last written, and how they are written.

A write is one sum over all ranks and, on the rank that has the log, one read from the device.
"""

from __future__ import annotations

import logging
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional
from weakref import WeakKeyDictionary

from coati_ext import options

from .curves import curves_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)
Sums = Dict[str, "Tensor"]
_logs: WeakKeyDictionary[Any, Log] = WeakKeyDictionary()


class Log:
    """What is to be written of a trainer."""

    def __init__(self, trainer: Any, device: torch.device) -> None:
        from coati_ext.rollout import ranks

        self.sums: Sums = {}
        self.updates = 0
        """How many updates of the weights have been seen."""
        self._writer = getattr(trainer, "writer", None) or _own_writer(trainer)
        self.wanted = ranks.smallest(int(self._writer is None), device) == 0
        """Whether any rank has a log; all ranks agree."""
        if not self.wanted:
            logger.info(
                "metrics writes no curves of %s, which has no log on any rank: start it with a "
                "log_dir, or set metrics.folder",
                type(trainer).__name__,
            )
        self._every = getattr(trainer, "accumulation_steps", 1)
        self._steps = 0

    def step(self, more: Mapping[str, Tensor]) -> None:
        """Add the sums of a training step, and write all if an update ends with it."""
        add(self.sums, more)
        self._steps += 1
        if self._steps % self._every == 0:
            self.updates += 1
            self.write(self.sums)
            self.sums = {}

    def write(self, sums: Mapping[str, Tensor]) -> None:
        """Write the curves of these sums over all ranks, which all have to call this."""
        import torch

        from coati_ext.rollout import host, ranks

        names = sorted(sums)
        total = ranks.total(torch.cat([sums[name] for name in names]))
        if self._writer is None:
            return
        numbers = iter(host.read(total).tolist())
        for name in names:
            stage, kind = name.split("/")
            part = list(islice(numbers, sums[name].numel()))
            for curve, value in curves_of(kind, part).items():
                if value == value:
                    self._writer.add_scalar(f"{stage}/{curve}", value, self.updates)


def log_of(trainer: Any, device: torch.device) -> Log:
    """The log of a trainer; made when its first step is seen, on all ranks at once."""
    if trainer not in _logs:
        _logs[trainer] = Log(trainer, device)
    return _logs[trainer]


def add(sums: Sums, more: Mapping[str, Tensor]) -> None:
    """Add sums to others of the same names."""
    for name, item in more.items():
        sums[name] = sums[name] + item if name in sums else item


def _own_writer(trainer: Any) -> Optional[Any]:
    """A log below ``metrics.folder``, on the first rank; as upstream's, for each run its own."""
    from coati_ext.rollout import ranks

    folder = options("metrics").folder
    if not (folder and ranks.is_first()):
        return None
    from torch.utils.tensorboard import SummaryWriter

    run = time.strftime("%Y-%m-%d_%H-%M-%S")
    return SummaryWriter(str(Path(folder, type(trainer).__name__, run)))
