"""No sites: this patch changes no upstream function, but what the other patches ask a model."""

from __future__ import annotations

from typing import Tuple

from coati_ext import Reliance, Site

SITES: Tuple[Site, ...] = ()
RELIES: Tuple[Reliance, ...] = ()
