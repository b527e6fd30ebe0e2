from .accumulative_meter import AccumulativeMeanMeter
from .ckpt_io import load_checkpoint, save_checkpoint

__all__ = ["AccumulativeMeanMeter", "load_checkpoint", "save_checkpoint"]
