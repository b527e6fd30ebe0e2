"""Whether tensor code waits for the device."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class HostReads(TorchDispatchMode):
    """Counts the operations that would stall a CUDA stream."""

    NAMES = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "index.Tensor",
        "item",
        "is_nonzero",
    )

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.NAMES):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))
