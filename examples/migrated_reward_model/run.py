"""A mean-pooled reward model of G1 (v0.2.8 to v0.3.2) is brought to the end token.

    python run.py [--coati FOLDER]      a coati of G1, else coati-ext's stand-in for one

1. Flag off: G1's trainer trains reward models and saves them.
2. `coati-ext migrate` re-fits their value heads on pairs of their own.
3. Flag on: the old and the migrated checkpoints are loaded and score held-out pairs in PPO.
"""

import contextlib
import io
import json
import random
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import command, finish, half, scores_in_ppo, scores_in_training

import coati_ext
from coati_ext.cli import main as coati_ext_command
from coati_ext.cli.child import run_module
from coati_ext.demo.draw import bare
from coati_ext.demo.task import LENGTH, PROMPT, pairs
from coati_ext.testing import tiny_models, tiny_tokenizer, train_reward_model

HELD_OUT = 500  # pairs
STAGES = {
    "mean-pooled, as it was": ("#d55e00", "\\\\"),
    "old head at the end token": ("#e69f00", ".."),
    "migrated": ("#0072b2", "//"),
}


def measure(file, seeds, preferences, folder):
    """The scores of one reward model a seed, which is trained and saved, or loaded.

    Args:
        file: of its weights; trained if it is not there.
        seeds: how many.
        preferences: pairs to train with.
        folder: where each seed has a folder of its own.
    """
    left, right = (tiny_tokenizer(pad="eos", padding_side=side) for side in ("left", "right"))
    sizes = {"vocab_size": len(left), "pad_token_id": left.pad_token_id}
    found, loaded = [], "trained"
    for seed in range(seeds):
        models = tiny_models("gpt2", seed=seed, **sizes)
        weights = Path(folder, str(seed), file)
        if weights.exists():
            loaded = load(models.reward_model, weights)
        else:
            train(models.reward_model, seed, preferences, right, weights)
        found.append(scores(models, left, right).tolist())
    return {"loaded": loaded, "scores": found}


def train(model, seed, preferences, tokenizer, weights):
    data, shape = pairs(preferences, random.Random(seed)), {"batch_size": 32, "max_length": LENGTH}
    train_reward_model(model, data, tokenizer=tokenizer, seed=seed, **shape)
    model.model.config.save_pretrained(weights.parent)
    tokenizer.save_pretrained(weights.parent)
    torch.save(model.state_dict(), weights)


def load(model, weights):
    """Load them, by force where coati-ext refuses them, and say so."""
    weights = torch.load(weights)
    try:
        model.load_state_dict(weights)
        return "accepted"
    except coati_ext.errors.StampError:
        coati_ext.disable()
        with coati_ext.applied({"provenance": {"on_mismatch": "ignore"}}):
            model.load_state_dict(weights)
        coati_ext.enable()
        return "refused"


def scores(models, left, right):
    """Scores (2, 2, B): in rows of training and in PPO, of chosen and of rejected answers."""
    test = pairs(HELD_OUT, random.Random(1000))
    swapped = [{**pair, "chosen": pair["rejected"]} for pair in test]
    both = (test, swapped)
    trained = [scores_in_training(models.reward_model, it, right, LENGTH) for it in both]
    in_ppo = [scores_in_ppo(models, it, left, PROMPT, LENGTH) for it in both]
    return torch.stack([torch.stack(trained), torch.stack(in_ppo)])


def migrate(folder, seed, preferences):
    """Re-fit the value head: `coati-ext migrate rm.pt --pretrained ...`."""
    data = folder / "pairs.jsonl"
    fitted = pairs(preferences, random.Random(100 + seed))
    data.write_text("".join(json.dumps(pair) + "\n" for pair in fitted))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        failed = coati_ext_command(
            [
                *("migrate", str(folder / "rm.pt"), "--pretrained", str(folder)),
                *("--data", str(data), "--output", str(folder / "migrated.pt")),
                *("--max-length", str(LENGTH)),
            ]
        )
    if failed:
        sys.exit(said.getvalue())


def main():
    sizes = {"seeds": 3, "preferences": 1500}
    given = command(sizes, quick={"seeds": 1, "preferences": 64}, generation="G1")
    if given.half:
        half(measure, given.half)
        return
    with tempfile.TemporaryDirectory() as folder:

        def run(file, flag):
            told = json.dumps({**given.sizes, "file": file, "folder": folder})
            place = given.coati.folder
            return run_module("run", "--half", told, flag=flag, coati=place, folder=folder)

        seeds = [Path(folder, str(seed)) for seed in range(given.sizes["seeds"])]
        for place in seeds:
            place.mkdir()
        trained = run("rm.pt", "0")
        for seed, place in enumerate(seeds):
            migrate(place, seed, given.sizes["preferences"] // 2)
        found = dict(zip(STAGES, [trained, run("rm.pt", "1"), run("migrated.pt", "1")]))
    finish(given, found, tell, draw)


def accuracies(run, form):
    """The share of held-out pairs ranked right with each seed: 0 rows of training, 1 in PPO."""
    chosen_rejected = torch.tensor(run["scores"])[:, form]  # (seeds, 2, B)
    return (chosen_rejected[:, 0] > chosen_rejected[:, 1]).float().mean(dim=1).tolist()


def losses(run, form):
    """The pairwise loss of held-out pairs with each seed."""
    chosen, rejected = torch.tensor(run["scores"])[:, form].unbind(dim=1)
    return torch.nn.functional.softplus(rejected - chosen).mean(dim=1).tolist()


def tell(found):
    yield ["checkpoint", *(run["loaded"] for run in found.values())]
    for what, number, form in (
        ("pair accuracy in rows of training", accuracies, 0),
        ("pair accuracy in PPO", accuracies, 1),
        ("pairwise loss in PPO", losses, 1),
    ):
        cells = [map("{:.3f}".format, number(run, form)) for run in found.values()]
        yield [what, *map(", ".join, cells)]
    yield ["a score differs in PPO by up to", *(f"{apart(run):.1g}" for run in found.values())]


def apart(run):
    """The largest difference of a score between a row of training and PPO."""
    both = torch.tensor(run["scores"])
    return float((both[:, 0] - both[:, 1]).abs().max())


def draw(found, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 3.8), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for number, (stage, run) in enumerate(found.items()):
        colour, hatch = STAGES[stage]
        for form in range(2):
            values = accuracies(run, form)
            middle, place = sum(values) / len(values), form + 0.27 * (number - 1)
            bar = {"color": colour, "hatch": hatch, "alpha": 0.5, "width": 0.25}
            axis.bar(place, middle, **bar, label=None if form else stage)
            axis.plot([place] * len(values), values, "o", color=colour, markeredgecolor="black")
            box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
            axis.text(place, 0.52, f"{middle:.3f}", ha="center", fontsize=8, bbox=box)
    axis.axhline(0.9, color="0.4", linestyle=":", linewidth=1, label="the best possible")
    axis.set_xticks(range(2), ["in rows of training", "in PPO"])
    axis.set_ylim(0.5, 1)
    axis.set_ylabel(f"accuracy, {HELD_OUT} held-out pairs")
    axis.set_title("bars: the mean; dots: each seed", loc="left", fontsize=10)
    axis.legend(frameon=False, fontsize=8, ncols=2)
    bare(axis)
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
