"""Does PPO pay for length, where nobody asked for it?

    python run.py [--coati FOLDER]

Nobody does: preferences and rules here look at the share of good words in an answer, however long
it is. First a reward model is trained from such preferences, and what answers of 1 to 23 words earn
in PPO (their rewards, summed over their actions) is held against their length. Then PPO trains
policies with a rule, once with 0.5 added to every score and once with 0.5 taken off, which says
nothing about which answer is better.
"""

import functools
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import LOOKS, scores_in_ppo, story

from coati_ext.demo.draw import bare
from coati_ext.demo.policy import learn
from coati_ext.demo.summary import mean
from coati_ext.demo.task import LENGTH, PROMPT, answer, pairs, prompt
from coati_ext.testing import tiny_models, tiny_tokenizer, train_reward_model
from coati_ext.testing.preferences import BAD, GOOD

LEVELS = {"plus": 0.5, "minus": -0.5}


class ShareOfGood(torch.nn.Module):
    """A reward model that is a rule: the share of good words less that of bad ones, and a level.

    Args:
        level: what is added to every score.
        turn: the token that ends a prompt.
        ordinary: the first id that is no special token; good words come first, then bad ones.
    """

    def __init__(self, level, turn, ordinary):
        super().__init__()
        self.level, self.turn, self.ordinary = level, turn, ordinary

    def forward(self, ids=None, attention_mask=None, **given):
        """Scores (B,) of rows (B, S), which generations name differently."""
        rows = ids if ids is not None else given.get("input_ids", given.get("sequences"))
        answers = ((rows == self.turn).long().cumsum(dim=1) > 0) & (rows != self.turn)
        place = rows - self.ordinary
        words = answers & (place >= 0)
        good = words & (place < len(GOOD))
        bad = words & ~good & (place < len(GOOD) + len(BAD))
        share = (good.sum(dim=1) - bad.sum(dim=1)) / words.sum(dim=1).clamp(min=1)
        return share + self.level


def measure(preferences, answers, seeds, episodes):
    words, scores, earned = rewards_of(preferences, answers)
    drift = {
        name: [
            learn("gpt2", seed, episodes, rule=functools.partial(ShareOfGood, level))["words"]
            for seed in range(seeds)
        ]
        for name, level in LEVELS.items()
    }
    return {"words": words, "scores": scores, "earned": earned, "drift": drift}


def rewards_of(preferences, count):
    """Words of random answers, their scores by a reward model in PPO, and what they earn there."""
    left, right = (tiny_tokenizer(pad="eos", padding_side=side) for side in ("left", "right"))
    models = tiny_models("gpt2", vocab_size=len(left), pad_token_id=left.pad_token_id)
    draw = random.Random(0)
    data = pairs(preferences, draw)
    train_reward_model(models.reward_model, data, tokenizer=right, batch_size=32, max_length=LENGTH)
    said = [answer(draw, draw.random(), draw.random()) for _ in range(count)]
    rows = [{"prompt": prompt(draw), "chosen": " " + " ".join(it)} for it in said]
    scores = scores_in_ppo(models, rows, left, PROMPT, LENGTH)
    words = torch.tensor([len(it) for it in said])
    return words.tolist(), scores.tolist(), earnings(scores, words + 1).tolist()


def earnings(scores, actions):
    """The rewards that coati makes of scores (B,), summed over each answer's actions: (B,)."""
    from coati.models.utils import compute_reward

    mask = torch.arange(int(actions.max())) < actions[:, None]
    log_probs = torch.zeros(mask.shape)
    rewards = compute_reward(scores, 0.0, log_probs, log_probs, action_mask=mask)
    # G1 and G2 give one reward an answer, G3 and G4 one an action, and the KL.
    return rewards[0].sum(dim=1) if isinstance(rewards, tuple) else rewards


def correlation(one, other):
    return float(torch.corrcoef(torch.tensor([one, other], dtype=torch.float))[0, 1])


def tell(found):
    def row(what, form, number):
        return [what, *(form.format(number(run)) for run in found.values())]

    yield row(
        "correlation of length with a score, in PPO",
        "{:.2f}",
        lambda run: correlation(run["words"], run["scores"]),
    )
    yield row(
        "  with what an answer earns in all",
        "{:.2f}",
        lambda run: correlation(run["words"], run["earned"]),
    )
    yield row(
        "words of an answer before PPO", "{:.1f}", lambda run: mean(starts(run["drift"]["plus"]))
    )
    for name, level in LEVELS.items():
        yield [
            f"  after it, scores {level:+} (each seed)",
            *(
                ", ".join(f"{curve[-1]:.1f}" for curve in run["drift"][name])
                for run in found.values()
            ),
        ]


def starts(curves):
    return [curve[0] for curve in curves]


def draw(found, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained", facecolor="white")
    earned, drift = figure.subplots(1, 2)
    for state, run in found.items():
        look = LOOKS[state]
        told = f"patches {state}: correlation {correlation(run['words'], run['earned']):.2f}"
        points = {"color": look["color"], "marker": look["marker"], "s": 14, "alpha": 0.6}
        earned.scatter(run["words"], run["earned"], **points, label=told)
        for (name, level), style in zip(LEVELS.items(), ("-", ":")):
            curves = run["drift"][name]
            for curve in curves:
                drift.plot(curve, color=look["color"], linestyle=style, linewidth=0.7, alpha=0.6)
            average = [mean(values) for values in zip(*curves)]
            thick = {**look, "linestyle": style, "linewidth": 2.2}
            drift.plot(average, **thick, label=f"patches {state}, scores {level:+}")
    earned.set_title("what an answer earns, by its length", loc="left")
    earned.set_xlabel("words")
    earned.set_ylabel("rewards, summed over the answer's actions")
    drift.set_title("what PPO makes of the length", loc="left")
    drift.set_xlabel("episode (64 answers each)")
    drift.set_ylabel("words of a fresh answer, mean")
    for axis in (earned, drift):
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        bare(axis)
    figure.savefig(file, dpi=78)


def main():
    story(
        measure,
        tell,
        draw,
        sizes={"preferences": 1500, "answers": 200, "seeds": 2, "episodes": 8},
        quick={"preferences": 64, "answers": 32, "seeds": 1, "episodes": 2},
    )


if __name__ == "__main__":
    main()
