"""The sites: everything between the prompts and the losses of a PPO or GRPO step."""

from __future__ import annotations

from coati_ext import Site

_OURS = "coati_ext.patches.rollout."
_MODELS = ("self.actor", "self.critic", "self.reward_model", "self.initial_model")
_STEP = ("self.actor", "self.critic", "self.actor_loss_fn", "self.critic_loss_fn")

SITES = (
    Site(
        "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
        _OURS + "experience_maker:make_experience_g1",
        generations=("G1",),
        needs=_MODELS,
    ),
    Site(
        "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
        _OURS + "experience_maker:make_experience_g2",
        generations=("G2",),
        needs=_MODELS,
    ),
    Site(
        "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
        _OURS + "experience_maker:make_experience_g3",
        generations=("G3",),
        needs=_MODELS,
    ),
    Site(
        "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
        _OURS + "experience_maker:make_experience_g4",
        generations=("G4",),
        needs=_MODELS,
    ),
    Site(
        "coati.models.base.critic:Critic.forward",
        _OURS + "critic:critic_g1",
        generations=("G1",),
        needs=("self.model", "self.value_head"),
    ),
    Site(
        "coati.models.base.critic:Critic.forward",
        _OURS + "critic:critic_g2",
        generations=("G2",),
        needs=("self.model", "self.value_head"),
    ),
    Site(
        "coati.models.critic:Critic.forward",
        _OURS + "critic:critic_g3",
        generations=("G3", "G4"),
        needs=("self.model", "self.value_head"),
    ),
    Site(
        "coati.models.base.actor:Actor.forward",
        _OURS + "actor:actor_g1a",
        generations=("G1",),
        needs=("self.model",),
    ),
    Site(
        "coati.models.utils:calc_action_log_probs",
        _OURS + "model_utils:log_probs_of_output",
        generations=("G1",),
        optional=True,
    ),
    Site(
        "coati.models.utils:calc_action_log_probs",
        _OURS + "model_utils:log_probs_of_actions",
        generations=("G2", "G3", "G4"),
    ),
    Site(
        "coati.models.utils:compute_reward",
        _OURS + "model_utils:reward_of_answers",
        generations=("G1", "G2"),
        mode="wrap",
    ),
    Site(
        "coati.models.utils:compute_reward",
        _OURS + "model_utils:reward_of_tokens",
        generations=("G3", "G4"),
        mode="wrap",
    ),
    Site(
        "coati.models.utils:disable_dropout",
        _OURS + "model_utils:disable_dropout",
        generations=("G3", "G4"),
    ),
    Site(
        "coati.replay_buffer.utils:make_experience_batch",
        _OURS + "buffers:stack_experience",
        generations=("G1",),
        optional=True,
    ),
    Site(
        "coati.experience_buffer.utils:make_experience_batch",
        _OURS + "buffers:stack_experience",
        generations=("G1",),
        optional=True,
    ),
    Site(
        "coati.experience_buffer.utils:make_experience_batch",
        _OURS + "buffers:stack_experience",
        generations=("G2", "G3", "G4"),
    ),
    Site(
        "coati.replay_buffer.naive:NaiveReplayBuffer.__init__",
        _OURS + "buffers:make_replay_buffer",
        generations=("G1",),
        optional=True,
    ),
    Site(
        "coati.experience_buffer.naive:NaiveExperienceBuffer.__init__",
        _OURS + "buffers:make_buffer",
        generations=("G1",),
        optional=True,
    ),
    Site(
        "coati.experience_buffer.naive:NaiveExperienceBuffer.__init__",
        _OURS + "buffers:make_buffer",
        generations=("G2", "G3", "G4"),
    ),
    Site(
        "coati.trainer.strategies.ddp:DDPStrategy.setup_dataloader",
        _OURS + "buffers:over_own_rows",
        generations=("G1", "G2"),
        mode="wrap",
        needs=("collate_fn",),
    ),
    Site(
        "coati.trainer.ppo:PPOTrainer.training_step",
        _OURS + "training_step:train_whole_answers",
        generations=("G1",),
        mode="wrap",
        optional=True,
        needs=_STEP,
    ),
    Site(
        "coati.trainer.ppo:PPOTrainer._training_step",
        _OURS + "training_step:train_whole_answers",
        generations=("G1",),
        mode="wrap",
        optional=True,
        needs=_STEP,
    ),
    Site(
        "coati.trainer.ppo:PPOTrainer._training_step",
        _OURS + "training_step:train_whole_answers",
        generations=("G2",),
        mode="wrap",
        needs=_STEP,
    ),
    Site(
        "coati.trainer.ppo:PPOTrainer._training_step",
        _OURS + "training_step:train_tokens",
        generations=("G3", "G4"),
        mode="wrap",
        needs=_STEP,
    ),
    Site(
        "coati.trainer.grpo:GRPOTrainer._training_step",
        _OURS + "training_step:train_group",
        generations=("G4",),
        mode="wrap",
        needs=("self.actor", "self.actor_loss_fn", "calc_action_log_probs"),
    ),
)
