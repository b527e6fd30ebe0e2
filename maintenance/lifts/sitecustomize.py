"""Lets upstream's own tests and scripts run on a CPU without a network, in each of their processes.

`theirs.py` puts this folder on ``PYTHONPATH``, so that every Python of a run imports this module at
its start: pytest, the processes that a test spawns, torchrun and its ranks. Each lift waits for the
import of the package that it changes. ``COATI_EXT`` arms a process as ``coati_ext.pth`` does where
coati-ext is installed.
"""

from __future__ import annotations

import inspect
import os
import random
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Callable
from unittest import mock

import wrapt

HUB = Path(os.environ["THEIR_HUB"])
"""Stands in for the hub: a folder for each name, its slashes written as two dashes."""
FACTORIES = ("arange", "empty", "full", "ones", "rand", "randint", "randn", "tensor", "zeros")
TOKENIZERS = {
    "transformers.models.auto.tokenization_auto": "AutoTokenizer",
    "transformers.tokenization_utils_base": "PreTrainedTokenizerBase",
}
DEFAULT_SIZES = {  # of configurations that name none: two layers of what would be twelve or more
    "transformers.models.gpt2.configuration_gpt2": ("GPT2Config", {"n_layer": 2}),
    "transformers.models.opt.configuration_opt": ("OPTConfig", {"num_hidden_layers": 2}),
    "coati.models.chatglm.configuration_chatglm": (
        "ChatGLMConfig",
        {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "inner_hidden_size": 128},
    ),
}
forever = ExitStack()


def replace(owner: Any, **attributes: Any) -> None:
    """Set attributes until the process ends."""
    for name, value in attributes.items():
        forever.enter_context(mock.patch.object(owner, name, value))


def around(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The function, with each of its arguments changed."""

    def changed(*args: Any, **kwargs: Any) -> Any:
        return function(*map(change, args), **{key: change(it) for key, it in kwargs.items()})

    return changed


# --- torch ---------------------------------------------------------------------------------------


def lift_torch(torch: Any) -> None:
    """One seed, no CUDA, gloo for NCCL, and bfloat16 for what torch 1.13 cannot multiply."""
    from coati_ext.testing.cpu import no_cuda

    random.seed(0)
    torch.manual_seed(0)
    forever.enter_context(no_cuda())
    replace(torch.cuda, set_device=lambda device: None, synchronize=lambda device=None: None)
    for owner in (torch.Tensor, torch.nn.Module):
        replace(owner, to=around(owner.to, on_cpu), cuda=lambda self, *_, **__: self)
    if torch.__version__ < "2":
        replace(torch.nn.Module, half=lambda self: self.to(torch.bfloat16))
        parallel = torch.nn.parallel.DistributedDataParallel
        replace(parallel, __init__=_reducing_in_float32(parallel.__init__))
    dist = torch.distributed
    gloo = around(dist.init_process_group, lambda it: "gloo" if it == "nccl" else it)
    replace(dist, init_process_group=gloo)


def _reducing_in_float32(init: Callable[..., Any]) -> Callable[..., Any]:
    """For gloo of torch 1.13, which has no bfloat16."""

    def reduced(_, bucket):  # torch checks the hints
        import torch

        wide = bucket.buffer().float()
        torch.distributed.all_reduce(wide)
        done: Any = torch.futures.Future()
        done.set_result(bucket.buffer().copy_(wide / torch.distributed.get_world_size()))
        return done

    def changed(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.register_comm_hook(None, reduced)

    return changed


def on_cpu(given: Any) -> Any:
    """An argument of a function of torch, without CUDA."""
    import torch

    if isinstance(given, torch.device) and given.type == "cuda":
        return torch.device("cpu")
    if isinstance(given, str) and given.split(":")[0] == "cuda":
        return "cpu"
    return torch.bfloat16 if given is torch.float16 and torch.__version__ < "2" else given


def lift_colossalai(colossalai: Any) -> None:
    """The plugins without their guards against CPUs, and an Adam that needs no kernel of CUDA."""
    import torch

    from coati_ext.testing.cpu_colossalai import cpu_plugins, gemini_optimizer

    forever.enter_context(cpu_plugins())
    for name in FACTORIES:  # only now: until it is imported, torch compiles code that calls them
        replace(torch, **{name: around(getattr(torch, name), on_cpu)})

    class HybridAdam(gemini_optimizer(torch.optim.AdamW)):  # type: ignore[misc]
        def __init__(self, model_params: Any, adamw_mode: bool = True, **options: Any) -> None:
            super().__init__(model_params, **options)

    import_module("colossalai.zero.gemini.gemini_optimizer")._AVAIL_OPTIM_LIST.add(HybridAdam)
    replace(import_module("colossalai.nn.optimizer"), HybridAdam=HybridAdam)
    launch = colossalai.launch_from_torch
    if "config" in inspect.signature(launch).parameters:  # v0.4.0 gives it no more
        replace(colossalai, launch_from_torch=lambda config=None, **it: launch(config or {}, **it))
    plugins = import_module("colossalai.booster.plugin")
    for name in ("GeminiPlugin", "LowLevelZeroPlugin", "HybridParallelPlugin"):
        if hasattr(plugins, name):
            plugin = getattr(plugins, name)
            replace(plugin, __init__=_on_a_cpu(plugin.__init__, name))


def _on_a_cpu(init: Callable[..., Any], name: str) -> Callable[..., Any]:
    def changed(self: Any, **options: Any) -> None:
        known = inspect.signature(init).parameters
        if options.get("precision", "fp16") == "fp16" and "precision" in known:
            options["precision"] = "bf16"
        if name == "GeminiPlugin":
            options["placement_policy"] = "static" if "chunk_init_device" in known else "cpu"
            if "enable_async_reduce" in known:
                options["enable_async_reduce"] = False
            options.update(max_norm=0.0, min_chunk_size_m=0.01, search_range_m=1, hidden_dim=32)
            options["pin_memory"] = False
        init(self, **{key: it for key, it in options.items() if key in known})

    changed.__signature__ = inspect.signature(init)  # type: ignore[attr-defined]
    return changed


# --- what is downloaded --------------------------------------------------------------------------


def lift_tokenizers(module: Any) -> None:
    """What is loaded by a name comes from :data:`HUB`."""
    owner = getattr(module, TOKENIZERS[module.__name__])
    replace(owner, from_pretrained=classmethod(_from_hub(owner.from_pretrained.__func__)))


def lift_configuration(module: ModuleType) -> None:
    """Models of no given size are small."""
    name, sizes = DEFAULT_SIZES[module.__name__]
    config = getattr(module, name)
    init = config.__init__
    config.__init__ = lambda self, *args, **given: init(self, *args, **{**sizes, **given})


def _from_hub(load: Callable[..., Any]) -> Callable[..., Any]:
    def loaded(cls: Any, name: Any, *args: Any, **options: Any) -> Any:
        folder = HUB / str(name).replace("/", "--")
        return load(cls, str(folder) if folder.is_dir() else name, *args, **options)

    return loaded


def lift_datasets(datasets: Any) -> None:
    """Three data sets of the hub, with two sentences."""
    rows = {
        "Anthropic/hh-rlhf": {
            "chosen": "\n\nHuman: Which is best?\n\nAssistant: the first.",
            "rejected": "\n\nHuman: Which is best?\n\nAssistant: none of them.",
        },
        "Dahoas/rm-static": {
            "prompt": "\n\nHuman: Which is best?\n\nAssistant:",
            "response": " the first.",
            "chosen": " the first.",
            "rejected": " none of them.",
        },
        "yizhongw/self_instruct": {"prompt": "Which is best?", "completion": "the first."},
    }
    load = datasets.load_dataset

    def load_dataset(path: str, *args: Any, **options: Any) -> Any:
        if path not in rows:
            return load(path, *args, **options)
        made = datasets.Dataset.from_list([rows[path]] * 64)
        return datasets.DatasetDict({"train": made, "test": made})

    replace(datasets, load_dataset=load_dataset)


for name, lift in (
    ("torch", lift_torch),
    ("colossalai", lift_colossalai),
    ("datasets", lift_datasets),
    *((name, lift_tokenizers) for name in TOKENIZERS),
    *((name, lift_configuration) for name in DEFAULT_SIZES),
):
    wrapt.register_post_import_hook(lift, name)
if os.environ.get("COATI_EXT", "0") not in ("", "0"):
    import_module("coati_ext._startup")
