"""Launch a run of ``coati.distributed`` on a Ray of its own: ``script.py CODE_VERIFIER_ADDRESS``.

A policy that says a few words is rewarded if its program passes. The patches are on, and a plugin
writes to ``gaps``, for each microbatch, how far a log-probability is from the sampler's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

import ray
import torch
import transformers

import coati_ext
from coati_ext.launch import ray_runtime_env
from coati_ext.testing import importable_rewards, tiny_config, tiny_tokenizer

PLUGIN = """
import os
from coati_ext import hookimpl
from coati_ext.patches import distributed


@hookimpl
def action_losses(
    log_probs, old_log_probs, reference_log_probs, advantages, action_mask, clip, beta, algorithm
):
    gap = (log_probs - old_log_probs).masked_fill(~action_mask, 0).abs().max()
    with open(os.environ["GAPS"], "a") as file:
        print(float(gap), float(advantages.abs().max()), file=file)
    return distributed.clipped(
        *(log_probs, old_log_probs, reference_log_probs, advantages, action_mask),
        *(clip, beta, algorithm),
    )
"""
# Fifteen of each kind: ColossalAI pads a vocabulary to a multiple of 64, and cannot save one then.
WORDS = [f"{kind}{n}" for kind in ("```python", "a", "b", "c") for n in range(15)]


def main(address: str) -> None:
    here = Path.cwd()
    write_model(here / "model")
    row = {"messages": {"role": "user", "content": "a1 b1"}, "test_cases": {"inputs": [""]}}
    (here / "prompts.jsonl").write_text(f"{json.dumps(row)}\n" * 6)
    (here / "watching.py").write_text(PLUGIN)
    given = {"PYTHONPATH": os.environ["PYTHONPATH"], "GAPS": str(here / "gaps")}
    given.update(WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    env = {"env_vars": given, "worker_process_setup_hook": "cpu_worker.set_up"}
    coati_ext.enable({"plugins": [str(here / "watching.py")]})
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # its sockets want a short path
        ray.init(
            num_cpus=8,
            num_gpus=2,  # in name only
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            runtime_env=ray_runtime_env(env),
            _temp_dir=folder,
        )
        try:
            mail = Mail.options(name="mail", max_concurrency=8).remote()
            ray.get(mail.__ray_ready__.remote())
            with importable_rewards():
                from coati.distributed.launch import launch_distributed

                launch_distributed(**arguments(here, address))
        finally:
            ray.shutdown()


@ray.remote(num_cpus=0)
class Mail:
    """Hands a tensor from its sender, who waits, to each receiver of a group."""

    def __init__(self):
        self.sent, self.waiting = {}, {}

    async def send(self, key, tensor, receivers):
        self.sent[key], self.waiting[key] = tensor, receivers
        while self.waiting[key]:
            await asyncio.sleep(0.01)
        del self.sent[key], self.waiting[key]

    async def receive(self, key):
        while key not in self.sent:
            await asyncio.sleep(0.01)
        self.waiting[key] -= 1
        return self.sent[key]


def write_model(folder: Path) -> None:
    tokenizer = tiny_tokenizer(vocab=WORDS, padding_side="left")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for item in messages %}{{ item['content'] }} {% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = tiny_config("llama", vocab_size=len(tokenizer))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def arguments(here: Path, address: str) -> dict:
    rewards = {"reward_fn_type": "code", "max_new_tokens": 7, "code_verifier_api_url": address}
    return {
        **dict.fromkeys(("num_producers", "num_proc_per_producer", "num_consumer_procs"), 1),
        "num_episodes": 1,
        "num_generations": 4,
        "inference_batch_size": 2,
        "inference_microbatch_size": 1,
        "train_batch_size": 2,
        "train_minibatch_size": 1,
        "train_dataset_config": {
            "path": str(here / "prompts.jsonl"),
            "max_length": 8,
            "system_prompt": "c1",
        },
        "inference_model_config": {"path": str(here / "model")},
        "train_model_config": {"path": str(here / "model")},
        "generate_config": {"temperature": 0.6, "top_p": 1.0, "max_tokens": 6},
        "grpo_config": {"algo": "GRPO", "lr": 1e-2, "train_microbatch_size": 2, **rewards},
        "plugin_config": {"zero_stage": 0, "precision": "fp32"},
        "inference_backend": "vllm",
        "master_port": int(os.environ["PORT"]),
        "project_name": "whole",
        "save_dir": str(here / "saved"),
        "eval_save_dir": str(here / "eval"),
        "eval_interval": -1,
        "eval_generation_config": {},
        "rollout_save_dir": str(here / "rollout"),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
