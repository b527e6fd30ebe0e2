"""The sites: the consumers' step, what the actors are made with, and the launch of all."""

from __future__ import annotations

from coati_ext import Reliance, Site

_OURS = "coati_ext.patches.distributed."
_HERE = ("G4",)
_STEP = ("self.policy_model", "self.optimizer", "self.policy_loss_fn")
_PACKAGES = ("coati.distributed.", "coati.distributed.zero_bubble.")

SITES = (
    Site(
        "coati.distributed.grpo_consumer:GRPOConsumer.step",
        _OURS + "consumer:step",
        generations=_HERE,
        needs=_STEP,
        optional=True,
    ),
    Site(
        "coati.distributed.zero_bubble.grpo_consumer:GRPOConsumer.step",
        _OURS + "consumer:step_of_zero_bubble",
        generations=_HERE,
        needs=_STEP,
        optional=True,
    ),
    *(
        Site(
            f"{package}{module}",
            _OURS + f"actors:{ours}",
            generations=_HERE,
            mode="wrap",
            takes=(reads,),
            optional=True,
        )
        for package in _PACKAGES
        for module, ours, reads in (
            ("consumer:BaseConsumer.__init__", "construct_consumer", "self"),
            ("producer:BaseProducer.__init__", "construct_producer", "grpo_config"),
        )
    ),
    Site(
        "coati.distributed.reward.code_reward.utils:check_correctness_code_api",
        _OURS + "code_verifier:check_or_tell",
        generations=_HERE,
        mode="wrap",
        takes=("url",),
        optional=True,
    ),
    Site(
        "coati.distributed.inference_backend:VLLMInferenceBackend.generate",
        _OURS + "inference_backend:generate",
        generations=_HERE,
        mode="wrap",
        needs=("self.llm.generate",),
        optional=True,
    ),
    *(
        Site(
            f"coati.distributed.{module}:launch_distributed",
            _OURS + "launch:launch",
            generations=_HERE,
            mode="wrap",
            takes=("inference_backend", "num_generations", "save_interval"),
            optional=True,
        )
        for module in ("launch", "launch_zero_bubble")
    ),
)

_DATA = "hands on what was sampled, and the temperature that it was sampled at"
_KEEPS = "keeps the models and what the user has set"

RELIES = (
    *(
        Reliance(f"{package}{module}", _HERE, why=why, optional=True)
        for package in _PACKAGES
        for module, why in (
            ("consumer:BaseConsumer.loop", _DATA),
            ("consumer:BaseConsumer.prepare_mini_batch", _DATA),
            ("grpo_consumer:GRPOConsumer.__init__", _KEEPS),
            ("grpo_consumer:GRPOConsumer.setup", _KEEPS),
            ("producer:BaseProducer.loop", _DATA),
        )
    ),
    Reliance(
        "coati.distributed.loss:PolicyLoss.__init__",
        _HERE,
        why="keeps what the loss is clipped to and averaged over",
        optional=True,
    ),
    Reliance(
        "coati.distributed.loss:PolicyLoss.forward",
        _HERE,
        why="is no longer called: the choice action_losses computes what upstream's says",
        refuse=True,
        optional=True,
    ),
    *(
        Reliance(f"coati.distributed.utils:{name}", _HERE, why=_DATA, optional=True)
        for name in ("bind_batch", "post_recv", "pre_send", "unbind_batch")
    ),
    Reliance(
        "coati.distributed.utils:memory_efficient_logprob",
        _HERE,
        why="computes the log-probabilities of the actions",
        refuse=True,
        optional=True,
    ),
    Reliance(
        "coati.distributed.reward.reward_fn:code_reward_fn",
        _HERE,
        why="asks the code verifier at the url that it is given",
        optional=True,
    ),
    Reliance(
        "coati.distributed.reward.verifiable_reward:VerifiableReward.__call__",
        _HERE,
        why="gives the reward functions what it was made with",
        optional=True,
    ),
)
