from .base import DDPStrategy, GeminiStrategy, LowLevelZeroStrategy, Strategy

__all__ = ["DDPStrategy", "GeminiStrategy", "LowLevelZeroStrategy", "Strategy"]
