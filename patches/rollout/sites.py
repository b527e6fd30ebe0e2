"""The patch as data: which functions of which release it changes."""

from __future__ import annotations

from typing import Callable

from coati_ext import Patch, Site, hookimpl

_MODELS = ("self.actor", "self.critic", "self.reward_model", "self.initial_model")
_STEP = ("self.actor", "self.critic", "self.actor_loss_fn", "self.critic_loss_fn")


@hookimpl
def register_patches(register: Callable[[Patch], None]) -> None:
    """Declare the patch."""
    register(
        Patch(
            name="rollout",
            summary="experience and PPO steps in one frame: masks, values, rewards, advantages",
            default=True,
            changes=(
                "Everything PPO learns from. The reward model scores rows in its training form; "
                "masks end with the end token, also when pad == eos; values are of the state "
                "before each action, equal in rollout and training; the score lands once, on the "
                "last action; dropout is off; no rollout repeats. G1 and G2 keep whole answers as "
                "actions unless rollout.advantage = gae."
            ),
            reference="ColossalAI #4475, #3374, #4491, #3696, #4125; arXiv 1506.02438, 1707.06347",
            sites=(
                Site(
                    "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
                    "coati_ext.patches.rollout.makers:make_experience_g1",
                    generations=("G1",),
                    needs=("self.actor", "self.critic", "self.reward_model", "self.initial_model"),
                    fits={
                        "v0.2.8 .. v0.3.0": (
                            "8745c1ef-f9b9884b-facaa866-0f92e7fd-2732de45-eb2ebe56-10a5c359-"
                            "355dbc54-86a89ca6-18868aab-0b78c0f3-52c104b7-56f76f8f-c7a4c96f-"
                            "63891d32"
                        ),
                        "v0.3.1": (
                            "8745c1ef-f9b9884b-facaa866-0f92e7fd-2732de45-0b31e1b4-10a5c359-"
                            "0777665d-ac784bc8-4677ac8c-0b004cce-18868aab-0b78c0f3-52c104b7-"
                            "56f76f8f-c7a4c96f-63891d32"
                        ),
                        "v0.3.2": (
                            "8745c1ef-f9b9884b-facaa866-0f92e7fd-2732de45-8180c232-e7999cb4-"
                            "d0541c81-aef2f06a-a34bfd8a-b140eec7-99d59327-bb32774c-98a615aa-"
                            "d0118a43-10a5c359-0777665d-ac784bc8-4677ac8c-0b004cce-18868aab-"
                            "0b78c0f3-52c104b7-56f76f8f-c7a4c96f-63891d32"
                        ),
                        "stand-in": (
                            "8745c1ef-be7784bb-8180c232-e7999cb4-fcf28c0d-3861165d-ef0234b5-"
                            "fa2c1d03-10a5c359-fe1b96f5-18868aab-0b78c0f3-24d392b3-56f76f8f-"
                            "74cca7b4-18eaf0e2"
                        ),
                    },
                ),
                Site(
                    "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
                    "coati_ext.patches.rollout.makers:make_experience_g2",
                    generations=("G2",),
                    needs=_MODELS,
                    fits={
                        "v0.3.3 .. v0.3.6": (
                            "8745c1ef-f9b9884b-facaa866-0f92e7fd-2732de45-b0e0df6f-e7999cb4-"
                            "ea033f09-aef2f06a-a34bfd8a-2bdb5e2a-99d59327-bb32774c-98a615aa-"
                            "d0118a43-10a5c359-a090822d-ac784bc8-9b52e622-0b004cce-78a3e452-"
                            "0b78c0f3-52c104b7-56f76f8f-c7a4c96f-63891d32"
                        ),
                        "stand-in": (
                            "8745c1ef-be7784bb-b0e0df6f-e7999cb4-ea033f09-3861165d-ef0234b5-"
                            "eb0477b4-10a5c359-492b6c86-78a3e452-0b78c0f3-24d392b3-56f76f8f-"
                            "74cca7b4-18eaf0e2"
                        ),
                    },
                ),
                Site(
                    "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
                    "coati_ext.patches.rollout.makers:make_experience_g3",
                    generations=("G3",),
                    needs=_MODELS,
                    fits={
                        "v0.3.7 .. v0.4.7": (
                            "8b3e0135-f9b9884b-facaa866-0f92e7fd-2732de45-ea033f09-3b3058a7-"
                            "ae67f88c-b0e0df6f-b7463907-6aedf369-e7999cb4-aef2f06a-a34bfd8a-"
                            "fe0e6627-9f3f796f-bb32774c-98a615aa-d0118a43-10a5c359-1ae89f64-"
                            "ac784bc8-91f5f295-0b004cce-20d1ebff-267daa62-dc9977c4-a0b5b012-"
                            "f619339e-d79efc44-55f0470a-273cdc54-38d6c735-0a83721b-e5982195-"
                            "a5f90d62-047643b7"
                        ),
                        "stand-in": (
                            "8b3e0135-be7784bb-ed8b8a5d-ae67f88c-b0e0df6f-c62395a9-9255514b-"
                            "d4068183-580ad1a9-07d8200f-65ffc45b-2e3ccc48-ece24034-10a5c359-"
                            "4f56d7a7-a923527b-34b1bd39-f65d1914-0df86fd6-273cdc54-38d6c735-"
                            "28c4fd9c"
                        ),
                    },
                ),
                Site(
                    "coati.experience_maker.naive:NaiveExperienceMaker.make_experience",
                    "coati_ext.patches.rollout.makers:make_experience_g4",
                    generations=("G4",),
                    needs=_MODELS,
                    fits={
                        "v0.4.8": (
                            "1bb8cbf9-f9b9884b-38218712-0f92e7fd-2732de45-ea033f09-3b3058a7-"
                            "3ea783ce-278378e5-ae67f88c-220456c2-116c7fc5-1d5abe78-76d93d09-"
                            "2e4e78a9-5bed70dc-cbbe5320-c1ba7b2e-34018790-15a44b67-4f338070-"
                            "1b40d37f-8c97c676-446bfb53-93b99635-5d071535-548af929-29ec1ddc-"
                            "63f54262-794169b8-6c17d344-a5f90d62-fe0247bf"
                        ),
                        "v0.4.9 .. v0.5.1": (
                            "1bb8cbf9-f9b9884b-38218712-0f92e7fd-2732de45-ea033f09-3b3058a7-"
                            "3ea783ce-278378e5-ae67f88c-220456c2-116c7fc5-1d5abe78-76d93d09-"
                            "2e4e78a9-5bed70dc-cbbe5320-c1ba7b2e-34018790-15a44b67-4f338070-"
                            "eab2b346-8c97c676-446bfb53-93b99635-5d071535-548af929-29ec1ddc-"
                            "63f54262-794169b8-6c17d344-a5f90d62-fe0247bf"
                        ),
                        "HEAD": (
                            "1bb8cbf9-f9b9884b-38218712-0f92e7fd-2732de45-ea033f09-3b3058a7-"
                            "3ea783ce-278378e5-5ffd7690-ae67f88c-220456c2-116c7fc5-1d5abe78-"
                            "76d93d09-2e4e78a9-5bed70dc-cbbe5320-c1ba7b2e-34018790-15a44b67-"
                            "4f338070-eab2b346-8c97c676-446bfb53-93b99635-5d071535-548af929-"
                            "29ec1ddc-63f54262-794169b8-6c17d344-a5f90d62-fe0247bf"
                        ),
                        "stand-in": (
                            "1bb8cbf9-ac20750b-e9a3505f-7f10e9dc-ae67f88c-f684bfca-116c7fc5-"
                            "5a41f549-43444076-b9ecdfca-6a725997-d6f465e3-f4130776-b46cf1dc"
                        ),
                    },
                ),
                Site(
                    "coati.models.base.critic:Critic.forward",
                    "coati_ext.patches.rollout.models:critic_g1",
                    generations=("G1",),
                    needs=("self.model", "self.value_head"),
                    fits={
                        "v0.2.8 .. v0.3.2": (
                            "48904785-338add2b-27d8923f-fb1a3c19-aa536be3-a55def0c-92c4845d-"
                            "99dbf83d"
                        ),
                        "stand-in": "48904785-8ec7e5ea-10e7fff6-9c000808-fa5e1b7f",
                    },
                ),
                Site(
                    "coati.models.base.critic:Critic.forward",
                    "coati_ext.patches.rollout.models:critic_g2",
                    generations=("G2",),
                    needs=("self.model", "self.value_head"),
                    fits={
                        "v0.3.3 .. v0.3.6": (
                            "9914a338-338add2b-27d8923f-c236a867-dbecccff-1ca07dda-244bb21d"
                        ),
                        "stand-in": "9914a338-8ec7e5ea-f76d2081",
                    },
                ),
                Site(
                    "coati.models.critic:Critic.forward",
                    "coati_ext.patches.rollout.models:critic_g3",
                    generations=("G3", "G4"),
                    needs=("self.model", "self.value_head"),
                    fits={
                        "v0.3.7 .. HEAD": ("a134a006-caac0bfd-27d8923f-da5294f3-2bd7c52c-244bb21d"),
                        "stand-in": "a134a006-86711ed2-1e9fc5a0",
                    },
                ),
                Site(
                    "coati.models.base.actor:Actor.forward",
                    "coati_ext.patches.rollout.models:actor_g1a",
                    generations=("G1",),
                    needs=("self.model",),
                    fits={
                        "v0.2.8 .. v0.3.0": "7a13cfc9-564dcbc1-936818b1-68c0a107-096707d3",
                    },
                    right={
                        "v0.3.1 .. v0.3.2": "8a380b0e-88c159a8-906d1b4e",
                        "stand-in": "8a380b0e-27fa57c1",
                    },
                ),
                Site(
                    "coati.models.utils:calc_action_log_probs",
                    "coati_ext.patches.rollout.models:log_probs_of_output",
                    generations=("G1",),
                    optional=True,
                    fits={
                        "v0.3.1": "9387b115-936818b1-68c0a107-096707d3",
                        "v0.3.2": "9387b115-936818b1-2c0f4587-096707d3",
                        "stand-in": "9387b115-936818b1-a7bc3a10",
                    },
                ),
                Site(
                    "coati.models.utils:calc_action_log_probs",
                    "coati_ext.patches.rollout.models:log_probs_of_actions",
                    generations=("G2", "G3", "G4"),
                    fits={
                        "v0.3.3 .. HEAD": "433d0831-2c0f4587-096707d3",
                        "stand-in": "433d0831-a7bc3a10",
                    },
                ),
                Site(
                    "coati.models.utils:compute_reward",
                    "coati_ext.patches.rollout.models:reward_of_answers",
                    generations=("G1", "G2"),
                    fits={
                        "v0.2.8 .. v0.3.1": "2341091c-dc1b188c-678f69b1-596bc67e-896d9d04",
                        "v0.3.2 .. v0.3.6": "2341091c-dc1b188c-0db39552-596bc67e-896d9d04",
                        "stand-in": "2341091c-dc1b188c-689244e9",
                    },
                ),
                Site(
                    "coati.models.utils:compute_reward",
                    "coati_ext.patches.rollout.models:reward_of_tokens",
                    generations=("G3", "G4"),
                    fits={
                        "v0.3.7 .. HEAD": (
                            "7e7c8a7d-3c07fa3b-c4f2ac70-353408c8-924d8f0e-bf7dff5c-11bc315a"
                        ),
                        "stand-in": (
                            "7e7c8a7d-3c07fa3b-e4d05bbf-fdafee2a-efe1eb5d-0a1c9844-99514838-"
                            "1e491285-d7a434b0-6438cd44"
                        ),
                    },
                ),
                Site(
                    "coati.models.utils:disable_dropout",
                    "coati_ext.patches.rollout.models:disable_dropout",
                    generations=("G3", "G4"),
                    fits={
                        "v0.3.7 .. v0.4.2": "c991b3fd-a42ddd28",
                        "v0.4.3 .. HEAD": "c991b3fd-0ccc98e4",
                        "stand-in": "c991b3fd-ecd8b2b1",
                    },
                ),
                Site(
                    "coati.replay_buffer.utils:make_experience_batch",
                    "coati_ext.patches.rollout.buffers:stack_experience",
                    generations=("G1",),
                    optional=True,
                    fits={
                        "v0.2.8 .. v0.3.1": (
                            "96d2ea3e-0f84bed8-cb6a45b7-5b397493-f6323cbb-7845ed9e"
                        ),
                    },
                ),
                Site(
                    "coati.experience_buffer.utils:make_experience_batch",
                    "coati_ext.patches.rollout.buffers:stack_experience",
                    generations=("G1",),
                    optional=True,
                    fits={
                        "v0.3.2": ("96d2ea3e-0f84bed8-cb6a45b7-5b397493-465dfbe0-7845ed9e"),
                        "stand-in": "96d2ea3e-796f4011-4be40323-4ef3b766",
                    },
                ),
                Site(
                    "coati.experience_buffer.utils:make_experience_batch",
                    "coati_ext.patches.rollout.buffers:stack_experience",
                    generations=("G2", "G3", "G4"),
                    fits={
                        "v0.3.3 .. v0.3.6": (
                            "96d2ea3e-0f84bed8-cb6a45b7-5b397493-465dfbe0-7845ed9e"
                        ),
                        "v0.3.7 .. HEAD": ("96d2ea3e-0f84bed8-cb6a45b7-103e7579-465dfbe0-7845ed9e"),
                        "stand-in": "96d2ea3e-796f4011-4be40323-4ef3b766",
                    },
                ),
                Site(
                    "coati.replay_buffer.naive:NaiveReplayBuffer.__init__",
                    "coati_ext.patches.rollout.buffers:make_replay_buffer",
                    generations=("G1",),
                    optional=True,
                    fits={
                        "v0.2.8 .. v0.3.1": "de8bda70-d9af516a-e9ea711a-a80e907c-6726ba3b",
                    },
                ),
                Site(
                    "coati.experience_buffer.naive:NaiveExperienceBuffer.__init__",
                    "coati_ext.patches.rollout.buffers:make_buffer",
                    generations=("G1",),
                    optional=True,
                    fits={
                        "v0.3.2": "de8bda70-d9af516a-e9ea711a-a80e907c-6726ba3b",
                        "stand-in": "de8bda70-d9af516a-e9ea711a-a80e907c-6726ba3b",
                    },
                ),
                Site(
                    "coati.experience_buffer.naive:NaiveExperienceBuffer.__init__",
                    "coati_ext.patches.rollout.buffers:make_buffer",
                    generations=("G2", "G3", "G4"),
                    fits={
                        "v0.3.3 .. v0.4.7": "de8bda70-d9af516a-e9ea711a-a80e907c-6726ba3b",
                        "v0.4.8 .. HEAD": (
                            "de8bda70-d9af516a-e9ea711a-a80e907c-6726ba3b-2d7569c9-4acdff5d"
                        ),
                        "stand-in G2 G3": "de8bda70-d9af516a-e9ea711a-a80e907c-6726ba3b",
                        "stand-in G4": (
                            "de8bda70-d9af516a-e9ea711a-a80e907c-6726ba3b-9aaae23f-4acdff5d"
                        ),
                    },
                ),
                Site(
                    "coati.trainer.ppo:PPOTrainer.training_step",
                    "coati_ext.patches.rollout.training:train_whole_answers",
                    generations=("G1",),
                    mode="wrap",
                    optional=True,
                    needs=_STEP,
                    fits={
                        "v0.2.8": (
                            "e564e7b5-527b81e8-a32ee0bc-13a27c50-53d223d9-2acf6fcf-5e53ee4c-"
                            "1b0135c3-c3236256-5845bf2b-a7670036-586c158b-01c0dfc1-db992f54-"
                            "da0faf35-c7379e1f"
                        ),
                        "v0.3.0": (
                            "e564e7b5-527b81e8-a32ee0bc-13a27c50-53d223d9-2acf6fcf-f76f97bd-"
                            "1b0135c3-c3236256-5845bf2b-a7670036-586c158b-e4a17a57-01c0dfc1-"
                            "db992f54-da0faf35-c7379e1f"
                        ),
                    },
                ),
                Site(
                    "coati.trainer.ppo:PPOTrainer._training_step",
                    "coati_ext.patches.rollout.training:train_whole_answers",
                    generations=("G1",),
                    mode="wrap",
                    optional=True,
                    needs=_STEP,
                    fits={
                        "v0.3.1 .. v0.3.2": (
                            "bfeb9d31-527b81e8-a32ee0bc-13a27c50-d4ce5165-fbff6e3c-2acf6fcf-"
                            "d56e7e4d-1b0135c3-c3236256-5845bf2b-a7670036-586c158b-e4a17a57-"
                            "01c0dfc1-db992f54-da0faf35-c7379e1f"
                        ),
                        "stand-in": (
                            "bfeb9d31-527b81e8-a32ee0bc-63b66cca-c08e9421-75900d37-3f1a6d80-"
                            "5f61916f-276f09a3-2cd6981c-586c158b-3f8d5d0e-c7379e1f"
                        ),
                    },
                ),
                Site(
                    "coati.trainer.ppo:PPOTrainer._training_step",
                    "coati_ext.patches.rollout.training:train_whole_answers",
                    generations=("G2",),
                    mode="wrap",
                    needs=_STEP,
                    fits={
                        "v0.3.3 .. v0.3.6": (
                            "bfeb9d31-527b81e8-a32ee0bc-07f0edb7-2e41b64b-7e7326ec-2acf6fcf-"
                            "8c9b8a12-1b0135c3-7ec17ce1-c3236256-5845bf2b-a942e563-893fd96e-"
                            "e4a17a57-01c0dfc1-db992f54-da0faf35"
                        ),
                        "stand-in": (
                            "bfeb9d31-527b81e8-a32ee0bc-63b66cca-07f0edb7-28f38211-b5c8d094-"
                            "f02f7c31-a080b208-c3236256-5845bf2b-db2a8e15-893fd96e-1327b2b4-"
                            "db992f54-da0faf35"
                        ),
                    },
                ),
                Site(
                    "coati.trainer.ppo:PPOTrainer._training_step",
                    "coati_ext.patches.rollout.training:train_tokens",
                    generations=("G3", "G4"),
                    mode="wrap",
                    needs=_STEP,
                    fits={
                        "v0.3.7 .. v0.4.2": (
                            "bfeb9d31-25b7f0fd-527b81e8-a32ee0bc-07f0edb7-c394b0f0-7e7326ec-"
                            "655af87a-8c9b8a12-057e4943-fd54b0d6-8c05fa38-ed8861cf-e4a17a57-"
                            "877dbdea-c49f8725-68e8f188-045819b1-ff06157c-c009f829-1b0f99b0-"
                            "b17f1902-d29bd988-b1e09fab-5785552e-e1545f24-3dd7ad03-3141aabb-"
                            "39175798-82a9fcce-0c664684-f5eb7094-2816ec87"
                        ),
                        "v0.4.3 .. v0.4.8": (
                            "bfeb9d31-25b7f0fd-527b81e8-a32ee0bc-07f0edb7-c394b0f0-7e7326ec-"
                            "c7e756ec-8c9b8a12-057e4943-fd54b0d6-8c05fa38-181c4d81-e4a17a57-"
                            "877dbdea-c49f8725-68e8f188-045819b1-ff06157c-c009f829-1b0f99b0-"
                            "b17f1902-d29bd988-b1e09fab-5785552e-e1545f24-3dd7ad03-3141aabb-"
                            "39175798-82a9fcce-0c664684-f5eb7094-2816ec87"
                        ),
                        "v0.4.9 .. HEAD": (
                            "bfeb9d31-527b81e8-a32ee0bc-07f0edb7-c394b0f0-7e7326ec-c7e756ec-"
                            "8c9b8a12-057e4943-fd54b0d6-8c05fa38-181c4d81-e4a17a57-877dbdea-"
                            "c49f8725-68e8f188-045819b1-ff06157c-c009f829-1b0f99b0-b17f1902-"
                            "d29bd988-b1e09fab-5785552e-e1545f24-3dd7ad03-3141aabb-39175798-"
                            "82a9fcce-0c664684-f5eb7094-3e471881-25b7f0fd"
                        ),
                        "stand-in G3": (
                            "bfeb9d31-25b7f0fd-527b81e8-a32ee0bc-848e47bf-07f0edb7-f3782fdc-"
                            "370fd98b-9c1909c5-8c9b8a12-057e4943-0f0ee345-88e0cf72-031f1c48-"
                            "269a7908-be401c5b-53062210-c3db92de-c9bccc7f-806c37eb-7a0fc480-"
                            "0a5b71ca"
                        ),
                        "stand-in G4": (
                            "bfeb9d31-527b81e8-a32ee0bc-848e47bf-07f0edb7-f3782fdc-370fd98b-"
                            "9c1909c5-8c9b8a12-057e4943-0f0ee345-88e0cf72-031f1c48-269a7908-"
                            "be401c5b-53062210-c3db92de-c9bccc7f-806c37eb-7a0fc480-0a5b71ca-"
                            "25b7f0fd"
                        ),
                    },
                ),
                Site(
                    "coati.trainer.grpo:GRPOTrainer._training_step",
                    "coati_ext.patches.rollout.training:train_group",
                    generations=("G4",),
                    mode="wrap",
                    needs=("self.actor", "self.actor_loss_fn", "calc_action_log_probs"),
                    fits={
                        "v0.4.8": (
                            "bfeb9d31-25b7f0fd-527b81e8-07f0edb7-c394b0f0-7e7326ec-bddeedc1-"
                            "f9dc97c1-79f1bfd3-308962f1-8c9b8a12-057e4943-fd54b0d6-c49f8725-"
                            "045819b1-ff06157c-1b0f99b0-b17f1902-46da99f1-d29bd988-b1e09fab-"
                            "e1545f24-3dd7ad03-39175798-82a9fcce-bd1c0239-0c664684-f5eb7094-"
                            "d556c4d1"
                        ),
                        "v0.4.9 .. HEAD": (
                            "bfeb9d31-527b81e8-07f0edb7-c394b0f0-7e7326ec-bddeedc1-f9dc97c1-"
                            "79f1bfd3-308962f1-8c9b8a12-057e4943-fd54b0d6-c49f8725-045819b1-"
                            "ff06157c-1b0f99b0-b17f1902-46da99f1-d29bd988-b1e09fab-e1545f24-"
                            "3dd7ad03-39175798-82a9fcce-bd1c0239-0c664684-f5eb7094-26f179d6-"
                            "25b7f0fd"
                        ),
                        "stand-in": (
                            "bfeb9d31-527b81e8-22b00f4f-07f0edb7-1ecde708-d7ad5733-c25ebd10-"
                            "39e512a0-37cba5a9-a51a961f-8c9b8a12-057e4943-36aa16cf-88e0cf72-"
                            "806c37eb-7a0fc480-c935bbfc-25b7f0fd"
                        ),
                    },
                ),
            ),
        )
    )
