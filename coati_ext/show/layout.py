"""The layout of a batch in the functions of the importable coati, as they are in force now.

Each model is given to coati's own data path, trainer and experience maker, and notes what it is
fed and what is read from it.

Letters: B rows, S columns, A action columns.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any, Dict, List, Optional, Sequence, Tuple
from unittest import mock

import torch
from torch import Tensor

from coati_ext.show.batch import ROLLOUT, Batch, Ids, Row
from coati_ext.show.probe import Call, traced
from coati_ext.testing.cpu import cpu_only
from coati_ext.testing.dictation import dictating_actor
from coati_ext.testing.models import tiny_reward_model
from coati_ext.testing.padding import pad_rows
from coati_ext.testing.rollouts import (
    Models,
    make_experience,
    ppo_trainer,
    tiny_critic,
    training_step,
)
from coati_ext.testing.text import SPECIAL
from coati_ext.testing.training import chosen_rows, has_strategies

Facts = Dict[str, Any]
PAD, PROMPT, ANSWER, EOS = "pad", "prompt", "answer", "EOS"
REWARD, OLD, NEW, ACTION = "reward", "old value", "new value", "action"
SPARE = 4  # columns to spare where no length is asked for, so that there are pads


def layout(batch: Batch, max_length: Optional[int]) -> Facts:
    """What each model is fed and where it is read, as plain data.

    Args:
        batch: prompts and answers.
        max_length: coati's own: columns of a training row, or of prompt and answer together.

    Returns:
        "grids", each with "models" that are fed it and "rows" of "name", "kinds", "texts", "mask"
        and "marks" (lists over the columns); and "findings", sentences.
    """
    with cpu_only(), torch.random.fork_rng(devices=[]):
        grids = (_rollout if batch.kind == ROLLOUT else _pairs)(batch, max_length)
    return {"grids": grids, "findings": _findings(grids)}


def _pairs(batch: Batch, max_length: Optional[int]) -> List[Facts]:
    # In G3 and G4 the script sets the side; before, the tokenizer is taken as it is.
    side = batch.words.side if has_strategies() else "right"
    tokenizer, rows = batch.local(side)
    longest = max_length or max(len(row.ids) for row in rows) + SPARE
    pairs = []
    for row in rows:
        prompt, answer = (
            " ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in (row.prompt, row.answer[:-1])
        )
        pairs.append({"prompt": prompt, "chosen": f" {answer}", "rejected": ""})
    found = chosen_rows(pairs, tokenizer=tokenizer, max_length=longest)
    ids, mask = (torch.stack(parts) for parts in zip(*found))
    model = tiny_reward_model("gpt2")
    with traced(model) as calls:
        model(ids, attention_mask=mask.long())
    (call,) = calls
    return [_grid(["reward model"], batch, rows, call, {REWARD: _weights(call)})]


def _rollout(batch: Batch, max_length: Optional[int]) -> List[Facts]:
    tokenizer, rows = batch.local("left")
    prompts = [row.prompt for row in rows]
    side = _side_of_prompts(batch)
    ids, mask = pad_rows(prompts, pad_token_id=tokenizer.pad_token_id, side=side)
    cut = any(row.answer[-1:] != [tokenizer.eos_token_id] for row in rows)
    answers = max(len(row.answer) for row in rows)
    room = max_length or ids.size(1) + answers + (0 if cut else SPARE)
    end, size = tokenizer.eos_token_id, len(tokenizer)
    actor, reference = (
        dictating_actor([row.ids for row in rows], eos_token_id=end, vocab_size=size)
        for _ in range(2)
    )
    models = Models(actor, tiny_critic("gpt2"), tiny_reward_model("gpt2"), reference)
    with traced(models.critic) as valued, traced(models.reward_model) as scored:
        trainer = ppo_trainer(models, tokenizer=tokenizer, lr=0.0, train_batch_size=len(rows))
        made = make_experience(
            trainer.experience_maker,
            ids,
            mask,
            tokenizer=tokenizer,
            max_length=room,
            **_truth(rows),
        )
        old = valued[-1]
        trainer.data_buffer.append(made)
        held = trainer.data_buffer.collate_fn(list(trainer.data_buffer.items))
        values = _trained_values(trainer, held)
        new = valued[-1]
    actions = held.action_mask.bool()
    fed = Call(held.sequences, _given_mask(held), None)
    marks = [
        ("reward model", scored[-1], {REWARD: _weights(scored[-1])}),
        ("critic in the rollout", old, {OLD: _read(old, made.values, actions)}),
        ("critic in training", new, {NEW: _read(new, values, actions)}),
        ("actor", fed, {ACTION: _action_marks(fed, actions)}),
    ]
    grids: List[Facts] = []
    for call, group in _alike(marks):
        lanes = {lane: cells for _, _, found in group for lane, cells in found.items()}
        grids.append(_grid([name for name, _, _ in group], batch, rows, call, lanes))
    return grids


def _side_of_prompts(batch: Batch) -> str:
    """As the tokenizer pads, in G1, whose maker does not know it; later ones ask for the left."""
    maker = import_module("coati.experience_maker").NaiveExperienceMaker
    return "left" if "tokenizer" in signature(maker.__init__).parameters else batch.words.side


def _truth(rows: Sequence[Row]) -> Facts:
    return {} if has_strategies() else {"gt_answer": [None] * len(rows)}


def _trained_values(trainer: Any, held: Any) -> Tensor:
    """The values that a training step gives to its loss, (B, A) or (B,)."""
    seen: List[Tensor] = []
    loss = trainer.critic_loss_fn.forward

    def watched(values: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(values)
        return loss(values, *args, **kwargs)

    with mock.patch.object(trainer.critic_loss_fn, "forward", watched):
        training_step(trainer, held)
    return seen[-1]


def _given_mask(held: Any) -> Tensor:
    mask: Tensor = held.attention_mask
    return mask != 0


Marks = List[List[str]]


def _weights(call: Call) -> Marks:
    """``R`` where the reward is read, ``r`` where it is read at several columns and averaged."""
    return _whole(call, "R", "r")


def _whole(call: Call, alone: str, among: str) -> Marks:
    assert call.weights is not None
    return [
        [("" if not weight else alone if weight > 0.999 else among) for weight in row]
        for row in call.weights.tolist()
    ]


def _read(call: Call, values: Tensor, actions: Tensor) -> Marks:
    """The number of each action in the cell that its value is read at, or ``V`` of an answer."""
    if call.weights is not None:
        return _whole(call, "V", "v")
    marks = [[""] * call.input_ids.size(1) for _ in call.input_ids]
    cells = call.cells(values)
    if cells.dim() == 1:
        for line, column in zip(marks, cells.tolist()):
            line[column] = "V"
        return marks
    for line, columns, real in zip(marks, cells.tolist(), actions.tolist()):
        for number, (column, taken) in enumerate(zip(columns, real)):
            if taken and column >= 0:
                line[column] = _also(line[column], str(number))
    return marks


def _also(held: str, number: str) -> str:
    return f"{held},{number}" if held else number


def _action_marks(fed: Call, actions: Tensor) -> Marks:
    width = fed.input_ids.size(1) - actions.size(1)
    return [
        [""] * width + [str(number) if taken else "" for number, taken in enumerate(row)]
        for row in actions.tolist()
    ]


def _alike(
    marks: Sequence[Tuple[str, Call, Dict[str, Marks]]],
) -> List[Tuple[Call, List[Tuple[str, Call, Dict[str, Marks]]]]]:
    """The models by what they are fed."""
    groups: List[Tuple[Call, List[Tuple[str, Call, Dict[str, Marks]]]]] = []
    for item in marks:
        call = item[1]
        for known, group in groups:
            if torch.equal(known.input_ids, call.input_ids) and torch.equal(
                known.attention_mask, call.attention_mask
            ):
                group.append(item)
                break
        else:
            groups.append((call, [item]))
    return groups


def _grid(
    models: List[str], batch: Batch, rows: Sequence[Row], call: Call, marks: Dict[str, Marks]
) -> Facts:
    found = []
    for number, (row, real) in enumerate(zip(rows, batch.rows)):
        ids = call.input_ids[number].tolist()
        places = _places(ids, row.ids)
        pad = batch.words.text(batch.words.pad)
        found.append(
            {
                "name": row.name,
                "kinds": [_kind(row, place, batch) for place in places],
                "places": places,
                "texts": [pad if it < 0 else batch.words.text(real.ids[it]) for it in places],
                "mask": [int(it) for it in call.attention_mask[number].tolist()],
                "marks": {lane: cells[number] for lane, cells in marks.items()},
                "prompt": len(row.prompt),
                "tokens": len(row.ids),
            }
        )
    return {"models": models, "rows": found}


def _places(ids: Ids, row: Ids) -> List[int]:
    """The place in the row that each cell is from; -1 for a pad.

    A special token, which may be like the pad, is one of the row's if it stands beside the token
    that is beside it in the row.
    """
    own = {token: place for place, token in enumerate(row) if token >= len(SPECIAL)}
    places = [own.get(token, -1) for token in ids]
    for step in (1, -1):
        columns = range(len(ids))[::step]
        for before, column in zip(columns, columns[1:]):
            place = places[before] + step
            if places[column] < 0 <= min(place, places[before]) and place < len(row):
                places[column] = place if row[place] == ids[column] else -1
    return places


def _kind(row: Row, place: int, batch: Batch) -> str:
    if place < 0:
        return PAD
    if place < len(row.prompt):
        return PROMPT
    last = place == len(row.ids) - 1 and row.ids[place] == 2
    return EOS if last else ANSWER


def _findings(grids: Sequence[Facts]) -> List[str]:
    """What the layout means, in sentences."""
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
