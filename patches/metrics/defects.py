"""No defects: what upstream logs is not wrong, but says too little."""

from __future__ import annotations

from typing import Tuple

from coati_ext import Defect

DEFECTS: Tuple[Defect, ...] = ()
