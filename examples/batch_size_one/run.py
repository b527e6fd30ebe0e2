"""Is a reward model trained one pair at a time, without pads, that of any batch size with pads?

    python run.py [--family llama] [--coati FOLDER]

It should be: a step over 32 pairs has one gradient, however they are cut into batches and padded.
Here the pairs of each step come in batches of 1 to 32, padded on either side, and their gradients
are summed before the step. One pair at a time without a pad says what is right.

Plain gradient descent takes the steps. Adam would divide rounding errors by their own size wherever
a gradient is zero.
"""

import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import LOOKS, story

from coati_ext.demo.draw import bare
from coati_ext.demo.task import pairs
from coati_ext.testing import tiny_reward_model, tiny_tokenizer
from coati_ext.testing.padding import pad_rows

STEP = 32  # pairs
SIDES = ("left", "right")
LR = 0.05


def measure(family, steps):
    """Train with each side of padding and size of batches, and hold it against single pairs."""
    tokenizer = tiny_tokenizer()
    data = pairs(steps * STEP, random.Random(0))
    rows = [encoded(tokenizer, pair) for pair in data]
    held_out = [encoded(tokenizer, pair) for pair in pairs(100, random.Random(1))]
    right = train(family, rows, held_out, size=1, side=None)
    return {
        "sides": {
            side: [
                {"size": size, **compared(right, train(family, rows, held_out, size, side))}
                for size in sizes()
            ]
            for side in SIDES
        }
    }


def sizes():
    return [2**power for power in range(STEP.bit_length())]


def encoded(tokenizer, pair):
    """Token ids of the chosen and of the rejected row."""
    end = [tokenizer.eos_token_id]
    return [
        tokenizer(pair["prompt"] + pair[answer])["input_ids"] + end
        for answer in ("chosen", "rejected")
    ]


def train(family, rows, held_out, size, side):
    """Train from the same weights.

    Args:
        family: of the model.
        rows: of the training pairs, :data:`STEP` for each step.
        held_out: rows to score afterwards.
        size: pairs a batch.
        side: of the pads, of which the longest row of a batch has eight; None: no pads.
    """
    from coati.models import LogSigLoss

    model, loss_of = tiny_reward_model(family), LogSigLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    gradient = None
    for start in range(0, len(rows), STEP):
        optimizer.zero_grad()
        for first in range(start, start + STEP, size):
            batch = rows[first : first + size]
            chosen, rejected = (scores(model, part, side) for part in zip(*batch))
            (loss_of(chosen, rejected).mean() * size / STEP).backward()
        if gradient is None:
            gradient = flat(it.grad for it in model.parameters() if it.grad is not None)
        optimizer.step()
    with torch.no_grad():
        alone = [torch.cat([scores(model, [row], None) for row in pair]) for pair in held_out]
    return gradient, flat(model.parameters()), torch.cat(alone)


def scores(model, rows, side):
    """Scores (B,) of rows without pads, padded on a side to the longest and eight more."""
    width = max(map(len, rows)) + (8 if side else 0)
    return model(*pad_rows(rows, pad_token_id=0, side=side or "left", width=width))


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double()


def compared(right, found):
    """How far the first gradient, the weights after all steps and held-out scores are off."""
    names = ("gradient", "weights", "scores")
    return {
        name: float((other - one).norm() / one.norm())
        for name, one, other in zip(names, right, found)
    }


def tell(found):
    for what, name in (
        ("gradient of the first step", "gradient"),
        ("weights after all steps", "weights"),
        ("scores of held-out pairs after them", "scores"),
    ):
        for side in SIDES:
            worst = [max(it[name] for it in run["sides"][side]) for run in found.values()]
            yield [f"{what}, pads on the {side}", *map("{:.1g}".format, worst)]


def draw(found, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for state, run in found.items():
        for side, style in zip(SIDES, ("-", ":")):
            gaps = [max(it["gradient"], 1e-9) for it in run["sides"][side]]
            look = {**LOOKS[state], "linestyle": style}
            axis.plot(sizes(), gaps, **look, label=f"patches {state}, pads on the {side}")
    axis.set_title(f"gradient of a step over {STEP} pairs (0 is drawn at 1e-9)", loc="left")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sizes(), map(str, sizes()))
    axis.set_xlabel("pairs a batch")
    axis.set_ylabel("difference from single pairs without pads,\nin lengths of their gradient")
    axis.legend(frameon=False, fontsize=8)
    bare(axis)
    figure.savefig(file, dpi=110)


def main():
    story(measure, tell, draw, sizes={"family": "gpt2", "steps": 10}, quick={"steps": 2})


if __name__ == "__main__":
    main()
