"""Tables and a picture of what `recipe.py` and `recipe_trl.py` have found.

    python benchmarks/recipe_draw.py RESULTS.jsonl ... --out FOLDER

It writes `recipe.md` and `recipe.png`. A learner is "WHO: SETTING"; for each, task by task,
the median over the seeds and the worst one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from recipe import EVERY, ROWS, STEPS, TASKS, Curve, read  # noqa: E402

BEST = {"credit": 1.6, "end": 1.0, "context": 1.0}
# Of Okabe and Ito; strokes tell them apart without colours.
LINES = {
    "HEAD: recipe": ("recipe", "#0072b2", "-"),
    "HEAD: defaults": ("coati-ext's defaults", "#56b4e9", "--"),
    "HEAD: off": ("patches off", "#d55e00", ":"),
    "TRL: PPO, constant rate, lam 1": ("TRL PPO, tuned", "#009e73", "-."),
    "TRL: PPO, its defaults": ("TRL PPO, its defaults", "#e69f00", (0, (6, 2))),
    "TRL: RLOO, constant rate, normalised": ("TRL RLOO, tuned", "#cc79a7", (0, (3, 1, 1, 1, 1, 1))),
}

Curves = Mapping[Tuple[str, str], Sequence[Curve]]


class Reached(NamedTuple):
    """Scores of a learner on a task over its seeds: the median and the worst."""

    middle: float
    worst: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.worst:.2f})"


def curves(rows: Sequence[Mapping[str, Any]]) -> Dict[Tuple[str, str], List[Curve]]:
    """The first STEPS steps of each learner and task, in the order of the seeds."""
    found: Dict[Tuple[str, str], List[Curve]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        learner = f"{row['who']}: {row['setting']}"
        found.setdefault((learner, row["task"]), []).append(row["curve"][: STEPS // EVERY + 1])
    return found


def reached(of: Sequence[Curve], share: float, name: str = "score") -> Reached:
    """What is reached after a share of the steps."""
    values = [curve[round(share * (len(curve) - 1))][name] for curve in of]
    return Reached(median(values), min(values))


def learnt(of: Sequence[Curve]) -> Reached:
    """The mean score over all evaluations after the first: how fast and how far."""
    values = [sum(at["score"] for at in curve[1:]) / (len(curve) - 1) for curve in of]
    return Reached(median(values), min(values))


def table(found: Curves) -> str:
    """A line a learner and task, in Markdown."""
    heads = ("learner", "task", "seeds", "half the samples", "all", "mean of the curve", "KL, nats")
    lines = [heads, ("---",) * len(heads)]
    for (learner, task), of in sorted(found.items(), key=lambda item: TASKS.index(item[0][1])):
        half, whole = reached(of, 0.5), reached(of, 1)
        kl = f"{reached(of, 1, 'kl').middle:.1f}"
        lines.append((learner, task, str(len(of)), str(half), str(whole), str(learnt(of)), kl))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(found: Curves, file: Path) -> None:
    """Learning curves, a panel a task: the median, and a band from the worst seed to the best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, len(TASKS))
    for axis, task in zip(axes, TASKS):
        axis.axhline(BEST[task], color="0.6", linewidth=0.8, linestyle=(0, (1, 3)))
        for learner, (label, colour, stroke) in LINES.items():
            of = [[at["score"] for at in curve] for curve in found.get((learner, task), [])]
            if not of:
                continue
            points = list(zip(*of))
            answers = [EVERY * ROWS * place for place in range(len(points))]
            low, middle, high = ([pick(at) for at in points] for pick in (min, median, max))
            axis.plot(answers, middle, color=colour, linestyle=stroke, linewidth=1.8, label=label)
            axis.fill_between(answers, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(f"{task} (best {BEST[task]:g})", fontsize=10)
        axis.set_xlabel("answers sampled", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("true score of fresh answers", fontsize=9)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        title="lines: median of the seeds; bands: worst to best; dotted grey: best possible",
        title_fontsize=9,
        fontsize=9,
        ncols=6,
        frameon=False,
    )
    figure.savefig(file, dpi=110)


def main() -> None:
    """Take the command line."""
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("results", nargs="+", type=Path, metavar="RESULTS.jsonl")
    asked.add_argument("--out", type=Path, default=Path("."), metavar="FOLDER")
    given = asked.parse_args()
    found = curves([row for file in given.results for row in read(file)])
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "recipe.md").write_text(table(found))
    draw(found, given.out / "recipe.png")


if __name__ == "__main__":
    main()
