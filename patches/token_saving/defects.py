"""No defects: upstream's numbers are right here, they only cost more."""

from __future__ import annotations

from typing import Tuple

from coati_ext import Defect

DEFECTS: Tuple[Defect, ...] = ()
