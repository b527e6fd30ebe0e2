"""A pooling of one's own, in one file: is it better than the end token?

    python run.py [--coati FOLDER]

Reward models are trained by coati's own trainer, with the patches on, and score held-out pairs:
once by the hidden state at the end token, as coati-ext does by itself, and once by the plugin
`last_tokens.py`, which takes the mean over the last four real tokens.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import moved, scores_by_layout, story

import coati_ext
from coati_ext.demo.draw import bare
from coati_ext.demo.summary import mean
from coati_ext.demo.task import LENGTH, pairs
from coati_ext.testing import (
    pair_accuracy,
    tiny_reward_model,
    tiny_tokenizer,
    train_reward_model,
)

PLUGIN = Path(__file__).resolve().with_name("last_tokens.py")
LOOKS = {"eos": ("#0072b2", "o", ""), "last_tokens": ("#e69f00", "s", "//")}


def measure(seeds, preferences, held_out, plugins):
    coati_ext.enable({"plugins": plugins})
    tokenizer = tiny_tokenizer(pad="eos")
    test = pairs(held_out, random.Random(1))
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    accuracies, moves = [], []
    for seed in range(seeds):
        model = tiny_reward_model("gpt2", seed=seed, **sizes)
        shape = {"batch_size": 32, "max_length": LENGTH}
        train = pairs(preferences, random.Random(0))
        train_reward_model(model, train, tokenizer=tokenizer, seed=seed, **shape)
        moves.append(moved(scores_by_layout(model)))
        accuracies.append(pair_accuracy(model, test, tokenizer=tokenizer, max_length=LENGTH))
    return {"accuracies": accuracies, "held_out": held_out, "moved": max(moves)}


def tell(found):
    yield ["padding moves a score by up to", *(f"{run['moved']:.1g}" for run in found.values())]
    yield [
        "pair accuracy, held out (each seed)",
        *(", ".join(map("{:.3f}".format, run["accuracies"])) for run in found.values()),
    ]
    yield ["  mean", *(f"{mean(run['accuracies']):.3f}" for run in found.values())]


def draw(found, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for place, (name, run) in enumerate(found.items()):
        colour, marker, hatch = LOOKS[name]
        values, middle = run["accuracies"], mean(run["accuracies"])
        noise = (middle * (1 - middle) / run["held_out"]) ** 0.5
        bar = {"color": colour, "hatch": hatch, "alpha": 0.45, "height": 0.6}
        axis.barh(place, middle, xerr=noise, capsize=4, **bar)
        axis.plot(values, [place] * len(values), marker, color=colour, markeredgecolor="black")
        box = {"facecolor": "white", "edgecolor": "none"}
        axis.text(0.51, place, f"{middle:.3f}", va="center", bbox=box)
    axis.axvline(0.9, color="0.4", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(found)), found)
    axis.set_xlim(0.5, 1)
    axis.set_xlabel("pair accuracy, held out (dotted: the best possible)")
    told = f"bars: mean, with the standard error of {run['held_out']} pairs; marks: each seed"
    axis.set_title(told, loc="left", fontsize=9)
    bare(axis)
    figure.savefig(file, dpi=110)


def main():
    story(
        measure,
        tell,
        draw,
        sizes={"seeds": 3, "preferences": 1500, "held_out": 500},
        quick={"seeds": 1, "preferences": 64, "held_out": 32},
        runs={
            "eos": ("1", {"plugins": []}),
            "last_tokens": ("1", {"plugins": [str(PLUGIN)]}),
        },
    )


if __name__ == "__main__":
    main()
