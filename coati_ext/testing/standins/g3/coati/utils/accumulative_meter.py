from __future__ import annotations

from typing import Dict, List


class AccumulativeMeanMeter:
    """Running means by name; a name must have been added once before it can be read."""

    def __init__(self) -> None:
        self._totals: Dict[str, List[float]] = {}

    def add(self, name: str, value: float, count_update: int = 1) -> None:
        total = self._totals.setdefault(name, [0.0, 0])
        total[0] += value
        total[1] += count_update

    def get(self, name: str) -> float:
        value, count = self._totals[name]
        return value / count if count > 0 else 0

    def reset(self) -> None:
        for total in self._totals.values():
            total[:] = [0.0, 0]
