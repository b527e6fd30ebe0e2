"""What the examples share, so that each of them is only its story.

An example measures in processes of their own, one with the patches off and one with them on, prints
what came out as a table and draws it.

Letters: B rows, S sequence columns.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import coati_ext._startup  # noqa: F401  what coati_ext.pth does, for checkouts that lack it
from coati_ext.cli.child import Run, side_by_side
from coati_ext.cli.screen import table, write
from coati_ext.cli.some_coati import Coati, some_coati
from coati_ext.demo.draw import LOOKS as LINES
from coati_ext.demo.draw import MARKERS
from coati_ext.launch.installation import version_of
from coati_ext.patching.patch import GENERATIONS
from coati_ext.patching.source import generation_of
from coati_ext.testing import chosen_rows, cpu_only, experience_maker, make_experience
from coati_ext.testing.dictation import dictating_actor
from coati_ext.testing.padding import layouts, pad_rows, random_rows

OFF_ON = {"off": ("0", {}), "on": ("1", {})}
LOOKS = {state: {**look, "marker": MARKERS[state]} for state, look in LINES.items()}


def story(measure, tell, draw, sizes, quick, runs=OFF_ON):
    """Measure in a process for each run, all at the same time; print a table and draw a picture.

    Args:
        measure: the process; takes `sizes` and what its run adds, returns what JSON can hold.
        tell: from what was found in each run to rows of a table: what, and a cell for each run.
        draw: from what was found in each run and a file to a picture in it.
        sizes: arguments of `measure`, each an option of the command.
        quick: the smaller ones of `--quick`.
        runs: by name the ``COATI_EXT`` of a process and further arguments of `measure`.
    """
    given = command(sizes, quick)
    if given.half:
        half(measure, given.half)
        return
    asked = [
        Run(name, flag, ("--half", json.dumps({**given.sizes, **more})))
        for name, (flag, more) in runs.items()
    ]
    found = side_by_side("run", asked, coati=given.coati.folder, apart=True)
    finish(given, dict(zip(runs, found)), tell, draw)


def command(sizes, quick, generation=None):
    """The options of an example, among them its coati and its `sizes`."""
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--coati", metavar="FOLDER", help="holds coati/; or G1 to G4: a stand-in for one")
    add("--picture", type=Path, default=Path("picture.png"), metavar="FILE", help="to draw")
    add("--quick", action="store_true", help="small sizes, to see whether it runs")
    add("--json", action="store_true", help="print all that was measured, instead of a table")
    add("--half", type=json.loads, help=argparse.SUPPRESS)  # in a process of an example
    for name, value in sizes.items():
        add(f"--{name.replace('_', '-')}", type=type(value), help=f"default: {value}")
    given = parser.parse_args()
    given.sizes = {**sizes, **(quick if given.quick else {})}
    given.sizes.update({it: vars(given)[it] for it in sizes if vars(given)[it] is not None})
    if not given.half:
        given.coati = coati_of(given.coati, generation)
        if generation not in (None, given.coati.generation):
            parser.error(f"--coati {given.coati.folder} is not of {generation}")
    return given


def coati_of(place, generation=None):
    """The coati in a folder, else the one that can be imported, else coati-ext's stand-in."""
    if place in GENERATIONS:
        return some_coati(place)
    if place:
        folder = Path(place).resolve()
        return Coati(f"The coati in {folder}", generation_of(folder / "coati"), str(folder))
    found = some_coati()
    return found if generation in (None, found.generation) else some_coati(generation)


def half(measure, arguments):
    """Be a process of an example: measure, and print what was found as JSON."""
    torch.set_num_threads(1)
    found = measure(**arguments)
    print(json.dumps({**found, "seconds": time.process_time()}))


def finish(given, found, tell, draw):
    """Print what was found, and draw it."""
    if given.json:
        write(json.dumps({"coati": given.coati.words, "found": found}))
    else:
        write(f"{given.coati.words} ({given.coati.generation}).", "")
        write(table(["", *found], tell(found)), "")
        seconds = " and ".join(f"{run['seconds']:.0f}" for run in found.values())
        write(f"measured here, in {seconds} seconds of a CPU core")
    if version_of("matplotlib"):
        draw(found, given.picture)
        if not given.json:
            write(f"picture: {given.picture}")


def scores_in_training(model, pairs, tokenizer, width):
    """Scores (B,) of the chosen answers, in rows from coati's data path."""
    rows = chosen_rows(pairs, tokenizer=tokenizer, max_length=width)
    ids, mask = (torch.stack(parts) for parts in zip(*rows))
    with torch.no_grad():
        return model(ids, attention_mask=mask.long())


def scores_in_ppo(models, pairs, tokenizer, width, room):
    """Scores (B,) of the chosen answers, in the experience that coati makes of their prompts.

    Its sampler is made to say these answers.

    Args:
        models: the four models of PPO, whose actor is not asked.
        pairs: records of a prompt and a chosen answer.
        tokenizer: pads on the left, as coati's sampler wants it.
        width: columns that the prompts are padded to.
        room: columns for prompt and answer, coati's `max_length`.
    """
    prompts, answers = (
        [tokenizer(pair[part])["input_ids"] for pair in pairs] for part in ("prompt", "chosen")
    )
    rows = [prompt + answer for prompt, answer in zip(prompts, answers)]
    actor = dictating_actor(rows, eos_token_id=tokenizer.eos_token_id, vocab_size=len(tokenizer))
    models = models._replace(actor=actor, initial_model=actor)
    maker = experience_maker(models, tokenizer=tokenizer, kl_coef=0.0)
    more = {"gt_answer": [None] * len(pairs)} if hasattr(maker, "use_grpo") else {}
    ids, mask = pad_rows(prompts, pad_token_id=tokenizer.pad_token_id, side="left", width=width)
    with cpu_only():
        made = make_experience(maker, ids, mask, tokenizer=tokenizer, max_length=room, **more)
    return made.reward


def scores_by_layout(model):
    """Scores of the same random rows: each alone, and all of them padded in each possible way."""
    rows = random_rows()
    with torch.no_grad():
        alone = [model(ids, torch.ones_like(ids)) for ids in (torch.tensor([row]) for row in rows)]
        padded = {name: model(*batch) for name, *batch in layouts(rows, pad_token_id=0)}
    return {name: it.tolist() for name, it in {"alone": torch.cat(alone), **padded}.items()}


def moved(scores):
    """How far the padding moves a score at most, of :func:`scores_by_layout`."""
    return max(abs(one - it) for row in scores.values() for one, it in zip(scores["alone"], row))
