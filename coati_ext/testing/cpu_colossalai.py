"""ColossalAI's own plugins on CPU processes that gloo joins, for tests.

with cpu_only(), cpu_plugins():
    booster = Booster(plugin=LowLevelZeroPlugin(stage=2, precision="fp32"))
    model, optimizer, *_ = booster.boost(model, optimizer)

ColossalAI keeps its plugins from the CPU by assertions, by CUDA streams and by the names of
devices, none of which the numbers depend on.
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
    """A CUDA stream where everything happens in order anyway."""

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
}


@contextmanager
def cpu_plugins() -> Iterator[None]:
    """Let ColossalAI's plugins run on the CPU; undone on exit.

    They are TorchDDPPlugin, LowLevelZeroPlugin, GeminiPlugin, and from colossalai 0.3.7 on the
    tensor parallelism of HybridParallelPlugin.

    Plugins are made and used inside, in processes of a gloo group. LowLevelZero takes any
    optimizer, Gemini one of :func:`gemini_optimizer`; Gemini wants ``placement_policy="static"``
    (in old releases "cpu"), and ``enable_async_reduce=False`` where there is such an option. With
    torch 1.13 a CPU cannot multiply in fp16.

    Raises:
        ModuleNotFoundError: colossalai is not installed.
    """
    import_module("colossalai")
    with ExitStack() as stack:

        def replace(owner: Any, **attributes: Any) -> None:
            for name, value in attributes.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))

        replace(torch.cuda, **_STREAMS)
        replace(Tensor, record_stream=lambda self, stream: None, cuda=_same)
        replace(nn.Module, cuda=_same)
        if torch.__version__ < "2":  # whose gloo can do less
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
    """Return a torch optimizer as a class that Gemini takes where it cannot build its own.

    Gemini divides gradients by a scale, and they have the dtype of the parameters in its chunks.
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
    """As gloo of torch 1.13 would, if it could."""
    total = torch.stack(list(inputs))
    dist.all_reduce(total, op=op, group=group)
    output.copy_(total[dist.get_rank(group)])


def _widened(collective: Any) -> Any:
    """A collective as gloo of torch 1.13 has it, which knows neither bf16 nor bools, and whose
    threads may not write to what was made in inference mode.
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
    except ModuleNotFoundError:  # before 0.3.6, which spells CUDA and NCCL out
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
        # What `colossalai.launch` would have set, as it does for NCCL alone.
        context = import_module("colossalai.context.parallel_context").ParallelContext
        replace(context, get_local_rank=lambda self, mode: dist.get_rank())
        return
    accelerator = api.CpuAccelerator()
    # Chunks and assertions know by this name that something is not offloaded.
    replace(accelerator, _name="cuda", device_count=lambda: 1, **_STREAMS)
    replace(
        accelerator,
        manual_seed=torch.manual_seed,
        get_rng_state=lambda device=None: torch.get_rng_state(),
    )
    replace(api, _ACCELERATOR=accelerator)


def _shard_moves(chunk: Any) -> Any:
    """`shard_move` of a class of Gemini chunks, to and fro between where a shard is kept and used.

    ColossalAI calls it only to change the place, but tells by the device which one it wants.
    """
    to_where_it_is_kept = chunk.shard_move

    def shard_move(self: Any, device: torch.device, *args: Any, **kwargs: Any) -> None:
        if self.cuda_shard is not None:
            to_where_it_is_kept(self, device, *args, **kwargs)
        elif self.optim_sync_flag:
            self.cuda_shard = self.cpu_shard.clone()
            if not self.pin_memory:
                self.cpu_shard = None
        else:  # the optimizer has newer numbers
            self._Chunk__paired_shard_move()
            self.optim_sync_flag = True

    return shard_move
