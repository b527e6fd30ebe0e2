"""Does PPO see the rewards that its reward model was trained to give?

    python run.py [--family llama] [--pad pad] [--coati FOLDER]

A tiny reward model is trained by coati's own trainer. It then scores held-out pairs twice: in the
rows that it was trained on, and in coati's experience maker (of v0.3.2 or later), whose sampler is
made to say the same answers.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import LOOKS, scores_in_ppo, scores_in_training, story

from coati_ext.demo.draw import bare
from coati_ext.testing import (
    preference_pairs,
    tiny_models,
    tiny_tokenizer,
    train_reward_model,
)

ROOM = 192  # columns for the rows of training


def measure(family, pad, pairs, held_out, epochs):
    """Train, then score both ways: (chosen, rejected) of the held-out pairs each."""
    data = [pair for pair in preference_pairs(2 * (pairs + held_out)) if fits(pair)]
    train, test = data[:pairs], data[pairs : pairs + held_out]
    swapped = [{**pair, "chosen": pair["rejected"]} for pair in test]
    left, right = (tiny_tokenizer(pad=pad, padding_side=side) for side in ("left", "right"))
    models = tiny_models(family, vocab_size=len(left), pad_token_id=left.pad_token_id)
    train_reward_model(models.reward_model, train, tokenizer=right, epochs=epochs, max_length=ROOM)
    trained, in_ppo = [], []
    for answers in (test, swapped):
        trained.append(scores_in_training(models.reward_model, answers, right, ROOM))
        in_ppo.append(scores_in_ppo(models, answers, left, ROOM, 2 * ROOM))
    return compared(torch.stack(trained), torch.stack(in_ppo))


def fits(pair):
    """Whether both answers end within the room; one word is one token."""
    longer = max(pair["chosen"], pair["rejected"], key=len)
    return len((pair["prompt"] + longer).split()) < ROOM


def compared(trained, in_ppo):
    """What the scores (2, B) of chosen and rejected answers say."""
    flat = torch.stack([trained.flatten(), in_ppo.flatten()])
    return {
        "accuracy in training": float((trained[0] > trained[1]).float().mean()),
        "accuracy in PPO": float((in_ppo[0] > in_ppo[1]).float().mean()),
        "difference": float((trained - in_ppo).abs().max()),
        "spread": float(trained.std()),
        "correlation": float(torch.corrcoef(flat)[0, 1]),
        "scores": flat.tolist(),
    }


def tell(found):
    for what, name, form in (
        ("pair accuracy in rows of training", "accuracy in training", "{:.3f}"),
        ("pair accuracy in PPO", "accuracy in PPO", "{:.3f}"),
        ("largest difference of a score", "difference", "{:.2g}"),
        ("standard deviation of the scores", "spread", "{:.2f}"),
        ("correlation of both scores", "correlation", "{:.4f}"),
    ):
        yield [what, *(form.format(run[name]) for run in found.values())]


def draw(found, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.8), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, (state, run) in zip(axes, found.items()):
        axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
        axis.scatter(*run["scores"], s=14, alpha=0.6, **points(state))
        axis.set_title(f"patches {state}: up to {run['difference']:.2g} apart", loc="left")
        axis.set_xlabel("score in a row of reward-model training")
        bare(axis)
    axes[0].set_ylabel("score of the same answer in PPO")
    figure.savefig(file, dpi=110)


def points(state):
    return {name: LOOKS[state][name] for name in ("color", "marker")}


def main():
    story(
        measure,
        tell,
        draw,
        sizes={"family": "gpt2", "pad": "eos", "pairs": 480, "held_out": 100, "epochs": 2},
        quick={"pairs": 32, "held_out": 12, "epochs": 1},
    )


if __name__ == "__main__":
    main()
