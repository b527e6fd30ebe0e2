"""The tasks of `recipe_tasks.py` learnt by TRL: its PPOTrainer, and its RLOOTrainer.

    python benchmarks/recipe_trl.py RESULTS.jsonl

The models, prompts, answers a step, gradient steps and rate are those of `recipe.py`, and where an
answer ends is told to TRL as its documentation has it (`stop_token="eos"`, a pad token of its own).
"""

from __future__ import annotations

import contextlib
import gc
import io
import random
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict

HERE = Path(__file__).resolve().parent
for place in (HERE.parent, HERE):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

import recipe  # noqa: E402
import recipe_tasks as tasks  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from coati_ext.testing import tiny_tokenizer  # noqa: E402

# TRL's own values are in force for what is not named; its rate falls to 0 by default.
CONSTANT = {"lr_scheduler_type": "constant"}
SETTINGS: Dict[str, Dict[str, Any]] = {
    "PPO, its defaults": {},
    "PPO, constant rate": CONSTANT,
    "PPO, constant rate, lam 1": {**CONSTANT, "lam": 1.0},
    "RLOO, its defaults": {},
    "RLOO, constant rate, normalised": {**CONSTANT, "normalize_advantage": True},
}


class _Rows(nn.Module):
    """A backbone whose hidden states (B, S, 1) are the ids themselves."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        # TRL has put 0 where the mask is 0; the mask goes along as a sign.
        ids = torch.where(attention_mask.bool(), input_ids, -1)
        return SimpleNamespace(hidden_states=[ids.unsqueeze(2)])


class RuleModel(nn.Module):
    """The task's score as TRL's reward models have it: a backbone, and a score at each token."""

    base_model_prefix = "rows"

    def __init__(self, rule: tasks.Rule) -> None:
        super().__init__()
        self.rows, self._rule = _Rows(), rule

    def score(self, hidden: Tensor) -> Tensor:
        """The score of the row at each of its tokens, (B, S, 1)."""
        rows = [[token for token in row if token >= 0] for row in hidden.squeeze(2).tolist()]
        found = torch.tensor([self._rule.of(row) for row in rows])
        return found.view(-1, 1, 1).expand(-1, hidden.size(1), 1)


class ValueModel(nn.Module):
    """A critic in the form that TRL asks for: the policy's body and a head."""

    base_model_prefix = "transformer"

    def __init__(self, body: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.transformer, self.score = body, nn.Linear(head.size(1), 1)
        self.score.weight.data = head
        self.score.bias.data.zero_()


def train(name: str, seed: int, setting: str, starts: Path, steps: int) -> recipe.Curve:
    """Train a task's policy by TRL; what is returned is as in `recipe.train`."""
    import transformers
    from datasets import Dataset
    from trl import PPOConfig, PPOTrainer, RLOOConfig, RLOOTrainer

    task, draw = tasks.TASKS[name], random.Random(seed)
    tokenizer = tiny_tokenizer(padding_side="left")
    policy, reference, body = (tasks.new_policy(len(tokenizer)) for _ in range(3))
    for model in (policy, reference, body):
        model.load_state_dict(tasks.start(name, seed, starts), strict=False)
    curve = [tasks.evaluate(name, policy, reference)]

    class Evaluate(transformers.TrainerCallback):  # type: ignore[misc]
        done = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.done += 1
            if self.done % recipe.EVERY == 0:
                # TRL's RLOO takes the end token off the policy's own settings, evaluate gives it.
                curve.append(tasks.evaluate(name, policy, reference))

    asked = [tasks.prompt(task, draw) for _ in range(64 * recipe.ROWS)]
    data = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in asked]})
    ppo = setting.startswith("PPO")
    with tempfile.TemporaryDirectory() as folder:
        arguments: Dict[str, Any] = {
            "output_dir": folder,
            "learning_rate": recipe.LR,
            "kl_coef": recipe.KL_COEF,
            "num_ppo_epochs": recipe.UPDATES,
            "num_mini_batches": recipe.ROWS // recipe.BATCH,
            # What TRL 0.19 takes all mini-batches of a step from in PPO, and one of them in RLOO.
            "per_device_train_batch_size": recipe.ROWS if ppo else recipe.BATCH,
            "gradient_accumulation_steps": 1,
            "total_episodes": steps * recipe.ROWS,
            "response_length": tasks.ANSWER,
            "temperature": 1.0,
            "stop_token": "eos",
            "num_sample_generations": 0,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "seed": seed,
            "disable_tqdm": True,
            **SETTINGS[setting],
        }
        rule = RuleModel(tasks.Rule(task, tokenizer))
        shared: Dict[str, Any] = {
            "processing_class": tokenizer,
            "reward_model": rule,
            "train_dataset": data,
            "eval_dataset": data,
            "callbacks": [Evaluate()],
        }
        if ppo:
            width = policy.config.hidden_size
            trainer = PPOTrainer(
                args=PPOConfig(**arguments),
                model=policy,
                ref_model=reference,
                value_model=ValueModel(body.transformer, tasks.value_head(width, seed)),
                **shared,
            )
        else:
            trainer = RLOOTrainer(
                config=RLOOConfig(**arguments), policy=policy, ref_policy=reference, **shared
            )
        sizes = trainer.args.batch_size, trainer.args.local_mini_batch_size
        if sizes != (recipe.ROWS, recipe.BATCH):
            raise ValueError(f"TRL would take {sizes} answers a step and a gradient step")
        gc.freeze()  # TRL collects garbage twice a step, which takes half of the time else
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    return curve


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    recipe.each(recipe.parser(SETTINGS, __doc__).parse_args(), "TRL", train)
