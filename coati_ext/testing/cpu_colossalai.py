"""Run ColossalAI's plugins on CPU processes in a gloo group, for tests.

with cpu_only(), cpu_plugins():
    booster = Booster(plugin=LowLevelZeroPlugin(stage=2, precision="fp32"))
    model, optimizer, *_ = booster.boost(model, optimizer)

This bypasses ColossalAI's GPU-only checks, CUDA streams and device names. None of them affects the
numbers.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from importlib import import_module
from typing import Any, Iterator, List, Sequence, Tuple, Type
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

_COLLECTIVES = ("all_gather", "all_reduce", "broadcast", "reduce", "_broadcast_coalesced")


class _Stream:
    """A CUDA stream that does nothing: on the CPU everything runs in order."""

    def wait_stream(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


_STREAMS = {
    "Stream": lambda *_, **__: _Stream(),
    "current_stream": lambda *_, **__: _Stream(),
    "stream": lambda *_, **__: nullcontext(),
    "synchronize": lambda *_, **__: None,
    "empty_cache": lambda *_, **__: None,
    "set_device": lambda *_, **__: None,
}


@contextmanager
def cpu_plugins() -> Iterator[None]:
    """Let ColossalAI's plugins run on the CPU; undone on exit.

    They are TorchDDPPlugin, LowLevelZeroPlugin, GeminiPlugin, and from colossalai 0.3.7 on the
    tensor parallelism of HybridParallelPlugin.

    Create and use plugins inside this context, in processes of a gloo group. LowLevelZero takes any
    optimizer, Gemini one of :func:`gemini_optimizer`. Gemini needs ``placement_policy="static"``
    (in old releases "cpu") and, where the option exists, ``enable_async_reduce=False``. With torch
    1.13 a CPU cannot multiply in fp16.

    Raises:
        ModuleNotFoundError: colossalai is not installed.
    """
    import_module("colossalai")
    with ExitStack() as stack:

        def replace(owner: Any, **attributes: Any) -> None:
            for name, value in attributes.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))

        replace(torch.cuda, **_STREAMS)
        replace(dist, is_hccl_available=lambda: False)  # of another torch, asked by pipelines
        replace(Tensor, record_stream=lambda self, stream: None, cuda=_same)
        replace(nn.Module, cuda=_same)
        if torch.__version__ < "2":  # gloo of torch 1.13 lacks some operations and dtypes
            replace(dist, reduce_scatter=_reduce_scatter)
            replace(dist, **{name: _widened(getattr(dist, name)) for name in _COLLECTIVES})
        _replace_accelerator(replace)
        zero = import_module("colossalai.zero.low_level.low_level_optim").LowLevelZeroOptimizer
        replace(zero, _sanity_checks=lambda self: None)
        chunks = import_module("colossalai.zero.gemini.chunk.chunk").Chunk
        replace(chunks, shard_move=_shard_moves(chunks))
        yield


@lru_cache(maxsize=None)
def gemini_optimizer(base: Type[Optimizer]) -> Type[Optimizer]:
    """Return a subclass of a torch optimizer that Gemini accepts in place of its own Adam.

    Its step divides gradients by ``div_scale`` and casts them to the dtype of the parameters.
    """

    class Scaled(base):  # type: ignore[misc, valid-type]
        num_fp32_shards_per_param = 4

        def step(self, closure: Any = None, div_scale: float = -1) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        gradient = parameter.grad.to(parameter.dtype)
                        parameter.grad = gradient / div_scale if div_scale > 0 else gradient
            return super().step(closure)

    import_module("colossalai.zero.gemini.gemini_optimizer")._AVAIL_OPTIM_LIST.add(Scaled)
    Scaled.__name__ = Scaled.__qualname__ = f"Gemini{base.__name__}"
    return Scaled


def _same(self: Any, *_: Any, **__: Any) -> Any:
    return self


def _reduce_scatter(
    output: Tensor,
    inputs: Sequence[Tensor],
    op: Any = dist.ReduceOp.SUM,
    group: Any = None,
    **_: Any,
) -> None:
    """``reduce_scatter``, which gloo of torch 1.13 lacks."""
    total = torch.stack(list(inputs))
    dist.all_reduce(total, op=op, group=group)
    output.copy_(total[dist.get_rank(group)])


def _widened(collective: Any) -> Any:
    """A collective that works around gloo of torch 1.13, which supports neither bf16 nor bool and
    cannot write to inference tensors. Such tensors are copied, and the results copied back.
    """

    def widened(*args: Any, **kwargs: Any) -> Any:
        sent: List[Tuple[Tensor, Tensor]] = []

        def wide(given: Any) -> Any:
            if isinstance(given, (list, tuple)):
                return [wide(item) for item in given]
            narrow = isinstance(given, Tensor) and given.dtype in (torch.bfloat16, torch.bool)
            if not (narrow or (isinstance(given, Tensor) and given.is_inference())):
                return given
            with torch.inference_mode(False):
                copy = given.detach().to(torch.float32 if narrow else given.dtype, copy=True)
            sent.append((given, copy))
            return copy

        work = collective(*map(wide, args), **{key: wide(item) for key, item in kwargs.items()})
        if sent and work is not None:
            work.wait()
        for given, received in sent:
            given.data.copy_(received)
        return work

    return widened


def _replace_accelerator(replace: Any) -> None:
    try:
        api = import_module("colossalai.accelerator.api")
    except ModuleNotFoundError:  # before 0.3.6 CUDA and NCCL are hard-coded
        zeros, groups = torch.zeros, import_module("colossalai.tensor.process_group")
        group_of = groups.PyTorchProcessGroupDict.get

        def zeros_on_cpu(*size: Any, device: Any = None, **more: Any) -> Tensor:
            return zeros(*size, device=None if device == "cuda" else device, **more)

        replace(torch, zeros=zeros_on_cpu)
        replace(torch.cuda, FloatTensor=torch.FloatTensor)
        replace(
            groups.PyTorchProcessGroupDict,
            get=lambda self, ranks, backend="gloo": group_of(self, ranks, "gloo"),
        )
        # `colossalai.launch` sets the local rank for NCCL only.
        context = import_module("colossalai.context.parallel_context").ParallelContext
        replace(context, get_local_rank=lambda self, mode: dist.get_rank())
        return
    accelerator = api.CpuAccelerator()
    # Chunks and assertions compare this name to tell whether a tensor is offloaded.
    replace(accelerator, _name="cuda", device_count=lambda: 1, **_STREAMS)
    replace(
        accelerator,
        manual_seed=torch.manual_seed,
        get_rng_state=lambda device=None: torch.get_rng_state(),
    )
    replace(api, _ACCELERATOR=accelerator)


def _shard_moves(chunk: Any) -> Any:
    """`shard_move` of a Gemini chunk class, which toggles a shard between storage and use.

    ColossalAI decides by the target device. Here both devices are the CPU, so this decides by where
    the shard is now.
    """
    to_where_it_is_kept = chunk.shard_move

    def shard_move(self: Any, device: torch.device, *args: Any, **kwargs: Any) -> None:
        if self.cuda_shard is not None:
            to_where_it_is_kept(self, device, *args, **kwargs)
        elif self.optim_sync_flag:
            self.cuda_shard = self.cpu_shard.clone()
            if not self.pin_memory:
                self.cpu_shard = None
        else:  # the optimizer's copy is newer
            self._Chunk__paired_shard_move()
            self.optim_sync_flag = True

    return shard_move
