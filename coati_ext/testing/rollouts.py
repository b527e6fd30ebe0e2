"""Tiny actors and critics, with coati's own experience maker and PPO trainer.

As in :mod:`coati_ext.testing.training`, the same calls run with and without the patches.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, Callable, Dict, List, NamedTuple

import torch
import transformers
from torch import nn
from torch.optim import Optimizer

from coati_ext.rollout.models import layers_of
from coati_ext.testing.cpu import LocalCoordinator
from coati_ext.testing.models import tiny_config, tiny_reward_model
from coati_ext.testing.training import (
    boost,
    has_strategies,
    known,
    local_booster,
    trained_parameters,
)

_ACTORS = {  # G1 and G2 have classes of their own for four of the families
    "gpt2": ("coati.models.gpt", "GPTActor"),
    "opt": ("coati.models.opt", "OPTActor"),
    "bloom": ("coati.models.bloom", "BLOOMActor"),
    "llama": ("coati.models.llama", "LlamaActor"),
}
_CRITICS = {
    "gpt2": ("coati.models.gpt", "GPTCritic"),
    "opt": ("coati.models.opt", "OPTCritic"),
    "bloom": ("coati.models.bloom", "BLOOMCritic"),
    "llama": ("coati.models.llama", "LlamaCritic"),
}


class Models(NamedTuple):
    """The four models of PPO, named as coati's makers and trainers name them."""

    actor: Any
    critic: Any
    reward_model: Any
    initial_model: Any


class LocalModel(nn.Module):
    """Stands in for the wrapper that a `Booster` puts around a model, with `unwrap`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.module(*args, **kwargs)

    def unwrap(self) -> nn.Module:
        """Return the model."""
        return self.module


def tiny_actor(family: str = "gpt2", *, seed: int = 0, **config_options: Any) -> nn.Module:
    """Return a random actor for the importable coati, in eval mode.

    It is a causal language model; in G1 and G2 it is wrapped in their `Actor`. The weights depend
    only on `family`, `seed` and `config_options` (see :func:`tiny_config`).

    Raises:
        ValueError: the installed transformers has no such family.
        ImportError: no coati can be imported.
    """
    config = tiny_config(family, **config_options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not has_strategies():
            model = transformers.AutoModelForCausalLM.from_config(config)
        elif family in _ACTORS:
            module, name = _ACTORS[family]
            model = getattr(import_module(module), name)(config=config)
        else:
            backbone = transformers.AutoModelForCausalLM.from_config(config)
            model = import_module("coati.models.base").Actor(backbone)
    evaluated: nn.Module = model.eval()
    return evaluated


def tiny_critic(family: str = "gpt2", *, seed: int = 0, **config_options: Any) -> nn.Module:
    """Return a random critic of the importable coati, in eval mode.

    Its weights equal those of :func:`tiny_reward_model` with the same arguments, as in scripts that
    initialise the critic from the reward model.

    Raises:
        ValueError: the installed transformers has no such family.
        ImportError: no coati can be imported.
    """
    config = tiny_config(family, **config_options)
    source = tiny_reward_model(family, seed=seed, **config_options)
    with torch.random.fork_rng(devices=[]):
        if not has_strategies():
            model = import_module("coati.models").Critic(config=config)
        elif family in _CRITICS:
            module, name = _CRITICS[family]
            model = getattr(import_module(module), name)(config=config)
        else:
            base = import_module("coati.models.base")
            backbone = transformers.AutoModel.from_config(config)
            model = base.Critic(backbone, nn.Linear(config.hidden_size, 1))
    model.load_state_dict(source.state_dict())
    evaluated: nn.Module = model.eval()
    return evaluated


def tiny_models(family: str = "gpt2", *, seed: int = 0, **config_options: Any) -> Models:
    """Return the four models; only the actor and the reference model have the same weights."""
    return Models(
        tiny_actor(family, seed=seed, **config_options),
        tiny_critic(family, seed=seed + 1, **config_options),
        tiny_reward_model(family, seed=seed + 2, **config_options),
        tiny_actor(family, seed=seed, **config_options),
    )


def experience_maker(models: Models, *, tokenizer: Any, **options: Any) -> Any:
    """Return coati's `NaiveExperienceMaker` of these models.

    Args:
        models: the four models; the reward model may be any callable.
        tokenizer: for generations whose maker takes one.
        options: `kl_coef`, `gamma`, `lam`, `use_grpo`, ... if the generation has them.
    """
    maker = import_module("coati.experience_maker").NaiveExperienceMaker
    offered = {**models._asdict(), "tokenizer": tokenizer, **options}
    return maker(**known(maker.__init__, offered))


def make_experience(
    maker: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    tokenizer: Any,
    **generate_kwargs: Any,
) -> Any:
    """Call `make_experience` of a maker as coati's PPO trainer does.

    Args:
        maker: from :func:`experience_maker`, or a trainer's.
        input_ids: prompts (B, S).
        attention_mask: (B, S).
        tokenizer: gives the pad and EOS tokens.
        generate_kwargs: `max_length` and more for upstream's `generate`, or `gt_answer`.
    """
    return maker.make_experience(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **{**default_generate_kwargs(maker.actor, tokenizer), **generate_kwargs},
    )


def default_generate_kwargs(actor: Any, tokenizer: Any) -> Dict[str, Any]:
    """The arguments that coati's PPO script and trainer pass to `generate`."""
    given: Dict[str, Any] = {}
    inner = next(
        layer for layer in layers_of(actor) if hasattr(layer, "prepare_inputs_for_generation")
    )
    if has_strategies():
        if not hasattr(import_module("coati.models.base").Actor, "generate"):
            given["update_model_kwargs_fn"] = inner._update_model_kwargs_for_generation
        given["prepare_inputs_fn"] = inner.prepare_inputs_for_generation
        if "tokenizer" not in _generate_parameters():
            given.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        return given
    return {
        "prepare_inputs_fn": inner.prepare_inputs_for_generation,
        "update_model_kwargs_fn": inner._update_model_kwargs_for_generation,
        "stop_token_ids": [tokenizer.eos_token_id],
    }


def ppo_trainer(
    models: Models,
    *,
    tokenizer: Any,
    lr: float = 1e-3,
    save_dir: str = ".",
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
    booster: Any = None,
    **options: Any,
) -> Any:
    """Return coati's `PPOTrainer` of these models; on the CPU use it within `cpu_only()`.

    Args:
        models: the four models.
        tokenizer: of the prompts.
        lr: learning rate of actor and critic.
        save_dir: the folder for checkpoints.
        optimizer: the optimizer class of actor and critic.
        booster: a `Booster`, or in G1 and G2 a `Strategy`, that wraps all four models; by default
            everything runs in this process.
        options: further arguments of the trainer, including those for generation.
    """
    trainer = import_module("coati.trainer").PPOTrainer
    plain = [optimizer(trained_parameters(model), lr=lr) for model in (models.actor, models.critic)]
    booster = local_booster() if booster is None else booster
    actor, actor_optimizer = boost(booster, models.actor, plain[0])
    critic, critic_optimizer = boost(booster, models.critic, plain[1])
    frozen = (boost(booster, model) for model in (models.reward_model, models.initial_model))
    models = Models(actor, critic, *frozen)
    if has_strategies():
        given: Dict[str, Any] = {**models._asdict(), "strategy": booster}
        if "tokenizer" in inspect.signature(trainer.__init__).parameters:
            given["tokenizer"] = tokenizer
        else:
            given.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    else:
        if not hasattr(actor, "unwrap"):  # upstream calls actor.unwrap()
            models = models._replace(actor=LocalModel(actor))
        given = {
            **models._asdict(),
            "actor_booster": booster,
            "critic_booster": booster,
            "actor_lr_scheduler": _constant(plain[0]),
            "critic_lr_scheduler": _constant(plain[1]),
            "tokenizer": tokenizer,
            "save_dir": save_dir,
            "coordinator": LocalCoordinator(),
            "stop_token_ids": [tokenizer.eos_token_id],
        }
    optimizers = {"actor_optim": actor_optimizer, "critic_optim": critic_optimizer}
    shared = {
        "ptx_coef": 0.0,
        "offload_inference_models": False,
        "dataloader_pin_memory": False,
        "buffer_cpu_offload": False,
    }
    made = trainer(**{**given, **optimizers, **shared, **options})
    if not has_strategies():
        made.writer = None  # set by fit(), and read in every training step
    return made


def training_step(trainer: Any, experience: Any) -> Any:
    """Run one training step of a PPO trainer, whatever its method is called in this generation."""
    step = getattr(trainer, "_training_step", None) or trainer.training_step
    return step(experience)


def _constant(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def _generate_parameters() -> List[str]:
    return list(inspect.signature(import_module("coati.models.generation").generate).parameters)
