"""Measure what one rank of two computes; the other, which is not there, adds nothing to a sum."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Dict, Iterator
from unittest import mock

from .needed import need_distributed
from .training import apart, gradient, table

_FIRST, _PADDED = 64, 128
"""A vocabulary of 120 ids is padded to 128, of which the last of two ranks has 64 to 119."""
_PROMPTS = [[100, 65, 119], [80, 112, 71]]


def measure_tensor_parallel() -> float:
    """The distance of the gradient of a vocabulary's last part from that of the whole.

    All that is sampled is of that part, so that the first rank's exponentials are 0.
    """
    from coati_ext.testing import sampled

    need_distributed()
    whole, part = table(120 - _FIRST, below=_FIRST), table(120 - _FIRST, below=_FIRST)
    minibatch = sampled(whole, _PROMPTS)
    part.forward = lambda input_ids, **_: SimpleNamespace(logits=part.rows(input_ids))
    part.get_output_embeddings = lambda: SimpleNamespace(out_features=_PADDED)
    with _last_of_two() as group:
        shard = SimpleNamespace(
            enable_tensor_parallelism=True,
            parallel_output=True,
            tensor_parallel_process_group=group,
        )
        booster = _booster(tp_size=2, tp_group=group, shard_config=shard)
        found = gradient(part, minibatch, booster=booster)
    return apart(found, gradient(whole, minibatch))


def measure_pipeline() -> float:
    """The distance of the gradient of a last stage, on the second of two data-parallel ranks.

    The stage has every layer, and upstream's step is what runs on such a rank.
    """
    from coati_ext.testing import sampled

    need_distributed()
    models = [table(8), table(8)]
    minibatch = sampled(models[0], [[5, 3], [4, 6]])
    with _last_of_two() as group:
        stages = SimpleNamespace(is_last_stage=lambda: True)
        booster = _booster(dp_size=2, dp_group=group, pp_size=2, stage_manager=stages)
        found = gradient(models[0], minibatch, booster=booster)
    return apart(found, gradient(models[1], minibatch))


@contextmanager
def _last_of_two() -> Iterator[Any]:
    """A group of processes of which this is the second, and in which the first adds nothing."""
    import torch.distributed as dist

    group = object()
    found: Dict[str, Any] = {
        "get_rank": lambda: 1,
        "get_world_size": lambda: 2,
        "all_reduce": lambda: SimpleNamespace(wait=lambda: None),
    }

    def faked(name: str) -> Any:
        real = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            ours = group in args or kwargs.get("group") is group
            return found[name]() if ours else real(*args, **kwargs)

        return call

    with mock.patch.multiple(dist, **{name: faked(name) for name in found}):
        yield group


def _booster(**plugin: Any) -> Any:
    """A booster whose plugin says what is given, and whose pipeline is one stage and one chunk."""
    from coati_ext.testing.distributed import WholeBooster

    class Booster(WholeBooster):
        def execute_pipeline(
            self, data: Any, model: Any, criterion: Any, optimizer: Any = None, **_: Any
        ) -> Any:
            (given,) = data
            outputs = model(given["input_ids"], attention_mask=given["attention_mask"])
            loss = criterion(outputs, given)
            self.backward(loss, optimizer)
            return {"loss": loss.detach()}

    booster = Booster()
    booster.plugin = SimpleNamespace(**{**vars(WholeBooster.plugin), **plugin})
    return booster
