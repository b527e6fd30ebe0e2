"""No defect to measure: ``doctor --live`` shows what the default patches repair, this one is off.

What it is for is D32 of ``docs/defects.md``, which ``benchmarks/reward_level.py`` measures.
"""

from __future__ import annotations

from typing import Tuple

from coati_ext import Defect

DEFECTS: Tuple[Defect, ...] = ()
