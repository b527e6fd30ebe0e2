"""What the demo has measured, off beside on, as numbers of one kind."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

Facts = Dict[str, Any]
_SAME = 1e-5  # what floating point alone moves a value by


def summary(run: Mapping[str, Any]) -> Facts:
    """The figures of one run of the demo's script.

    Returns:
        "moved" and "differs" in standard deviations of the rewards, "accuracy" of pairs in rows of
        training and "in_ppo", "swapped", the share of pairs that change order in between,
        "value_moved" and "clipped" (a share) of values before any update, and "words" of fresh
        answers, at "start" and "end", with those of each seed in "ends".
    """
    scored, spread = run["reward"], run["reward"]["spread"]
    trained, in_ppo = (_right(scored[name]) for name in ("trained", "in_ppo"))
    gaps = [
        abs(one - other)
        for first, second in zip(scored["trained"], scored["in_ppo"])
        for one, other in zip(first, second)
    ]
    changes = [
        (abs(new - old), it["values"]["clip"])
        for it in run["policy"]
        for old, new in zip(it["values"]["old"], it["values"]["new"])
    ]
    ends = [it["words"][-1] for it in run["policy"]]
    return {
        "moved": max(scored["moves"]) / spread,
        "differs": max(gaps) / spread,
        "accuracy": mean(trained),
        "in_ppo": mean(in_ppo),
        "swapped": mean([one != other for one, other in zip(trained, in_ppo)]),
        "value_moved": max(change for change, _ in changes),
        "clipped": mean([change > clip for change, clip in changes]),
        "start": mean([it["words"][0] for it in run["policy"]]),
        "end": mean(ends),
        "ends": ends,
    }


def mean(values: Sequence[float]) -> float:
    """The mean of some numbers."""
    return sum(values) / len(values)


def verdicts(off: Mapping[str, Any], on: Mapping[str, Any]) -> List[str]:
    """What the figures mean, whatever they are."""
    return [
        _brevity(off, on),
        f"Padding alone moves a reward by up to {off['moved']:.2g} times the spread of all rewards "
        f"with the patches off, {on['moved']:.1g} with them on.",
        f"Of 100 pairs {100 * off['swapped']:.0f} change their order between training and PPO with "
        f"the patches off, {100 * on['swapped']:.0f} with them on; accuracy goes from "
        f"{off['accuracy']:.3f} to {off['in_ppo']:.3f}, and from {on['accuracy']:.3f} to "
        f"{on['in_ppo']:.3f}.",
        _values(off, on),
    ]


def _brevity(off: Mapping[str, Any], on: Mapping[str, Any]) -> str:
    ends = (
        f"from {off['start']:.1f} words to {off['end']:.1f} with the patches off, "
        f"to {on['end']:.1f} with them on"
    )
    if off["end"] > off["start"] > on["end"]:
        return f"Told to be brief, PPO learnt the opposite: {ends}."
    return f"Told to be brief, PPO went {ends}."


def _values(off: Mapping[str, Any], on: Mapping[str, Any]) -> str:
    if off["value_moved"] <= _SAME:
        return "Before any update no value moves between rollout and training step, off or on."
    return (
        f"Before any update a value moves by up to {off['value_moved']:.2g} between rollout and "
        f"training step with the patches off ({off['clipped']:.0%} of them by more than the clip), "
        f"{on['value_moved']:.1g} with them on."
    )


def _right(scores: Sequence[Sequence[float]]) -> List[bool]:
    return [chosen > rejected for chosen, rejected in zip(*scores)]
