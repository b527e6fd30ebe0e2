from .accumulative_meter import AccumulativeMeanMeter
from .ckpt_io import save_checkpoint

__all__ = ["AccumulativeMeanMeter", "save_checkpoint"]
