"""Check a reward model of your own: does its score depend on padding or on batch mates?

    python run.py [PRETRAINED] [--coati FOLDER]

PRETRAINED is a name or folder that coati's RewardModel takes (G3 and G4). Without it a tiny random
GPT-2 is checked. This is how to do it in a script: patches off, then on, in one process.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import LOOKS, coati_of, scores_by_layout

import coati_ext
from coati_ext.cli.some_coati import importable
from coati_ext.demo.draw import bare
from coati_ext.testing import assert_batch_invariant, assert_padding_invariant, tiny_reward_model


def check(model):
    try:
        assert_padding_invariant(model)
        assert_batch_invariant(model)
    except AssertionError as error:
        return f"no: {str(error).splitlines()[0]}"
    return "yes"


def load(pretrained):
    if pretrained:
        from coati.models import RewardModel

        return RewardModel(pretrained).eval()
    return tiny_reward_model("gpt2")


def draw(scores, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (state, layouts) in zip(axes, scores.items()):
        for (name, row), (marker, colour) in zip(layouts.items(), MARKS):
            look = {"marker": marker, "color": colour, "fillstyle": "none", "linestyle": ""}
            axis.plot(row, **look, markersize=7, label=name)
        axis.set_title(f"patches {state}", loc="left", color=LOOKS[state]["color"])
        axis.set_xlabel("row")
        bare(axis)
    axes[0].set_ylabel("score")
    axes[1].legend(title="pads", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=110)


MARKS = (("o", "#000000"), ("<", "#0072b2"), (">", "#d55e00"), ("s", "#009e73"), ("D", "#cc79a7"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("pretrained", nargs="?", help="a reward model for coati")
    parser.add_argument("--coati", metavar="FOLDER", help="holds coati/; or G1 to G4: a stand-in")
    parser.add_argument("--picture", default="picture.png", metavar="FILE", help="to draw")
    given = parser.parse_args()
    coati = coati_of(given.coati)
    with importable(coati):
        print(f"{coati.words} ({coati.generation}): is a score that of the row alone?")
        print("  patches off:", check(load(given.pretrained)))
        scores = {"off": scores_by_layout(load(given.pretrained))}
        with coati_ext.applied():
            print("  patches on: ", check(load(given.pretrained)))
            scores["on"] = scores_by_layout(load(given.pretrained))
    draw(scores, given.picture)
