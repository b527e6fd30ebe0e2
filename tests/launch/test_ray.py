"""A real local Ray, started before the flag was set: its workers know only what ray.init() says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import coati_ext
from coati_ext.launch import ray as launch
from coati_ext.settings import FROZEN, collect
from helpers import ROOT
from helpers.interpreters import Python, free_port, new_environment

OURS = "coati_ext.patches.eos_pooling.reward_model"
LIMIT = 120  # seconds, of which a busy machine spends most on imports
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # else Ray takes or leaves one in the home directory


# --- what the helper says, without Ray -------------------------------------------------------


def test_the_runtime_env_carries_the_settings_in_force(newest, monkeypatch, tmp_path):
    monkeypatch.setenv("COATI_EXT", "eos_pooling")
    Path("coati-ext.toml").write_text("[eos_pooling]\npooling = 'masked_mean'\n")
    found = launch.ray_runtime_env()
    assert set(found) == {"env_vars", "worker_process_setup_hook"}
    assert found["worker_process_setup_hook"] == "coati_ext._startup.activate"
    assert set(found["env_vars"]) == {"COATI_EXT", FROZEN}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, value in found["env_vars"].items():
        monkeypatch.setenv(name, value)
    worker = {item.name: item.value for item in collect().entries}
    assert worker == {"COATI_EXT.only": ["eos_pooling"], "eos_pooling.pooling": "masked_mean"}
    assert launch.ray_runtime_env() == found  # an actor that starts another cluster's job


def test_the_arguments_of_enable_reach_the_workers(newest, monkeypatch):
    with coati_ext.applied({"eos_pooling": {"pooling": "masked_mean"}}) as report:
        found = launch.ray_runtime_env()["env_vars"]
    assert found["COATI_EXT"] == "1"
    monkeypatch.setenv(FROZEN, found[FROZEN])
    assert coati_ext.status().digest == report.digest


def test_what_the_user_has_in_the_runtime_env_stays():
    base = {"pip": ["x"], "env_vars": {"A": "1", "COATI_EXT": "eos_pooling"}}
    found = launch.ray_runtime_env(base)
    assert found["pip"] == ["x"]
    assert found["env_vars"]["A"] == "1"
    assert found["env_vars"]["COATI_EXT"] == "eos_pooling"
    assert base == {"pip": ["x"], "env_vars": {"A": "1", "COATI_EXT": "eos_pooling"}}
    # Ray has exported a hook already, as in a job submitted with one, and would refuse another.
    exported = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "theirs.setup"}
    found = launch.ray_runtime_env({"env_vars": exported})
    assert "worker_process_setup_hook" not in found


def test_the_kill_switch_reaches_the_workers(monkeypatch):
    monkeypatch.setenv("COATI_EXT", "0")
    assert launch.ray_runtime_env() == {"env_vars": {"COATI_EXT": "0"}}


def test_a_hook_that_was_there_before_is_called_first(monkeypatch, tmp_path):
    (tmp_path / "site_hooks.py").write_text(
        "def add(runtime_env):\n    return {**(runtime_env or {}), 'working_dir': '/w'}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(launch.OTHER_HOOK, "site_hooks.add")
    found = launch.ray_hook(None)
    assert found["working_dir"] == "/w"
    assert found["env_vars"]["COATI_EXT"] == "1"


def test_run_keeps_the_name_of_a_hook_that_was_there(monkeypatch):
    from coati_ext.cli.run import _variables

    assert launch.OTHER_HOOK not in _variables("x")
    monkeypatch.setenv(launch.RAY_HOOK, "site_hooks.add")
    found = _variables("x")
    assert (found[launch.RAY_HOOK], found[launch.OTHER_HOOK]) == (launch.OUR_HOOK, "site_hooks.add")
    monkeypatch.setenv(launch.RAY_HOOK, launch.OUR_HOOK)  # a run within a run
    assert launch.OTHER_HOOK not in _variables("x")


def test_a_worker_that_has_imported_coati_already_is_armed_when_it_is_set_up(newest, tmp_path):
    python = Python(newest.folder, tmp_path)
    script = textwrap.dedent(
        """
        import os
        import coati.models

        def forward():
            return coati.models.RewardModel.forward.__module__

        from coati_ext import _startup
        found = [forward()]
        for flag in ("0", "1", "1"):
            os.environ["COATI_EXT"] = flag
            _startup.activate()
            found.append(forward())
        print(*found)
        """
    )
    plain, off, on, again = python.warm("-c", script).stdout.split()
    assert plain.startswith("coati.models")
    assert (off, on, again) == (plain, OURS, OURS)


# --- real Ray --------------------------------------------------------------------------------


class Cluster:
    """A head node of its own, whose Python can import coati-ext but has no start-up file of it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # its sockets want a short path
        python = new_environment(self.folder / "venv", packages=True)
        options = ["--head", "--block", "--port=0", "--node-ip-address=127.0.0.1"]
        if find_spec("grpc"):  # else Ray has no client server, and refuses a port for it
            options.append(f"--ray-client-server-port={free_port()}")
        options += ["--num-cpus=4", "--include-dashboard=false", "--disable-usage-stats"]
        options += ["--min-worker-port=0", "--max-worker-port=0"]  # any: there may be two clusters
        options += ["--object-store-memory=100000000", f"--temp-dir={self.folder / 'r'}"]
        self.log = self.folder / "log"
        clean = {key: value for key, value in os.environ.items() if "COATI_EXT" not in key}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(python), "-m", "ray.scripts.scripts", "start", *options],
                env={**clean, **NO_TOKEN, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def address(self) -> str:
        file = self.folder / "r" / "ray_current_cluster"
        end = time.monotonic() + LIMIT
        while time.monotonic() < end and self.process.poll() is None:
            if file.is_file() and "Ray runtime started" in self.log.read_text():
                return file.read_text()
            time.sleep(0.2)
        raise AssertionError(f"Ray does not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        """End this cluster's processes and no others, which `ray stop` would."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, kind)
                self.process.wait(3)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        shutil.rmtree(str(self.folder), ignore_errors=True)


@pytest.fixture(scope="module")
def address():
    """The address of a cluster that was started without the flag."""
    pytest.importorskip("ray", reason="Ray is not installed")
    cluster = Cluster()
    try:
        yield cluster.address()
    finally:
        cluster.stop()


SCRIPT = textwrap.dedent(
    """
    import json, os
    import ray

    def look():
        import coati.models
        import coati_ext
        return {
            "forward": coati.models.RewardModel.forward.__module__,
            "flag": os.environ.get("COATI_EXT"),
            "digest": coati_ext.status().digest,
            "theirs": os.environ.get("THEIRS"),
        }

    @ray.remote(num_cpus=0)
    class Actor:
        def look(self):
            return look()

    def ask(runtime_env):
        ray.init(address=os.environ["CLUSTER"], runtime_env=runtime_env, log_to_driver=False)
        try:
            actor = Actor.remote()
            return ray.get(actor.look.remote(), timeout=60)
        finally:
            ray.shutdown()

    found = [ask({"env_vars": {"PYTHONPATH": os.environ["WORKERS"]}})]
    """
)
HELPER = textwrap.dedent(
    """
    from coati_ext.launch import ray_runtime_env

    mine = {
        "env_vars": {"PYTHONPATH": os.environ["WORKERS"]},
        "worker_process_setup_hook": "theirs.setup",
    }
    found.append(ask(ray_runtime_env(mine)))
    """
)
SHOW = "print(json.dumps([*found, look()]))\n"


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["wheel"], indirect=True)
def test_actors_of_an_older_cluster_are_armed_by_the_helper_and_by_run(
    address, environment, installed, tmp_path
):
    (tmp_path / "plain.py").write_text(SCRIPT + SHOW)
    (tmp_path / "helped.py").write_text(SCRIPT + HELPER + SHOW)
    (tmp_path / "theirs.py").write_text(
        "import os\ndef setup():\n    os.environ['THEIRS'] = 'ran'\n"
    )
    (tmp_path / "coati-ext.toml").write_text("[eos_pooling]\npooling = 'masked_mean'\n")
    workers = os.pathsep.join([str(ROOT), str(installed.folder), str(tmp_path)])
    variables = installed.environment(CLUSTER=address, WORKERS=workers, **NO_TOKEN)

    def run(*command, **more):
        done = subprocess.run(
            [str(item) for item in command],
            env={**variables, **more},
            cwd=str(tmp_path),
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    # The flag in the driver alone does not reach the cluster; the helper hands it over.
    without, helped, driver = run(environment, "helped.py", COATI_EXT="1")
    assert without["forward"].startswith("coati.models")
    assert without["flag"] is None
    assert helped == {**driver, "theirs": "ran"}
    assert driver["forward"] == OURS
    # An unchanged script, whose own ray.init() is told by `coati-ext run`.
    options = ["run", "--set", "rollout.lam=0.5", "--"]
    actor, driver = run(environment.parent / "coati-ext", *options, environment, "plain.py")
    assert actor == driver
    assert actor["forward"] == OURS
    assert actor["digest"] != helped["digest"]


HOLDER = textwrap.dedent(
    """
    import dataclasses, json, os, time
    import ray
    import torch

    ADDRESS, WORKERS = os.environ["CLUSTER"], os.environ["WORKERS"]
    SPACE = "holder"

    def models():
        from coati_ext.testing import tiny_models
        torch.manual_seed(0)
        return tuple(tiny_models("gpt2"))

    def strategy():
        from coati_ext.testing import LocalStrategy
        return LocalStrategy()

    def prompts():
        ids = torch.tensor([[0, 0, 7, 8, 9], [5, 6, 7, 8, 9], [0, 9, 4, 4, 5]])
        return [{"input_ids": ids, "attention_mask": ids.ne(0).long()}]

    KWARGS = dict(max_length=14, top_k=1, pad_token_id=0, eos_token_id=2)
    KWARGS["cache_position"] = torch.arange(5)  # which newer transformers want to be given

    @ray.remote(num_cpus=0)
    class Trainer:
        def __init__(self):
            self.items = []

        def buffer_extend(self, items):
            self.items += items

        def take(self):
            return self.items

    def rows(items):
        return [
            {
                field.name: getattr(item, field.name).double().flatten().tolist()
                for field in dataclasses.fields(item)
            }
            for item in items
        ]

    def arrived(trainer, count):
        # The holder sends without waiting, so its rows may come after our own question.
        until = time.monotonic() + 60
        while True:
            items = ray.get(trainer.take.remote(), timeout=60)
            if len(items) >= count or time.monotonic() > until:
                return items
            time.sleep(0.1)

    def in_actor(runtime_env):
        ray.init(address=ADDRESS, namespace=SPACE, runtime_env=runtime_env, log_to_driver=False)
        try:
            from coati.ray.experience_maker_holder import ExperienceMakerHolder
            trainer = Trainer.options(name="trainer").remote()
            ray.get(trainer.take.remote(), timeout=60)
            holder = ExperienceMakerHolder.options(num_cpus=0).remote(
                ["trainer"], strategy, models, kl_coef=0.1, **KWARGS
            )
            ray.get(holder.workingloop.remote(prompts, num_steps=1), timeout=90)
            actor, critic, *_ = models()
            update = dict(chunk_start=True, chunk_end=True, fully_update=True)
            ray.get(
                holder.update_experience_maker.remote(
                    new_actor_state_dict=actor.model.state_dict(),
                    new_critic_state_dict=critic.state_dict(),
                    **update,
                ),
                timeout=60,
            )
            ray.get(holder.workingloop.remote(prompts, num_steps=1), timeout=90)
            return rows(arrived(trainer, count=6))
        finally:
            ray.shutdown()

    def here():
        from coati.ray.experience_maker_holder import split_experience_batch
        from coati_ext.testing import experience_maker
        from coati_ext.testing.rollouts import Models, default_generate_kwargs
        made = Models(*models())
        inner = made.actor.model
        maker = experience_maker(made, tokenizer=None, kl_coef=0.1)
        borrowed = dict(
            prepare_inputs_fn=inner.prepare_inputs_for_generation,
            update_model_kwargs_fn=inner._update_model_kwargs_for_generation,
        )
        (prompt,) = prompts()
        return rows(split_experience_batch(maker.make_experience(**prompt, **borrowed, **KWARGS)))

    import coati_ext
    from coati_ext.launch import ray_runtime_env
    base = {"env_vars": {"PYTHONPATH": WORKERS, "RAY_NAMESPACE": SPACE}}
    result = {"off": [in_actor(base), here()]}
    with coati_ext.applied():
        result["on"] = [in_actor(ray_runtime_env(base)), here()]
    print(json.dumps(result))
    """
)


@pytest.mark.slow
@pytest.mark.generations("G1")
def test_the_experience_maker_holder_makes_the_experience_of_a_single_process(
    address, python, tmp_path
):
    if not (python.folder / "coati" / "ray").is_dir():
        pytest.skip("coati.ray begins with v0.3.1")
    (tmp_path / "script.py").write_text(HOLDER)
    workers = python.environment()["PYTHONPATH"]
    done = python("script.py", CLUSTER=address, WORKERS=workers, **NO_TOKEN)
    result = json.loads(done.stdout.splitlines()[-1])
    for state in ("off", "on"):
        sent, here = result[state]
        assert len(sent) == 6  # three rows, before and after the models were updated
        for row, (mine, theirs) in enumerate(zip(sent, here * 2)):
            for name, values in theirs.items():
                assert mine[name] == pytest.approx(values, abs=1e-6), (state, row, name)
    off, on = (result[state][0][0]["reward"] for state in ("off", "on"))
    assert off != pytest.approx(on, abs=1e-3)


CONSUMER = textwrap.dedent(
    """
    import inspect, json, os, sys
    import coati_ext
    import ray
    import torch
    import transformers
    if os.environ.get("COATI_EXT"):
        coati_ext.enable()
    from coati.distributed.grpo_consumer import GRPOConsumer
    from coati_ext.testing import tiny_config, tiny_tokenizer

    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(tiny_config("llama")).save_pretrained("model")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained("model")

    def construct():
        given = dict(num_producers=1, num_episodes=1, rank=0, world_size=1, batch_size=1)
        given.update(master_addr="", master_port=0, plugin_config={})
        given.update(num_update_per_episode=1, num_recv_per_update=1)
        config = {"algo": "GRPO", "beta": 0.0, "train_microbatch_size": 1}
        given.update(generate_config={"temperature": 1.0}, grpo_config=config)
        given.update(model_config={"path": os.path.abspath("model")}, num_generations=4)
        return GRPOConsumer.options(num_cpus=0).remote(**given)

    def probe(self):
        # Take a step with the model and the step of this very actor.
        from coati_ext.testing import cpu_only, grpo_consumer, learn, sampled
        with cpu_only():
            own, weight = vars(self), next(self.policy_model.parameters())
            data = sampled(self.policy_model, [[1, 5, 9]])
            made = grpo_consumer(self.policy_model, algo="GRPO", train_microbatch_size=1)
            own.update(vars(made))
            before = weight.detach().clone()
            learn(self, data)
            moved = float((before - weight.detach()).norm())
        return inspect.unwrap(type(self).step).__module__, moved

    def ask(runtime_env):
        ray.init(address=os.environ["CLUSTER"], runtime_env=runtime_env, log_to_driver=False)
        try:
            return ray.get(construct().__ray_call__.remote(probe), timeout=90)
        except ray.exceptions.RayError as error:
            return [type(error).__name__, str(error)]
        finally:
            ray.shutdown()

    base = {"env_vars": {"PYTHONPATH": os.environ["WORKERS"]}}
    base["worker_process_setup_hook"] = "theirs.setup"
    armed = {**base, "env_vars": {**base["env_vars"], "COATI_EXT": "1"}}
    armed["worker_process_setup_hook"] = "theirs.both"
    found = [ask(base), ask(armed)]
    if not os.environ.get("COATI_EXT"):
        ray.init(address=os.environ["CLUSTER"], runtime_env=base, log_to_driver=False)
        actor = construct()
        try:
            coati_ext.enable()
        except coati_ext.errors.RefusedError as error:
            found.append(str(error))
    print(json.dumps(found))
    """
)
THEIRS = """
def setup():
    try:
        from colossalai.nn.optimizer import hybrid_adam
    except ImportError:
        return
    import torch
    hybrid_adam.HybridAdam = torch.optim.AdamW  # which needs no CUDA


def both():
    from coati_ext import _startup
    _startup.activate()
    setup()
"""


@pytest.mark.slow
@pytest.mark.generations("G4")
@pytest.mark.once("the Ray that coati.distributed was written for")
def test_the_consumer_is_patched_in_its_worker_or_refused(address, python, tmp_path):
    if not (python.folder / "coati" / "distributed").is_dir():
        pytest.skip("coati.distributed is in no release")
    (tmp_path / "script.py").write_text(CONSUMER)
    (tmp_path / "theirs.py").write_text(THEIRS)
    paths = [python.environment()["PYTHONPATH"], str(tmp_path), os.environ.get("PYTHONPATH", "")]
    given = {"CLUSTER": address, "WORKERS": os.pathsep.join(paths), **NO_TOKEN}
    given["PYTHONPATH"] = given["WORKERS"]

    def run(**flag):
        return json.loads(python("script.py", **given, **flag).stdout.splitlines()[-1])

    (plain, moved), (half, why), late = run()
    (lonely, no_hooks), (ours, right) = run(COATI_EXT="1")
    assert plain == "coati.distributed.grpo_consumer", moved
    assert ours == "coati_ext.patches.distributed.consumer", right
    assert moved == pytest.approx(4 * right, rel=1e-4)  # of four microbatches
    assert "ActorDiedError" in half
    assert "came unpatched from the driver" in why
    assert "RuntimeError" in lonely
    assert "call coati_ext.enable() first" in no_hooks
    assert "an actor of coati.distributed.grpo_consumer.GRPOConsumer was created before" in late
