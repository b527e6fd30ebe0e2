"""An advantage estimator of one's own, in one file: PPO without asking the critic.

    python run.py [--coati FOLDER]

Policies that answer in 1 to 23 words are told to be brief (the score is 1 less 1/24 a word) by
coati's own PPO trainer, with the patches on: once with the built-in estimator of this generation
(GAE; in G1 and G2 the reward of the whole answer less the prompt's value), and once with the plugin
`leave_one_out.py`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import story

import coati_ext
from coati_ext.demo.draw import bare
from coati_ext.demo.policy import learn

PLUGIN = Path(__file__).resolve().with_name("leave_one_out.py")
LOOKS = {
    "built-in": {"color": "#0072b2", "linestyle": "-", "marker": "o"},
    "leave_one_out": {"color": "#009e73", "linestyle": "--", "marker": "^"},
}


def measure(seeds, episodes, plugins):
    coati_ext.enable({"plugins": plugins})
    return {"words": [learn("gpt2", seed, episodes)["words"] for seed in range(seeds)]}


def tell(found):
    for what, place in (("words of an answer before PPO", 0), ("  and after (each seed)", -1)):
        yield [
            what,
            *(", ".join(f"{curve[place]:.1f}" for curve in run["words"]) for run in found.values()),
        ]


def draw(found, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for name, run in found.items():
        for curve in run["words"]:
            axis.plot(curve, color=LOOKS[name]["color"], linewidth=0.7, alpha=0.6)
        average = [sum(words) / len(words) for words in zip(*run["words"])]
        axis.plot(average, **LOOKS[name], linewidth=2.2, label=name)
    axis.set_title("PPO told to be brief, by two estimators", loc="left")
    axis.set_xlabel("episode (64 answers each)")
    axis.set_ylabel("words of a fresh answer, mean")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, title="thick: mean of the seeds; thin: each", title_fontsize=8)
    bare(axis)
    figure.savefig(file, dpi=110)


def main():
    story(
        measure,
        tell,
        draw,
        sizes={"seeds": 3, "episodes": 8},
        quick={"seeds": 1, "episodes": 3},
        runs={
            "built-in": ("1", {"plugins": []}),
            "leave_one_out": ("1", {"plugins": [str(PLUGIN)]}),
        },
    )


if __name__ == "__main__":
    main()
