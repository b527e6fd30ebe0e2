from __future__ import annotations

from .ddp import DDPStrategy


class LowLevelZeroStrategy(DDPStrategy): ...


class GeminiStrategy(DDPStrategy): ...
