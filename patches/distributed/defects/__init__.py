"""Defects of ``coati.distributed`` that ``doctor --live`` measures with the installed coati.

Where the package is not, or cannot be imported, they say so instead.
"""

from __future__ import annotations

from coati_ext import Defect


def _defect(name: str, summary: str, measure: str, **expected: float) -> Defect:
    return Defect(name, "distributed", summary, ("G4",), f"{__name__}.{measure}", **expected)


DEFECTS = (
    _defect(
        "another temperature trained",
        "distance of GRPO's gradient from its own, user's temperature 1, sampled at 0.6",
        "training:measure_temperature",
    ),
    _defect(
        "gradient of microbatches",
        "GRPO's gradient of 4 microbatches, over that of one",
        "training:measure_split",
        right=1.0,
    ),
    _defect(
        "REINFORCE_PPB, microbatches",
        "distance of its gradient in microbatches of a row from that of one",
        "training:measure_reinforce",
    ),
    _defect(
        "padded prompts, GPT-2",
        "distance of GRPO's gradient from that of unpadded prompts",
        "training:measure_padding",
    ),
    _defect(
        "KL of a masked pad",
        "gradients that are not finite, a pad 200 nats below its reference",
        "training:measure_masked_kl",
    ),
    _defect(
        "padded vocabulary, tp 2",
        "distance of the last rank's gradient from that of the whole vocabulary, 120 ids",
        "ranks:measure_tensor_parallel",
    ),
    _defect(
        "pipeline with data parallel",
        "distance of the second data-parallel rank's gradient from that without a pipeline",
        "ranks:measure_pipeline",
    ),
    _defect(
        "BOS hidden from vLLM",
        "tokens of a prompt that vLLM is not given, bos == pad",
        "sampling:measure_hidden_bos",
    ),
    _defect(
        "code verifier's address",
        "requests of 2 that do not go to the address that the user has set",
        "sampling:measure_verifier",
    ),
)
