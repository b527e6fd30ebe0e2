from .base import Callback

__all__ = ["Callback"]
