"""No sites: this patch changes no upstream function, it observes what the other patches do."""

from __future__ import annotations

from typing import Tuple

from coati_ext import Reliance, Site

SITES: Tuple[Site, ...] = ()
RELIES: Tuple[Reliance, ...] = ()
