"""The plugins as they are, on one CUDA device, in float32, bf16 and fp16.

The same functions as on the CPU, with nothing lifted but where the processes meet: the job is one
process, joined by NCCL. It runs by itself where there is a CUDA device. What it has covered is said
at the end of the run.
"""

from __future__ import annotations

import itertools
from typing import Any, Dict, List, Tuple

import pytest
import torch

import coati_ext
from coati_ext.launch.installation import version_of
from coati_ext.testing import families, layouts, random_rows, tiny_reward_model
from helpers.processes import on_ranks
from helpers.strategies import DTYPES, cases, measure, runnable, wrong
from helpers.trainers import away_from, expected, known_to_strategies, too_far

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = [pytest.mark.cuda, pytest.mark.slow]
WRAPPINGS = runnable(
    [
        *itertools.product(("ddp", "zero1", "zero2"), DTYPES),
        *itertools.product(("gemini",), ("bf16", "fp16")),
    ]
)
PRECISIONS = list(DTYPES)
needs_colossalai = pytest.mark.skipif(
    version_of("colossalai") is None, reason="colossalai is not installed"
)


def on_cuda(work: Any, folder: Any, *arguments: Any) -> Any:
    """What a process of its own made of it, since a failed assertion on a device is its end."""
    return on_ranks(1, "nccl", work, folder, *arguments)[0]


def device_of_this_process() -> torch.device:
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


@pytest.fixture
def covered(record_property: Any, upstream: Any) -> Any:
    """Notes what a test has covered, for the end of the run."""
    return lambda what: record_property("covered", f"{upstream.generation}: {what}")


# --- wrapped models --------------------------------------------------------------------------


def measured(rank: int, wrappings: List[Tuple[str, str]]) -> Dict[str, Any]:
    return measure(cases(wrappings), 0, 1, device_of_this_process())


@needs_colossalai
def test_every_wrapped_model_is_the_bare_one(upstream, tmp_path, covered):
    result = on_cuda(measured, tmp_path, WRAPPINGS)
    assert not list(wrong(result, cases(WRAPPINGS)))
    covered("rewards, values, log-probs and gradients under " + named(WRAPPINGS))


def named(wrappings: List[Tuple[str, str]]) -> str:
    return ", ".join(" ".join(wrapping) for wrapping in wrappings)


# --- trainers --------------------------------------------------------------------------------


def trained(rank: int, wrappings: List[Tuple[str, str]]) -> List[str]:
    device = device_of_this_process()
    with coati_ext.applied():
        truth = expected(PRECISIONS, device)
        return too_far(away_from(truth.numbers, wrappings, 0, 1, device), truth, wrappings)


@needs_colossalai
def test_trainers_train_what_they_do_without_a_plugin(upstream, tmp_path, covered):
    """Reward-model steps, and rollouts and PPO steps."""
    wrappings = known_to_strategies(WRAPPINGS)
    assert not on_cuda(trained, tmp_path, wrappings)
    covered("reward-model and PPO training under " + named(wrappings))


# --- padding ---------------------------------------------------------------------------------


def padding(rank: int) -> Dict[str, List[float]]:
    return padding_on(device_of_this_process())


def padding_on(device: torch.device) -> Dict[str, List[float]]:
    """How far padded rewards are from float32 ones of rows alone, and how far half precision is."""
    rows = random_rows()
    far: Dict[str, List[float]] = {}
    with coati_ext.applied(), torch.no_grad():
        for family, (name, dtype) in itertools.product(families(), DTYPES.items()):
            model = tiny_reward_model(family).to(device)
            truth = rewards_alone(model, rows, device)
            model = model.to(dtype)
            noise = float(rewards_alone(model, rows, device).sub(truth).abs().max())
            away = max(
                float(model(ids.to(device), mask.to(device)).float().sub(truth).abs().max())
                for _, ids, mask in layouts(rows, pad_token_id=0)
            )
            far[f"{family} {name}"] = [away, 1e-5 if name == "fp32" else 2 * noise]
    return far


def rewards_alone(model: Any, rows: List[List[int]], device: torch.device) -> torch.Tensor:
    alone = [torch.tensor([row], device=device) for row in rows]
    return torch.cat([model(ids, torch.ones_like(ids)).float() for ids in alone])


def test_padding_moves_no_reward_beyond_the_noise_of_its_precision(upstream, tmp_path, covered):
    far = on_cuda(padding, tmp_path)
    assert not {name: pair for name, pair in far.items() if not pair[0] <= pair[1] < 0.2}
    covered("padding of " + ", ".join(far))


# --- checks without a stall ------------------------------------------------------------------


def of_an_empty_row(rank: int) -> None:
    device = device_of_this_process()
    ids = torch.tensor([[5, 6, 2], [0, 0, 0]], device=device)
    with coati_ext.applied():
        tiny_reward_model("gpt2").to(device)(ids, ids != 0)
        torch.cuda.synchronize()


def test_a_row_without_a_real_token_is_an_error(upstream, tmp_path, covered):
    with pytest.raises(AssertionError, match="device-side assert"):
        on_cuda(of_an_empty_row, tmp_path)
    covered("a row without a real token, reported by the device")


def of_results_of_choices(rank: int, right: bool) -> None:
    from coati_ext import results

    device = device_of_this_process()
    mask = torch.ones(2, 3, dtype=torch.bool, device=device)
    numbers = torch.randn(2, 3, device=device) * (1.0 if right else float("nan"))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    results.check("scale_advantages", "it", numbers, (numbers, mask))
    results.check("shape_reward", "it", numbers, (numbers[:, 0], numbers, mask, 0.1))
    results.check("mark_actions", "it", (mask, mask[:, 0]), (mask.long(), 0, ()))
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def test_results_of_choices_are_checked_without_a_stall(upstream, tmp_path, covered):
    on_cuda(of_results_of_choices, tmp_path, True)
    (tmp_path / "wrong").mkdir()
    with pytest.raises(AssertionError, match="device-side assert"):
        on_cuda(of_results_of_choices, tmp_path / "wrong", False)
    covered("results of choices, checked without a stall")
