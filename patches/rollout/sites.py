"""The sites: everything between the prompts and the losses of a PPO or GRPO step."""

from __future__ import annotations

from coati_ext import Reliance, Site

_OURS = "coati_ext.patches.rollout."
_ALL = ("G1", "G2", "G3", "G4")
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

_MODEL = "gives the model its backbone and, to a critic, its value head"
_KEEPS = "keeps the models and the numbers that experience is made with"
_SAMPLES = "samples the answers"
_BUFFER = "keeps experience and gives the same back, in batches"
_TRAINER = "makes the maker, the buffer and the losses, and gives them their settings"
_LOOP = "says when experience is made, when it is learnt from and when it is dropped"

RELIES = (
    Reliance("coati.models.base.actor:Actor.__init__", ("G1", "G2"), why=_MODEL),
    Reliance("coati.models.base.actor:Actor.forward", ("G2",), why="calls the language model"),
    Reliance("coati.models.base.critic:Critic.__init__", ("G1", "G2"), why=_MODEL),
    Reliance("coati.models.critic:Critic.__init__", ("G3", "G4"), why=_MODEL),
    Reliance("coati.models.base:BaseModel.__init__", ("G3", "G4"), why=_MODEL),
    Reliance(
        "coati.models.rlvr_reward_model:RLVRRewardModel.__call__",
        ("G4",),
        why="scores each answer by the user's functions",
    ),
    Reliance("coati.experience_maker.base:ExperienceMaker.__init__", _ALL, why=_KEEPS),
    Reliance(
        "coati.experience_maker.naive:NaiveExperienceMaker.__init__",
        ("G2", "G3", "G4"),
        why=_KEEPS,
    ),
    *(
        Reliance(f"coati.models.{name}", ("G1",), why=_SAMPLES, optional=True)
        for name in (  # until v0.3.1, and since
            "base.actor:Actor.generate",
            "generation:generate_with_actor",
            "generation:prepare_logits_processor",
            "generation:sample",
            "generation:_prepare_logits_processor",
            "generation:_sample",
        )
    ),
    *(
        Reliance(f"coati.models.generation:{name}", _ALL, why=_SAMPLES)
        for name in ("generate", "_is_sequence_finished")
    ),
    *(
        Reliance(f"coati.models.generation:{name}", ("G2", "G3", "G4"), why=_SAMPLES)
        for name in ("_prepare_logits_processor", "_sample")
    ),
    *(
        Reliance(f"coati.{name}", ("G1",), why=_BUFFER, optional=True)
        for package, word in (("replay_buffer", "Replay"), ("experience_buffer", "Experience"))
        for name in (
            f"{package}.base:{word}Buffer.__init__",
            f"{package}.naive:Naive{word}Buffer.__getitem__",
            f"{package}.naive:Naive{word}Buffer.append",
            f"{package}.naive:Naive{word}Buffer.collate_fn",
            f"{package}.naive:Naive{word}Buffer.sample",
            f"{package}.utils:split_experience_batch",
        )
    ),
    *(
        Reliance(f"coati.experience_buffer.{name}", ("G2", "G3", "G4"), why=_BUFFER)
        for name in (
            "base:ExperienceBuffer.__init__",
            "naive:NaiveExperienceBuffer.__getitem__",
            "naive:NaiveExperienceBuffer.append",
            "naive:NaiveExperienceBuffer.collate_fn",
            "naive:NaiveExperienceBuffer.sample",
            "utils:split_experience_batch",
        )
    ),
    Reliance("coati.trainer.ppo:PPOTrainer.__init__", _ALL, why=_TRAINER),
    Reliance("coati.trainer.grpo:GRPOTrainer.__init__", ("G4",), why=_TRAINER),
    *(
        Reliance(f"coati.trainer.{name}", ("G1",), why=_LOOP, optional=True)
        for name in (  # until v0.3.0, and since
            "base:Trainer._make_experience",
            "base:Trainer._learn",
            "base:Trainer.fit",
            "base:OnPolicyTrainer._collect_phase",
            "base:OnPolicyTrainer._update_phase",
            "base:OnPolicyTrainer.fit",
            "ppo:PPOTrainer._learn",
            "ppo:PPOTrainer._make_experience",
            "ppo:PPOTrainer.fit",
        )
    ),
    *(
        Reliance(f"coati.trainer.base:{loop}.{name}", generations, why=_LOOP)
        for loop, generations in (("OnPolicyTrainer", ("G2",)), ("OLTrainer", ("G3", "G4")))
        for name in ("_collect_phase", "_update_phase", "fit")
    ),
    *(
        Reliance(f"coati.trainer.{trainer}.{name}", generations, why=_LOOP)
        for trainer, generations in (
            ("ppo:PPOTrainer", ("G2", "G3", "G4")),
            ("grpo:GRPOTrainer", ("G4",)),
        )
        for name in ("_learn", "_make_experience")
    ),
)
