"""What a layout means, in sentences."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

Facts = Dict[str, Any]
PAD, PROMPT, ANSWER, EOS = "pad", "prompt", "answer", "EOS"
REWARD, OLD, NEW, ACTION = "reward", "old value", "new value", "action"


def findings(grids: Sequence[Facts]) -> List[str]:
    """What the grids of :mod:`coati_ext.show.layout` say, a sentence each."""
    told = [_told_reward(grid) for grid in grids if REWARD in grid["rows"][0]["marks"]]
    lanes = {lane: grid["rows"] for grid in grids for lane in grid["rows"][0]["marks"]}
    if OLD in lanes:
        told.append(_told_values(lanes[OLD], lanes[NEW]))
    if ACTION in lanes:
        told.append(_told_actions(lanes[ACTION]))
    return told + [text for grid in grids for text in _told_mask(grid)]


def _told_reward(grid: Facts) -> str:
    kinds: Dict[str, int] = {}
    for row in grid["rows"]:
        read = [kind for kind, mark in zip(row["kinds"], row["marks"][REWARD]) if mark]
        name = f"at {_named(read[0])}"
        if len(read) > 1:
            pads = read.count(PAD)
            name = "as a mean over several columns" + (", pads among them" if pads else "")
        kinds[name] = kinds.get(name, 0) + 1
    parts = (f"{name} ({count} of {len(grid['rows'])} rows)" for name, count in kinds.items())
    return f"reward read {', '.join(parts)}"


def _named(kind: str) -> str:
    return {PAD: "a pad", PROMPT: "a prompt token", ANSWER: "an answer token"}.get(kind, "the EOS")


def _told_values(old: Sequence[Facts], new: Sequence[Facts]) -> str:
    same = total = 0
    right = {OLD: 0, NEW: 0}
    for pair in zip(old, new):
        found = {lane: _by_action(row, lane) for lane, row in zip((OLD, NEW), pair)}
        prompt = pair[0]["prompt"]
        for action, places in found[OLD].items():
            total += 1
            same += places == found[NEW].get(action)
            before = [prompt - 1 + (int(action) if action.isdigit() else 0)]
            for lane in right:
                right[lane] += found[lane].get(action) == before
    return (
        f"values: {right[OLD]} of {total} old and {right[NEW]} of {total} new ones are of the "
        f"state before the action; {same} of {total} old and new ones are of the same token"
    )


def _by_action(row: Facts, lane: str) -> Dict[str, List[int]]:
    found: Dict[str, List[int]] = {}
    for place, mark in zip(row["places"], row["marks"][lane]):
        for action in filter(None, mark.split(",")):
            found.setdefault(action, []).append(place)
    return found


def _told_actions(rows: Sequence[Facts]) -> str:
    kinds = [kind for row in rows for kind, mark in zip(row["kinds"], row["marks"][ACTION]) if mark]
    pads = kinds.count(PAD)
    return f"actions trained: {len(kinds)}" + (f", of which {pads} are pads" if pads else "")


def _told_mask(grid: Facts) -> List[str]:
    hidden = attended = missing = inside = 0
    for row in grid["rows"]:
        for kind, seen in zip(row["kinds"], row["mask"]):
            hidden += kind != PAD and not seen
            attended += kind == PAD and seen
        real = [column for column, kind in enumerate(row["kinds"]) if kind != PAD]
        missing += row["tokens"] - len(real)
        inside += max(real) - min(real) + 1 - len(real) if real else 0
    told = []
    for what, count in (
        ("real tokens hidden by the mask", hidden),
        ("pads attended", attended),
        ("pads between real tokens", inside),
        ("tokens of the rows missing", missing),
    ):
        if count:
            told.append(f"{', '.join(grid['models'])}: {what}: {count}")
    return told
