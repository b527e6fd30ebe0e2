"""What the consumer's step gets, and who starts it: sampler, rewards, actors and launch."""

from __future__ import annotations

import importlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import coati_ext
from coati_ext.errors import ConfigError, RefusedError
from coati_ext.testing import (
    cpu_only,
    grpo_consumer,
    has_distributed,
    importable_rewards,
    sampled,
    tiny_tokenizer,
)
from helpers.policies import PROMPTS, language_model

pytestmark = [
    pytest.mark.generations("G4"),
    pytest.mark.once("coati.distributed is of HEAD, which needs the newest stack"),
]
PACKAGES = ("coati.distributed", "coati.distributed.zero_bubble")


@pytest.fixture(autouse=True)
def _there(upstream):
    if not has_distributed():
        pytest.skip("coati.distributed, or what it imports, is not here")
    with importable_rewards():
        yield


# --- vLLM ----------------------------------------------------------------------------------------


@pytest.fixture
def backend(upstream):
    """Upstream's backend on a vLLM that answers with the number of tokens it was given."""
    made = importlib.import_module("coati.distributed.inference_backend")
    backend = made.VLLMInferenceBackend.__new__(made.VLLMInferenceBackend)
    backend.prompts = []

    def generate(prompt_token_ids, sampling_params, use_tqdm):
        backend.prompts += prompt_token_ids
        answers = [[30 + len(ids), 2][: 1 + (len(ids) > 2)] for ids in prompt_token_ids]
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=answer,
                        logprobs=[{it: SimpleNamespace(logprob=-1.0)} for it in answer],
                    )
                ]
                * 2
            )
            for answer in answers
        ]

    backend.llm = SimpleNamespace(generate=generate)
    backend.tokenizer = SimpleNamespace(pad_token_id=1)
    backend.sample_params = SimpleNamespace(max_tokens=3)
    return backend


IDS = torch.tensor([[1, 1, 1, 5, 6], [1, 1, 7, 1, 8], [4, 4, 4, 4, 4]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])


def test_vllm_is_given_every_real_token(backend):
    with cpu_only():
        backend.generate(IDS, MASK)
        assert backend.prompts == [[5, 6], [7, 1, 8], [4, 4, 4, 4, 4]]
        backend.prompts.clear()
        llm = backend.llm
        with coati_ext.applied():
            data = backend.generate(IDS, MASK, gt_answer=["a", "b", "c"])
    assert backend.prompts == [[1, 5, 6], [1, 7, 1, 8], [4, 4, 4, 4, 4]]
    assert backend.llm is llm
    assert data["gt_answer"] == ["a", "b", "c"]
    assert data["input_ids"][:, 0, :5].equal(IDS)
    assert data["action_mask"].shape == (3, 2, 3)
    assert data["response_idx"][0, 0].tolist() == [5, 6]


# --- the code verifier ---------------------------------------------------------------------------


@pytest.fixture
def verifier():
    """A code verifier that finds every program right, and its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"result": [1], "metadata": [{}]}).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/check"
    server.shutdown()
    server.server_close()


def producer_of(package, address, monkeypatch):
    """A producer whose constructor has done no more than make its rewards."""
    module = importlib.import_module(f"{package}.producer")
    rewards = importlib.import_module("coati.distributed.reward.verifiable_reward")
    code = importlib.import_module("coati.distributed.reward.reward_fn").code_reward_fn
    config = {"reward_fn_type": "code", "max_new_tokens": 9, "code_verifier_api_url": address}

    def constructor(self, grpo_config=None):
        self.grpo_config = grpo_config
        self.evaluation_function = code
        self.reward_model = rewards.VerifiableReward(
            [code],
            tokenizer=SimpleNamespace(decode=lambda *_, **__: "```python\n1\n```"),
            max_new_tokens=9,
        )

    producer = module.BaseProducer.__new__(module.BaseProducer)
    ours = importlib.import_module("coati_ext.patches.distributed.actors")
    ours.construct_producer(constructor, producer, grpo_config=config)
    return producer


CASE = json.dumps({"inputs": ["1"], "outputs": ["1"]})


def test_the_address_of_the_code_verifier_reaches_the_request(on, verifier, monkeypatch):
    producer = producer_of("coati.distributed", verifier, monkeypatch)
    where = torch.tensor([[0, 2]])
    found = producer.reward_model(torch.zeros(1, 4).long(), test_cases=[CASE], response_idx=where)
    assert found.tolist() == [[10.0, 1.0, 1.0]]
    result = producer.evaluation_function(
        torch.zeros(4).long(),
        CASE,
        where[0],
        tokenizer=producer.reward_model.kwargs["tokenizer"],
        eval_mode=True,
    )
    assert result["ans_valid"] == 1


def test_a_verifier_that_does_not_answer_is_told(on, monkeypatch):
    producer = producer_of("coati.distributed", "http://127.0.0.1:9/check", monkeypatch)
    with pytest.warns(UserWarning, match=r"the code verifier at http://127.0.0.1:9/check gives no"):
        found = producer.reward_model(
            torch.zeros(1, 4).long(), test_cases=[CASE], response_idx=torch.tensor([[0, 2]])
        )
    assert found.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_producers_of_both_packages_are_told_the_address(on, package):
    if importlib.util.find_spec(f"{package}.producer") is None:
        pytest.skip("the stand-in has one producer")
    wrapped = importlib.import_module(f"{package}.producer").BaseProducer.__init__
    assert wrapped.__wrapped__.__name__ == "__init__"


# --- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [5, 7, 40])
def test_a_long_prompt_keeps_its_question_and_header(upstream, width):
    loader = importlib.import_module("coati.dataset.loader")
    tokenizer = tiny_tokenizer(padding_side="left")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for item in messages %}{{ item['content'] }} {% endfor %}word9"
    )
    chat = {"messages": {"role": "user", "content": "word1 word2 word3"}, "gt_answer": "a"}
    system = "word5 word5 word5 word5"

    def words():
        row = loader.apply_chat_template_and_mask(tokenizer, chat, width, system)
        assert {len(row[name]) for name in ("input_ids", "attention_mask", "labels")} == {width}
        assert row["gt_answer"] == "a"
        kept = row["input_ids"][row["attention_mask"].bool()]
        return tokenizer.convert_ids_to_tokens(kept)

    before = words()
    with coati_ext.applied():
        after = words()
    if width == 40:
        assert after == before
    else:
        assert before[-1] != "word9"
        assert after[0] == tokenizer.bos_token
        assert after[-4:] == ["word1", "word2", "word3", "word9"]


# --- launch --------------------------------------------------------------------------------------

GIVEN = {
    "num_producers": 1,
    "num_proc_per_producer": 1,
    "num_consumer_procs": 1,
    "num_episodes": 1,
    "inference_batch_size": 1,
    "inference_microbatch_size": 1,
    "train_batch_size": 1,
    "train_minibatch_size": 1,
    "train_dataset_config": {"path": "prompts.jsonl"},
    "inference_model_config": {"path": "m"},
    "generate_config": {"temperature": 1.0, "top_p": 1.0},
    "train_model_config": {"path": "m"},
    "grpo_config": {},
    "plugin_config": {},
    "inference_backend": "vllm",
    "project_name": "p",
    "eval_save_dir": "e",
    "eval_generation_config": {},
}


@pytest.mark.parametrize("name", ["launch", "launch_zero_bubble"])
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"inference_backend": "transformers"}, "makes SamplingParams of vLLM"),
        ({"num_generations": 1}, "num_generations = 1: a group of one answer"),
        ({"train_model_config": {"path": "m", "checkpoint_path": "c"}}, "wait for ever"),
        ({"project_name": None}, "project_name = None, which is the default"),
        ({"save_interval": 0}, "save_interval = 0: upstream divides"),
    ],
)
def test_a_run_that_would_not_end_well_is_refused(on, name, changed, told):
    module = importlib.import_module(f"coati.distributed.{name}")
    write_inputs(3)
    with pytest.raises(ConfigError, match=told):
        module.launch_distributed(**{**GIVEN, **changed})


@pytest.mark.parametrize("name", ["launch", "launch_zero_bubble"])
@pytest.mark.parametrize(
    ("family", "vocabulary", "plugin", "told"),
    [
        ("gpt2", 64, {"tp_size": 2}, "tp_size with GPT-2"),
        ("gpt2", 64, {"pp_size": 2}, "pp_size with GPT-2"),
        ("llama", 120, {}, "a vocabulary of 120 with tp_size = 1"),
        ("llama", 120, {"pp_size": 2}, "a vocabulary of 120 with tp_size = 1"),
    ],
)
def test_a_model_that_colossalai_cannot_train_is_refused(
    on, name, family, vocabulary, plugin, told
):
    module = importlib.import_module(f"coati.distributed.{name}")
    write_inputs(3)
    language_model(family, vocab_size=vocabulary).config.save_pretrained("m")
    with pytest.raises(ConfigError, match=told) as caught:
        module.launch_distributed(**{**GIVEN, "plugin_config": plugin})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("prompts", "changed", "told"),
    [
        (3, {"save_interval": 1}, "save_interval = 1: upstream divides"),
        (1, {}, "prompts.jsonl has 1 prompts, and an update takes 1, so that each episode is"),
        (1, {"inference_batch_size": 2}, "there is no update"),
        (3, {"n_behind": 3}, "n_behind = 3, .* in 3 updates nothing is trained"),
    ],
)
def test_an_episode_that_cannot_be_trained_or_saved_is_refused(on, prompts, changed, told):
    module = importlib.import_module("coati.distributed.launch")
    write_inputs(prompts)
    with pytest.raises(ConfigError, match=told) as caught:
        module.launch_distributed(**{**GIVEN, **changed})
    assert len(str(caught.value).splitlines()) == 2


def test_all_reasons_are_told_at_once(on):
    module = importlib.import_module("coati.distributed.launch")
    write_inputs(3)
    with pytest.raises(ConfigError) as caught:
        module.launch_distributed(**{**GIVEN, "save_interval": 1, "num_generations": 1})
    assert "save_interval = 1" in str(caught.value)
    assert "num_generations = 1" in str(caught.value)


def write_inputs(prompts):
    Path(GIVEN["train_dataset_config"]["path"]).write_text("{}\n" * prompts)
    language_model("llama").config.save_pretrained("m")


# --- actors --------------------------------------------------------------------------------------


def test_a_worker_that_is_patched_alone_is_refused(on):
    actors = importlib.import_module("coati_ext.patches.distributed.actors")
    consumer = importlib.import_module("coati.distributed.grpo_consumer").GRPOConsumer
    cls = getattr(getattr(consumer, "__ray_metadata__", None), "modified_class", consumer)
    made = []
    actors.construct_consumer(lambda self: made.append(self), cls.__new__(cls))
    assert len(made) == 1
    coati_ext.disable()
    with pytest.raises(RefusedError, match="came unpatched from the driver"):
        actors.construct_consumer(lambda self: made.append(self), cls.__new__(cls))
    assert len(made) == 1


# --- upstream's loop -----------------------------------------------------------------------------


def test_what_the_producers_send_is_trained_on_at_its_own_temperature(on, monkeypatch, tmp_path):
    """Through the consumer's own loop, with a list in place of Ray's broadcast."""
    module = importlib.import_module("coati.distributed.consumer")
    if not hasattr(module.BaseConsumer, "loop"):
        pytest.skip("the stand-in has no loop")
    policy = language_model("llama")
    utils = importlib.import_module("coati.distributed.utils")
    with cpu_only():
        temperatures = (1.0, 0.6)
        sent = [
            utils.pre_send(sampled(policy, PROMPTS[:2], temperature=it, width=8, seed=seed))
            for seed, it in enumerate(temperatures)
        ]
        consumer = grpo_consumer(policy, batch_size=2, minibatch_size=1, temperature=1.0)
        for name in ("empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
        monkeypatch.setattr(module, "save_checkpoint", lambda **_: None)
        monkeypatch.setattr(
            module, "ray_broadcast_tensor_dict", lambda given, **_: given or sent.pop(0)
        )
        nothing = SimpleNamespace(enter=len, exit=len, log=len, close=lambda: None)
        vars(consumer).update(
            profiler=nothing,
            buffer=[],
            num_producers=1,
            num_episodes=1,
            num_update_per_episode=2,
            num_recv_per_update=1,
            n_behind=0,
            total_prompt_trained=0,
            save_interval=100,
            save_dir=str(tmp_path),
            coordinator=None,
            state_dict=lambda: {"weights": torch.zeros(1)},
        )
        seen = []
        update = importlib.import_module("coati_ext.patches.distributed.update")
        choice = update.choice

        def recording(hook):
            def call(*given):
                if hook == "action_losses":
                    seen.append((given[0] - given[1]).masked_fill(~given[4], 0).detach())
                return choice(hook)(*given)

            return call

        monkeypatch.setattr(update, "choice", recording)
        first = policy.state_dict()["lm_head.weight"].clone()
        consumer.loop()
    assert consumer.global_step == 2
    assert sent == []
    assert not policy.state_dict()["lm_head.weight"].equal(first)
    # The first update's rows were sampled by the policy as it was.
    assert max(float(it.abs().max()) for it in seen[:2]) < 1e-5
