"""``coati.distributed``: the policy that sampled is the policy that is trained.

The consumer (GRPO, DAPO, RLOO, REINFORCE_PPB) computes log-probabilities at the temperature that
its data was sampled at, from the positions that the sampler saw, over the whole vocabulary that
tensor parallelism has padded. Its gradient is the same however a batch is cut into minibatches,
microbatches, pipeline stages and ranks. Prompts keep their end, ``vLLM`` is given every real token,
and the address of a code verifier reaches it. What a run would die of, or wait for for ever, is
refused when it is launched. The package is in no release; only HEAD has it.
"""

from __future__ import annotations

from typing import Callable

from coati_ext import Defect, Patch, hookimpl, with_variants

from ..upstream import UPSTREAM
from .algorithms import by_algorithm, clipped
from .defects import DEFECTS
from .options import Options
from .sites import RELIES, SITES

LEAVES = (
    "rewards of mathematics: an exact match ignores braces and commas, an integer gt_answer fails, "
    "an answer that ends at exactly max_new_tokens scores 0 (D52); bring your own reward function",
    "the transformers backend does not run (D53); it is refused",
    "save_interval = 1 fails, and a resumed run waits for ever (D54); both are refused",
    "n_behind >= 1: what is sampled for the last n_behind updates of each episode is never trained "
    "(D55)",
    "arguments whose default is None, groups of one answer, a vocabulary that ColossalAI pads on "
    "one rank and a GPT-2 that it splits end a run: all are refused (D56)",
    "the learning rate rises again after 4 episodes (D56)",
    "zero_bubble: an update of less than a second sends its weights into the last ones (D57)",
)

__all__ = ["by_algorithm", "clipped", "register_defects", "register_options", "register_patches"]


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="distributed",
            summary="coati.distributed: the sampled policy is trained, by one gradient",
            default=True,
            changes=(
                "Log-probabilities at the temperature that was sampled with; one gradient whatever "
                "the split; REINFORCE_PPB standardises over the whole batch and has its KL in the "
                "loss. Token-level losses and REINFORCE_PPB wait for all minibatches of an update. "
                "At temperature 1 and one microbatch, LLaMA and Qwen2 train as upstream's, bit for "
                "bit."
            ),
            reference="ColossalAI #6376, #6383, #6391; arXiv 2402.03300, 2402.14740, 2501.03262, "
            "2503.14476",
            leaves=LEAVES,
            sites=with_variants(SITES, UPSTREAM, "distributed"),
            relies=with_variants(RELIES, UPSTREAM, "distributed"),
        )
    )


@hookimpl
def register_options(register: Callable[[str, type], None]) -> None:
    """Declare ``[distributed]``."""
    register("distributed", Options)


@hookimpl
def register_defects(register: Callable[[Defect], None]) -> None:
    """Declare what ``doctor --live`` measures."""
    for defect in DEFECTS:
        register(defect)
