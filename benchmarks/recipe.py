"""Which settings of PPO learn most from a sample: upstream's own trainers on three made-up tasks.

    python benchmarks/recipe.py RESULTS.jsonl --coati PATH         by a Python that can import it
    python benchmarks/recipe_trl.py RESULTS.jsonl                    by one that has TRL
    python benchmarks/recipe_draw.py RESULTS.jsonl --out FOLDER      tables and picture

The tasks are in `recipe_tasks.py`, the recipe is `examples/recipe/coati-ext.toml`. Each training
appends a line to RESULTS.jsonl, and one that is there already is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Union

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
for place in (ROOT, HERE):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

RECIPE = ROOT / "examples" / "recipe" / "coati-ext.toml"
TASKS = ("credit", "end", "context")
SEEDS = (0, 1, 2, 3, 4)
STEPS, EVERY = 20, 5  # of a rollout and learning from it; steps from one evaluation to the next
ROWS = 64  # answers a step
UPDATES, BATCH = 2, 32  # rounds over a step's answers, answers of a gradient step
LR, KL_COEF = 2e-3, 0.05

Curve = List[Dict[str, float]]


class Setting(NamedTuple):
    """How a training differs from coati-ext's and upstream's defaults."""

    config: Union[Path, Mapping[str, Any], None]
    """What `coati_ext.enable` takes; None for patches off."""
    trainer: Mapping[str, Any] = {}
    """Arguments of upstream's trainer."""


def _rollout(**options: Any) -> Setting:
    return Setting({"rollout": options})


SETTINGS: Dict[str, Setting] = {
    "recipe": Setting(RECIPE),
    "defaults": Setting({}),
    "off": Setting(None),
    # One setting at a time:
    "whitened": _rollout(advantage_scale="whitened"),
    "k3": _rollout(kl="k3"),
    "missing_eos_penalty 1": _rollout(missing_eos_penalty=1.0),
    "score_clip 1": _rollout(score_clip=1.0),
    "lam 1": _rollout(lam=1.0),
    "value_clip off": Setting({}, {"value_clip": 1e6}),
    "whitened, penalty 1": _rollout(advantage_scale="whitened", missing_eos_penalty=1.0),
    "whitened, lam 1": _rollout(advantage_scale="whitened", lam=1.0),
    # Upstream's G1 and G2 take the whole answer as one action by default:
    "gae": _rollout(advantage="gae"),
}


def train(name: str, seed: int, setting: Setting, starts: Path, steps: int = STEPS) -> Curve:
    """Train a task's policy by the PPO of the coati that can be imported.

    Args:
        name: of the task.
        seed: of weights, prompts and sampling.
        setting: how the training differs from the defaults.
        starts: where fine-tuned policies are kept.
        steps: of ROWS answers each.

    Returns:
        What `recipe_tasks.evaluate` finds before the first step, and after each EVERY steps.
    """
    with _quiet(), _patches(setting):
        return _trained(name, seed, setting, starts, steps)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor progress."""
    dropped = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(dropped), contextlib.redirect_stderr(
        dropped
    ):
        warnings.simplefilter("ignore")
        yield


def _patches(setting: Setting) -> Any:
    import coati_ext

    if setting.config is None:
        return contextlib.nullcontext()
    config = setting.config
    return coati_ext.applied(str(config) if isinstance(config, Path) else config)


def _trained(name: str, seed: int, setting: Setting, starts: Path, steps: int) -> Curve:
    import recipe_tasks as tasks
    import torch
    from torch.utils.data import DataLoader

    from coati_ext import options
    from coati_ext.demo.policy import language_model, options_of_generation
    from coati_ext.testing import cpu_only, ppo_trainer, tiny_models, tiny_tokenizer
    from coati_ext.testing.training import has_strategies

    task, draw = tasks.TASKS[name], random.Random(seed)
    tokenizer = tiny_tokenizer(pad="eos", padding_side="left")  # as in coati's scripts
    models = tiny_models(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    weights = tasks.start(name, seed, starts)
    policy, reference = language_model(models.actor), tasks.new_policy(len(tokenizer))
    for model in (policy, language_model(models.initial_model), reference):
        model.load_state_dict(weights, strict=False)
    critic = models.critic
    critic.model.load_state_dict(tasks.body(weights), strict=False)
    critic.value_head.weight.data = tasks.value_head(critic.value_head.in_features, seed)
    critic.value_head.bias.data.zero_()
    if hasattr(critic, "use_action_mask"):
        critic.use_action_mask = True  # G1's scripts ask for it
    curve = [tasks.evaluate(name, policy, reference)]

    class Evaluate(import_module("coati.trainer.callbacks").Callback):  # type: ignore[misc]
        def on_episode_end(self, episode: int) -> None:
            if (episode + 1) % EVERY == 0:
                curve.append(tasks.evaluate(name, policy, reference))

    def collate(texts: List[str]) -> Dict[str, Any]:
        rows: Dict[str, Any] = tasks.batch(tokenizer, texts)
        return rows if has_strategies() else {**rows, "gt_answer": [None] * len(texts)}

    sampling = options_of_generation()
    if setting.config is not None and options("rollout").generate == "hf":
        # They keep upstream's own sampler from handing on the cache, which is not asked here.
        sampling = {key: item for key, item in sampling.items() if not key.endswith("_fn")}
    with cpu_only(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        prompts: Any = DataLoader(
            [tasks.prompt(task, draw) for _ in range(64 * ROWS)],  # type: ignore[arg-type]
            batch_size=ROWS,
            shuffle=True,
            collate_fn=collate,
        )
        trainer = ppo_trainer(
            models._replace(reward_model=tasks.Rule(task, tokenizer)),
            tokenizer=tokenizer,
            lr=LR,
            save_dir=folder,
            kl_coef=KL_COEF,
            train_batch_size=BATCH,
            callbacks=[Evaluate()],
            max_length=tasks.PROMPT + tasks.ANSWER,
            **setting.trainer,
            **sampling,
        )
        trainer.fit(
            num_episodes=steps,
            num_collect_steps=1,
            num_update_steps=UPDATES,
            prompt_dataloader=prompts,
            pretrain_dataloader=None,
        )
    return curve


def parser(settings: Mapping[str, Any], text: str) -> argparse.ArgumentParser:
    """A command line with what every learner is asked."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("results", type=Path, metavar="RESULTS.jsonl")
    made.add_argument("--settings", nargs="+", choices=settings, default=list(settings))
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    made.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    made.add_argument("--steps", type=int, default=STEPS)
    return made


def each(given: argparse.Namespace, who: str, learn: Callable[..., Curve]) -> None:
    """Run what is asked and not yet there, and append a line for each.

    Args:
        given: from :func:`parser`.
        who: learns, which with setting, task and seed is the key of a line.
        learn: takes task, seed, setting, the folder of fine-tuned policies, and steps.
    """
    done = {_key(row) for row in read(given.results)}
    starts = given.results.with_suffix(".starts")
    for seed in given.seeds:
        for task in given.tasks:
            for setting in given.settings:
                row = {"who": who, "setting": setting, "task": task, "seed": seed}
                if _key(row) in done:
                    continue
                began = time.process_time()
                curve = learn(task, seed, setting, starts, given.steps)
                row.update(curve=curve, seconds=round(time.process_time() - began, 1))
                with given.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                scores = " ".join(f"{point['score']:.2f}" for point in curve)
                print(f"{who}, {setting}, {task}, seed {seed}: {scores}", flush=True)


def read(results: Path) -> List[Dict[str, Any]]:
    """The lines of a file of results, none if there is no such file."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def _key(row: Mapping[str, Any]) -> Any:
    return row["who"], row["setting"], row["task"], row["seed"]


def main() -> None:
    """Take the command line."""
    asked = parser(SETTINGS, __doc__)
    asked.add_argument("--coati", required=True, type=Path, help="the folder that holds coati/")
    asked.add_argument("--label", help="what to call it in the results; its folder's name if unset")
    given = asked.parse_args()
    sys.path.insert(0, str(given.coati.resolve()))
    import torch

    torch.set_num_threads(1)

    def learn(task: str, seed: int, setting: str, starts: Path, steps: int) -> Curve:
        return train(task, seed, SETTINGS[setting], starts, steps)

    each(given, given.label or given.coati.resolve().name, learn)


if __name__ == "__main__":
    main()
