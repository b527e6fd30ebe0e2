"""Which rewards does PPO see at its start, and are they those that the reward model was trained on?

    python run.py [--coati FOLDER]

Three reward models are trained by coati's own trainer, from the same pairs, with three seeds. Then
PPO begins: a fine-tuned policy answers prompts, and coati's experience maker has its answers
scored. The answers are the same for all reward models, and with the patches off and on.
"""

import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import LOOKS, scores_in_ppo, scores_in_training, story

from coati_ext.demo.draw import bare
from coati_ext.demo.policy import fine_tune, language_model, prompt_batch, sampled
from coati_ext.demo.summary import mean
from coati_ext.demo.task import ANSWER, LENGTH, PROMPT, pairs, prompt
from coati_ext.testing import tiny_models, tiny_reward_model, tiny_tokenizer, train_reward_model

MORE = 24  # pads more before every prompt


def measure(seeds, preferences, answers):
    # As in coati's scripts: the end token pads, on the left only where answers are sampled.
    left, right = (tiny_tokenizer(pad="eos", padding_side=side) for side in ("left", "right"))
    sizes = {"vocab_size": len(left), "pad_token_id": left.pad_token_id}
    models = tiny_models("gpt2", **sizes)
    first = answers_of(models.actor, left, right, answers)
    runs = []
    for seed in range(seeds):
        model = tiny_reward_model("gpt2", seed=seed, **sizes)
        data = pairs(preferences, random.Random(0))
        shape = {"batch_size": 32, "max_length": LENGTH}
        train_reward_model(model, data, tokenizer=right, seed=seed, **shape)
        judged = models._replace(reward_model=model)
        runs.append(
            {
                "trained": scores_in_training(model, first, right, LENGTH).tolist(),
                "in PPO": scores_in_ppo(judged, first, left, PROMPT, LENGTH).tolist(),
                "padded": scores_in_ppo(judged, first, left, PROMPT + MORE, LENGTH + MORE).tolist(),
            }
        )
    return {"runs": runs}


def answers_of(actor, left, right, count):
    """Prompts, and as chosen answers what a fine-tuned policy says to them."""
    draw = random.Random(0)
    policy = language_model(actor)
    fine_tune(policy, right, draw)
    prompts = [prompt(draw) for _ in range(count)]
    said = left.batch_decode(
        sampled(policy, left, prompt_batch(left, prompts)), skip_special_tokens=True
    )
    return [
        {"prompt": asked, "chosen": f" {answer}", "rejected": f" {answer}"}
        for asked, answer in zip(prompts, said)
        if len(answer.split()) < ANSWER  # those that have ended by themselves
    ]


def spread(scores):
    return float(torch.tensor(scores).std())


def correlation(one, other):
    return float(torch.corrcoef(torch.tensor([one, other]))[0, 1])


def apart(one, other):
    """The largest difference, in standard deviations of the first."""
    gaps = torch.tensor(one) - torch.tensor(other)
    return float(gaps.abs().max()) / spread(one)


def tell(found):
    for what, form, number in (
        ("mean reward at the start of PPO", "{:.2f}", lambda it: mean(it["in PPO"])),
        ("  the same answers in rows of training", "{:.2f}", lambda it: mean(it["trained"])),
        ("standard deviation of these rewards", "{:.2f}", lambda it: spread(it["in PPO"])),
        ("  the same answers in rows of training", "{:.2f}", lambda it: spread(it["trained"])),
        ("correlation of both", "{:.3f}", lambda it: correlation(it["in PPO"], it["trained"])),
        (f"mean reward with {MORE} pads more", "{:.2f}", lambda it: mean(it["padded"])),
        (
            "  which move a reward by up to (sd)",
            "{:.2g}",
            lambda it: apart(it["in PPO"], it["padded"]),
        ),
    ):
        yield [
            what,
            *(", ".join(form.format(number(it)) for it in run["runs"]) for run in found.values()),
        ]


def draw(found, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.3), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, (state, run) in zip(axes, found.items()):
        axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
        for seed, (scores, (marker, colour)) in enumerate(zip(run["runs"], SEEDS)):
            label = f"seed {seed}: mean {mean(scores['in PPO']):.2f}"
            axis.scatter(
                scores["trained"],
                scores["in PPO"],
                s=12,
                alpha=0.5,
                marker=marker,
                color=colour,
                label=label,
            )
            middle = mean(scores["trained"]), mean(scores["in PPO"])
            axis.plot(*middle, marker, color=colour, markersize=12, markeredgecolor="black")
        axis.set_title(f"patches {state}", loc="left", color=LOOKS[state]["color"])
        axis.set_xlabel("reward of an answer in a row of training")
        axis.legend(frameon=False, fontsize=8, title="large: the mean", title_fontsize=8)
        bare(axis)
    axes[0].set_ylabel("reward of the same answer at the start of PPO")
    figure.savefig(file, dpi=100)


SEEDS = (("o", "#0072b2"), ("s", "#d55e00"), ("^", "#009e73"))


def main():
    story(
        measure,
        tell,
        draw,
        sizes={"seeds": 3, "preferences": 1500, "answers": 200},
        quick={"seeds": 2, "preferences": 64, "answers": 24},
    )


if __name__ == "__main__":
    main()
