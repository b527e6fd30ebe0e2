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
from coati_ext.show.findings import (
    ACTION,
    ANSWER,
    EOS,
    NEW,
    OLD,
    PAD,
    PROMPT,
    REWARD,
    findings,
)
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
Marks = List[List[str]]
Fed = Tuple[str, Call, Dict[str, Marks]]
"""A model, what it was fed, and the lanes of marks that belong there."""
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
    return {"grids": grids, "findings": findings(grids)}


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
    fed = Call(held.sequences, held.attention_mask != 0, None)
    marks: List[Fed] = [
        ("reward model", scored[-1], {REWARD: _weights(scored[-1])}),
        ("critic in the rollout", old, {OLD: _read(old, made.values, actions)}),
        ("critic in training", new, {NEW: _read(new, values, actions)}),
        ("actor", fed, {ACTION: _action_marks(fed, actions)}),
    ]
    grids: List[Facts] = []
    for group in _alike(marks):
        lanes = {lane: cells for _, _, found in group for lane, cells in found.items()}
        grids.append(_grid([name for name, _, _ in group], batch, rows, group[0][1], lanes))
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


def _alike(fed: Sequence[Fed]) -> List[List[Fed]]:
    """Models that are fed the same, together."""
    groups: List[List[Fed]] = []
    for item in fed:
        known = next((group for group in groups if item[1].fed_as(group[0][1])), None)
        if known is None:
            groups.append([item])
        else:
            known.append(item)
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
