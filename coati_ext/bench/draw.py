"""The stages as a picture: how much faster each variant is, and its peak memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping

_TITLES = {
    "rm": "reward model, training step",
    "scoring": "experience, scoring",
    "ppo": "PPO, training step",
}
# Of Okabe and Ito: told apart with any colour vision.
_UPSTREAM, _LEVEL, _FLOOR = "#d55e00", "#0072b2", "#999999"


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Write a PNG of what :mod:`coati_ext.cli.bench` has found; it needs matplotlib."""
    from matplotlib.figure import Figure

    stages: Dict[str, Any] = found["stages"]
    longest = max(len(stage["variants"]) for stage in stages.values())
    figure = Figure(figsize=(9, (0.32 * longest + 0.9) * len(stages)), layout="constrained")
    axes = figure.subplots(len(stages), 2, squeeze=False)
    for (left, right), (name, stage) in zip(axes, stages.items()):
        variants = stage["variants"]
        names = list(variants)
        colours = [_colour(item) for item in names]
        middle, low, high = zip(*(variants[item]["speedup"] for item in names))
        spread = [
            [one - other for one, other in zip(middle, low)],
            [other - one for one, other in zip(middle, high)],
        ]
        left.barh(names, middle, color=colours, xerr=spread, ecolor="0.2", capsize=2)
        left.set_xlabel("speed-up over upstream (times); whiskers: smallest and largest round")
        left.set_title(_TITLES.get(name, name), fontsize=10, loc="left")
        peaks = [variants[item]["peak"] / 1e6 for item in names]
        right.barh(names, peaks, color=colours)
        right.set_xlabel("peak memory above weights and data (MB)")
        right.set_yticklabels([])
        for row, (speed, most, peak) in enumerate(zip(middle, high, peaks)):
            left.annotate(f"{speed:.1f}", (most, row), (4, 0), **_BESIDE)
            right.annotate(f"{peak:.0f}", (peak, row), (4, 0), **_BESIDE)
        for axis in (left, right):
            axis.invert_yaxis()
            axis.margins(x=0.12)
            axis.xaxis.label.set_size(8)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


_BESIDE: Dict[str, Any] = {
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 8,
    "color": "0.2",
}


def _colour(variant: str) -> str:
    if variant == "upstream":
        return _UPSTREAM
    return _FLOOR if variant.startswith("floor") else _LEVEL
