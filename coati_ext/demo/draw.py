"""Two pictures of what the demo has measured; off and on differ in colour, line and marker."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from coati_ext.demo.summary import mean

# Of Okabe and Ito: told apart with any colour vision.
LOOKS: Dict[str, Dict[str, Any]] = {
    "off": {"color": "#d55e00", "linestyle": "--"},
    "on": {"color": "#0072b2", "linestyle": "-"},
}
MARKERS = {"off": "x", "on": "o"}
Runs = Mapping[str, Mapping[str, Any]]


def draw(runs: Runs, figures: Runs, folder: Path) -> List[Path]:
    """Write ``rewards.png`` and ``ppo.png``; needs matplotlib.

    Args:
        runs: "off" and "on", as the demo's script prints them.
        figures: their :func:`coati_ext.demo.summary.summary`.
        folder: where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "ppo.png", folder / "rewards.png"]
    _policy(runs, files[0])
    _rewards(runs, figures, files[1])
    return files


def _policy(runs: Runs, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for state, run in runs.items():
        curves = [it["words"] for it in run["policy"]]
        for curve in curves:
            axis.plot(curve, **LOOKS[state], linewidth=0.8, alpha=0.6)
        average = [mean(values) for values in zip(*curves)]
        label = f"patches {state}: {average[-1]:.1f} words in the end"
        axis.plot(average, **LOOKS[state], linewidth=2.5, marker=MARKERS[state], label=label)
    longest, answers, policies = (runs["off"][name] for name in ("longest", "answers", "policy"))
    axis.axhline(longest, color="0.5", linewidth=0.8, linestyle=":", label="the longest possible")
    axis.set_title(f"PPO told to be brief: the score is 1 less 1/{longest} a word", loc="left")
    axis.set_xlabel(f"episode ({answers} answers each)")
    axis.set_ylabel("words of a fresh answer, mean")
    axis.set_ylim(0, longest + 1)
    axis.legend(title=f"thick: mean of {len(policies)} seeds; thin: each seed", frameon=False)
    bare(axis)
    figure.savefig(file, dpi=130)


def _rewards(runs: Runs, figures: Runs, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained", facecolor="white")
    pads, forms, values = figure.subplots(1, 3)
    for state, run in runs.items():
        scored, found, name = run["reward"], figures[state], f"patches {state}"
        for number, line in enumerate(scored["by_pads"]):
            pads.plot(line, **LOOKS[state], label=None if number else name)
        accuracy = f"{found['accuracy']:.3f} as trained, {found['in_ppo']:.3f} in PPO"
        _cloud(forms, scored["trained"], scored["in_ppo"], state, f"{name}: accuracy {accuracy}")
        told = f"{name}: {found['clipped']:.0%} moved by more than the clip"
        steps = [it["values"] for it in run["policy"]]
        _cloud(values, [it["old"] for it in steps], [it["new"] for it in steps], state, told)
    spread = runs["off"]["reward"]["spread"]
    middle = mean([line[0] for line in runs["off"]["reward"]["by_pads"]])
    bar: Dict[str, Any] = {"color": "black", "capsize": 4, "linewidth": 1.5}
    pads.errorbar(
        -1.5, middle, yerr=spread, **bar, label="spread of all rewards (1 sd up and down)"
    )
    pads.set_title("rewards of six rows, by their padding", loc="left")
    pads.set_xlabel("pads on the left of the row")
    pads.set_ylabel("reward")
    forms.set_title("the same answer, scored twice", loc="left")
    forms.set_xlabel("reward in a row of reward-model training")
    forms.set_ylabel("reward in PPO")
    values.set_title("the same value, before any update", loc="left")
    values.set_xlabel("value in the rollout (old)")
    values.set_ylabel("value in the first training step (new)")
    for axis in (pads, forms, values):
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
        bare(axis)
    figure.savefig(file, dpi=130)


def _cloud(
    axis: Any,
    across: Sequence[Sequence[float]],
    up: Sequence[Sequence[float]],
    state: str,
    label: str,
) -> None:
    flat = [[value for part in parts for value in part] for parts in (across, up)]
    colour = LOOKS[state]["color"]
    axis.plot(*flat, MARKERS[state], color=colour, markersize=3, alpha=0.6, label=label)
    axis.axline((flat[0][0], flat[0][0]), slope=1, color="0.6", linewidth=0.8, zorder=0)


def bare(axis: Any) -> None:
    """Give an axis the look of our pictures: a light grid and no frame."""
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
