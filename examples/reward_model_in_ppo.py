"""Does PPO see the rewards that its reward model was trained to give?

    python reward_model_in_ppo.py [--family gpt2] [--pad eos]              # upstream as it is
    COATI_EXT=1 python reward_model_in_ppo.py [--family gpt2] [--pad eos]  # with the patches

A tiny reward model is trained by the importable coati's own trainer. It then scores held-out pairs
twice: in the rows that it was trained on, and in coati's experience maker (of v0.3.2 or later), to
which the answers are dictated. A stand-in will do for coati, on PYTHONPATH:

    python -c "from coati_ext.testing import standin; print(standin('G2'))"
"""

import argparse
from unittest import mock

import torch

import coati_ext._startup  # noqa: F401  what an installed coati-ext does when Python starts
from coati_ext.testing import (
    chosen_rows,
    cpu_only,
    experience_maker,
    families,
    make_experience,
    preference_pairs,
    tiny_models,
    tiny_tokenizer,
    train_reward_model,
)
from coati_ext.testing.padding import pad_rows

ROOM = 192  # columns for the rows of training


def compare(family="gpt2", pad="eos", pairs=480, held_out=100, epochs=2, batch_size=10):
    """Train, score both ways, and return what came out, by name."""
    data = [pair for pair in preference_pairs(2 * (pairs + held_out)) if fits(pair)]
    train, test = data[:pairs], data[pairs : pairs + held_out]
    swapped = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in test]
    tokenizer = tiny_tokenizer(pad=pad)
    models = tiny_models(family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    with cpu_only():
        train_reward_model(
            models.reward_model, train, tokenizer=tokenizer, epochs=epochs, max_length=ROOM
        )
        trained, in_ppo = (
            torch.stack(
                [score(models, answers, tokenizer, batch_size) for answers in (test, swapped)]
            )
            for score in (scores_in_training, scores_in_ppo)
        )
    return {
        "pair accuracy in training form": share_right(trained),
        "pair accuracy in PPO": share_right(in_ppo),
        "largest difference of a score": float((trained - in_ppo).abs().max()),
        "correlation of the scores": float(
            torch.corrcoef(torch.stack([trained.flatten(), in_ppo.flatten()]))[0, 1]
        ),
    }


def fits(pair):
    """Whether both answers end within the room; one word is one token."""
    longer = max(pair["chosen"], pair["rejected"], key=len)
    return len((pair["prompt"] + longer).split()) < ROOM


def share_right(scores):
    """How often the chosen answer (first row) has a higher score than the rejected one."""
    return float((scores[0] > scores[1]).float().mean())


def scores_in_training(models, pairs, tokenizer, batch_size):
    """Scores (B,) of the chosen answers, in rows from coati's data path."""
    rows = chosen_rows(pairs, tokenizer=tokenizer, max_length=ROOM)
    scores = []
    for start in range(0, len(rows), batch_size):
        ids, mask = zip(*rows[start : start + batch_size])
        with torch.no_grad():
            scores.append(
                models.reward_model(torch.stack(ids), attention_mask=torch.stack(mask).long())
            )
    return torch.cat(scores)


def scores_in_ppo(models, pairs, tokenizer, batch_size):
    """Scores (B,) of the chosen answers, in Experience that coati makes of their prompts."""
    tokenizer = tiny_tokenizer(pad=tokenizer.pad_token[1:-1], padding_side="left")
    maker = experience_maker(models, tokenizer=tokenizer, kl_coef=0.0)
    extra, scores = {}, []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        prompts = [tokenizer(pair["prompt"])["input_ids"] for pair in batch]
        ids, mask = pad_rows(prompts, pad_token_id=tokenizer.pad_token_id, side="left")
        answers = [
            tokenizer(pair["chosen"])["input_ids"] + [tokenizer.eos_token_id] for pair in batch
        ]
        if hasattr(maker, "use_grpo"):
            extra["gt_answer"] = [None] * len(batch)
        dictated, _ = pad_rows(answers, pad_token_id=tokenizer.pad_token_id, side="right")
        with mock.patch("coati.experience_maker.naive.generate", dictate(dictated)):
            made = make_experience(
                maker, ids, mask, tokenizer=tokenizer, max_length=2 * ROOM, **extra
            )
        scores.append(made.reward)
    return torch.cat(scores)


def dictate(answers):
    """A sampler that appends these answers (B, A) to the prompts."""
    return lambda model, input_ids, *args, **kwargs: torch.cat([input_ids, answers], dim=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", default="gpt2", choices=families())
    parser.add_argument("--pad", default="eos", choices=("pad", "eos"))
    for size, default in (("pairs", 480), ("held-out", 100), ("epochs", 2)):
        parser.add_argument(f"--{size}", type=int, default=default)
    for name, value in compare(**vars(parser.parse_args())).items():
        print(f"{name + ':':32}{value:.6g}")
