"""A small PPO run on a planted task, by upstream's own trainers, patches off beside on.

    python benchmarks/planted_ppo.py                                the four stand-ins
    python benchmarks/planted_ppo.py compare v0.5.1=FOLDER HEAD=FOLDER:PYTHON --out results
    python benchmarks/planted_ppo.py draw results                   from what compare left there
    COATI_EXT=1 python benchmarks/planted_ppo.py run curves.json    the coati importable here

The task: answer a prompt in about eight words, good ones rather than bad ones. The score of an
answer is known exactly (:func:`true_score`) and no trainer sees it. As in coati's scripts a policy
is fine-tuned, a reward model is trained from preference pairs and becomes the critic too, and PPO
makes the policy answer what the reward model likes. Before the first episode and after each, fresh
answers are sampled by Hugging Face's own `generate` and scored: they are what a user would get.

Letters: B rows, S sequence columns.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

HERE = Path(__file__).resolve().parent
for _place in (HERE.parent, HERE):  # coati_ext of this checkout, installed or not; our peers
    if str(_place) not in sys.path:
        sys.path.insert(0, str(_place))

from each_coati import FailedError, Place, add_commands, places, run_elsewhere  # noqa: E402

import coati_ext._startup  # noqa: E402, F401  what coati_ext.pth does, for checkouts that lack it
from coati_ext.demo.policy import (  # noqa: E402
    fine_tune,
    language_model,
    options_of_generation,
    prompt_batch,
    sampled,
)
from coati_ext.demo.task import ANSWER, PROMPT, prompt  # noqa: E402
from coati_ext.demo.task import pairs as preference_pairs  # noqa: E402
from coati_ext.testing.preferences import BAD, GOOD  # noqa: E402

SEEDS = (0, 1, 2)
BEST = 8  # words of the best answer
PAIRS = 4000  # of preferences
EPISODES, ROLLOUTS, ROWS = 30, 2, 32  # rollouts an episode, answers a rollout
UPDATES, BATCH = 2, 16  # rounds over an episode's answers, answers a training step
LR, KL_COEF = 1e-3, 0.05
END = 5  # a run's last episodes, whose mean the table shows
STATES = {"off": "0", "on": "1"}

Curve = List[Dict[str, float]]


def true_score(words: Sequence[str]) -> float:
    """The share of good words less that of bad ones, less 1/16 a word more or fewer than eight."""
    good = sum(word in GOOD for word in words)
    bad = sum(word in BAD for word in words)
    return (good - bad) / max(len(words), 1) - abs(len(words) - BEST) / 16


def train(seed: int, episodes: int = EPISODES, pairs: int = PAIRS) -> Curve:
    """Fine-tune, train a reward model and do PPO, with the coati that can be imported.

    Knows nothing of patches, as the script of a user.

    Returns:
        What :func:`evaluate` finds before the first episode and after each, and after each as
        "reward" the mean score that the reward model gave in its rollouts.
    """
    import torch
    from coati.trainer.callbacks import Callback
    from torch.utils.data import DataLoader

    from coati_ext.testing import (
        cpu_only,
        ppo_trainer,
        tiny_models,
        tiny_tokenizer,
        train_reward_model,
    )

    draw = random.Random(seed)
    # As in upstream's scripts: the end token pads, on the left only where answers are sampled.
    left, right = (tiny_tokenizer(pad="eos", padding_side=side) for side in ("left", "right"))
    models = tiny_models("gpt2", seed=seed, vocab_size=len(left), pad_token_id=left.pad_token_id)
    fine_tune(language_model(models.actor), right, random.Random(seed))
    models.initial_model.load_state_dict(models.actor.state_dict())
    train_reward_model(
        models.reward_model,
        preference_pairs(pairs, draw, true_score),
        tokenizer=right,
        batch_size=32,
        max_length=PROMPT + ANSWER,
        seed=seed,
    )
    models.critic.load_state_dict(models.reward_model.state_dict())
    if hasattr(models.critic, "use_action_mask"):
        models.critic.use_action_mask = True  # G1's scripts ask for it

    asked = prompt_batch(left, [prompt(draw) for _ in range(64)])
    curve: Curve = []
    rewards: List[Any] = []
    models.reward_model.register_forward_hook(lambda _, __, reward: rewards.append(reward))

    class Evaluate(Callback):  # type: ignore[misc]
        def on_episode_end(self, episode: int) -> None:
            if rewards:  # else it has failed, of which upstream tells its callbacks no less
                found = evaluate(models.actor, models.initial_model, left, asked)
                curve.append({**found, "reward": float(torch.cat(rewards).mean())})
                rewards.clear()

    with cpu_only(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        prompts = DataLoader(
            [prompt(draw) for _ in range(64 * ROWS)],
            batch_size=ROWS,
            shuffle=True,
            collate_fn=lambda texts: prompt_batch(left, texts),
        )
        trainer = ppo_trainer(
            models,
            tokenizer=left,
            lr=LR,
            save_dir=folder,
            kl_coef=KL_COEF,
            train_batch_size=BATCH,
            callbacks=[Evaluate()],
            max_length=PROMPT + ANSWER,
            **options_of_generation(),
        )
        curve.append(evaluate(models.actor, models.initial_model, left, asked))
        trainer.fit(
            num_episodes=episodes,
            num_collect_steps=ROLLOUTS,
            num_update_steps=UPDATES,
            prompt_dataloader=prompts,
            pretrain_dataloader=None,
        )
    return curve


def positions(mask: Any) -> Any:
    """The place of each token in its own row, (B, S)."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def evaluate(
    actor: Any, reference: Any, tokenizer: Any, prompts: Mapping[str, Any]
) -> Dict[str, float]:
    """Sample an answer to each prompt and score it by what it says.

    Returns:
        Means over the answers: "score", "words", "ended" (the share with an end token) and "kl" to
        the reference (nats: the exact KL in each state of the answer, summed).
    """
    import torch

    mask, end = prompts["attention_mask"], tokenizer.eos_token_id
    model = language_model(actor)
    answers = sampled(model, tokenizer, prompts)
    rows = torch.cat([prompts["input_ids"], answers], dim=1)
    with torch.no_grad():
        ends = (answers == end).long()
        real = (ends.cumsum(dim=1) - ends == 0).long()
        whole = torch.cat([mask, real], dim=1)
        inputs = {"attention_mask": whole, "position_ids": positions(whole)}
        log, log_reference = (
            item(rows, **inputs)["logits"][:, mask.size(1) - 1 : -1].log_softmax(dim=-1)
            for item in (model, language_model(reference))
        )
        kl = ((log.exp() * (log - log_reference)).sum(dim=-1) * real).sum(dim=1)
    words = [
        tokenizer.convert_ids_to_tokens([token for token in row if token != end])
        for row in answers.tolist()
    ]
    return {
        "score": sum(map(true_score, words)) / len(words),
        "words": sum(map(len, words)) / len(words),
        "ended": float(ends.any(dim=1).float().mean()),
        "kl": float(kl.mean()),
    }


def run(out: Path) -> None:
    """Train once with each seed and write the learning curves as JSON."""
    import torch

    torch.set_num_threads(1)
    out.write_text(json.dumps([train(seed) for seed in SEEDS]))


def compare(coatis: Sequence[Place], out: Path) -> None:
    """Run each coati, patches off and on, in processes of their own; then table and picture.

    Args:
        coatis: where they are.
        out: the folder for `planted_ppo.json`, `planted_ppo.md` and `planted_ppo.png`.
    """
    import matplotlib  # noqa: F401  to fail before the runs, not after them

    from coati_ext.patching.source import generation_of

    out.mkdir(parents=True, exist_ok=True)
    results = []
    for at in coatis:
        result: Dict[str, Any] = {
            "coati": at.label,
            "generation": generation_of(at.folder / "coati"),
        }
        for state, flag in STATES.items():
            print(f"{at.label}, patches {state} ...", flush=True)
            result[state] = found(at, flag)
        results.append(result)
        (out / "planted_ppo.json").write_text(json.dumps(results))
    draw(out)


def found(at: Place, flag: str) -> Dict[str, Any]:
    """What `run` finds in a process with one coati and one flag, or what it failed with."""
    try:
        return {"curves": run_elsewhere(__file__, at, COATI_EXT=flag)}
    except FailedError as error:
        return {"error": str(error).splitlines()[-1]}


def draw(out: Path) -> None:
    """Make the table and the picture of the results in a folder."""
    from coati_ext.cli.screen import table, write

    results = json.loads((out / "planted_ppo.json").read_text())
    heads = [
        "coati",
        "patches",
        "true score before PPO",
        "true score after (each seed)",
        "words",
        "ended",
        "KL to reference, nats",
        "reward model's score",
    ]
    rows = [
        [f"{result['generation']}: {result['coati']}", state, *cells(result[state])]
        for result in results
        for state in STATES
    ]
    write(table(heads, rows))
    lines = [heads, ["---"] * len(heads), *rows]
    (out / "planted_ppo.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    paint(results, out / "planted_ppo.png")


def cells(found: Mapping[str, Any]) -> List[str]:
    """A run's cells in the table: means over the seeds, at the end over the last episodes too."""
    if "error" in found:
        return [f"cannot run: {found['error']}", *[""] * 5]

    def at_end(name: str) -> List[float]:
        return [mean([point[name] for point in curve[-END:]]) for curve in found["curves"]]

    scores = at_end("score")
    return [
        f"{mean([curve[0]['score'] for curve in found['curves']]):.2f}",
        f"{mean(scores):.2f} ({', '.join(f'{score:.2f}' for score in scores)})",
        f"{mean(at_end('words')):.1f}",
        f"{mean(at_end('ended')):.0%}",
        f"{mean(at_end('kl')):.1f}",
        f"{mean(at_end('reward')):.2f}",
    ]


def mean(values: Sequence[float]) -> float:
    """The mean of some numbers."""
    return sum(values) / len(values)


def paint(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the true score over the episodes, one panel a coati."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"off": "#d55e00", "on": "#0072b2"}
    columns = min(len(results), 4)
    lines = -(-len(results) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(3.1 * columns, 2.4 * lines + 0.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    for axis, result in zip(axes.flat, results):
        axis.set_title(f"{result['generation']}: {result['coati']}", fontsize=10)
        axis.axhline(1, color="0.6", linewidth=0.8, linestyle=":", label="best possible")
        axis.grid(color="0.92")
        for state, colour in colours.items():
            curves = [[at["score"] for at in curve] for curve in result[state].get("curves", [])]
            for curve in curves:
                axis.plot(curve, color=colour, linewidth=0.7, alpha=0.5)
            average = list(map(mean, zip(*curves)))
            axis.plot(average, color=colour, linewidth=2.2, label=f"patches {state}")
    figure.supxlabel(f"episode ({ROLLOUTS * ROWS} answers each)", fontsize=10)
    figure.supylabel("true score of fresh answers", fontsize=10)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        title=f"thick: the mean of {len(SEEDS)} seeds; thin: each seed",
        title_fontsize=9,
        ncols=3,
        frameon=False,
    )
    figure.savefig(file, dpi=110)


def main() -> None:
    """Take the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = "run coatis with patches off and on"
    commands = add_commands(parser, one="train", several=several)
    again = commands.add_parser("draw", help="table and picture of what compare left there")
    again.add_argument("out", type=Path, metavar="FOLDER")
    given = parser.parse_args(sys.argv[1:] or ["compare"])
    if given.command == "run":
        run(given.out)
    elif given.command == "draw":
        draw(given.out)
    else:
        compare(places(given.coatis), given.out)


if __name__ == "__main__":
    main()
