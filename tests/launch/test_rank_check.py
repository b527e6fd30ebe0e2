"""Ranks that differ or are missing are named within a time limit, in real processes."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest

import coati_ext
from coati_ext.errors import ConfigError, RankError
from coati_ext.launch import rank_check
from coati_ext.plan import make_plan
from helpers.interpreters import free_port
from helpers.processes import on_two_ranks, server

SECONDS = 120  # that a busy machine may take to import torch


def start(rank, size, folder, when, config):
    """Meet the other ranks, enabled before or after that or not at all; write what came of it."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    outcome, began = "", time.monotonic()
    try:
        if when == "before":
            coati_ext.enable(config)
        began = time.monotonic()
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
        began = time.monotonic()
        if when == "after":
            coati_ext.enable(config)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    (Path(folder) / f"took{rank}").write_text(str(time.monotonic() - began))
    (Path(folder) / f"outcome{rank}").write_text(outcome)
    if when == "never":  # as a rank that trains on, until its job is stopped
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and not (Path(folder) / "stop").exists():
            time.sleep(0.1)


def outcomes(folder, *ranks):
    """What came of each rank, given as (when it was enabled, its configuration)."""
    context = server()
    processes = [
        context.Process(target=start, args=(rank, len(ranks), str(folder), when, config))
        for rank, (when, config) in enumerate(ranks)
    ]
    for process in processes:
        process.start()
    armed = [process for process, (when, _) in zip(processes, ranks) if when != "never"]
    try:
        for process in armed:
            process.join(SECONDS)
        assert not any(process.is_alive() for process in armed), "ranks wait for each other"
    finally:
        (Path(folder) / "stop").touch()
        for process in processes:
            process.join(10)
            process.kill()
    return [(Path(folder) / f"outcome{rank}").read_text() for rank in range(len(ranks))]


PLAIN = {"rank_check": 60}
OTHER = {"rank_check": 60, "rollout": {"lam": 0.5}}
SHORT = {"rank_check": 3}
THIRD = {"rank_check": 1, "rollout": {"lam": 0.25}}
pytestmark = pytest.mark.slow


def test_ranks_with_one_plan_go_on(newest, tmp_path):
    """Also where a rank is armed before the ranks meet and another when they have met."""
    assert outcomes(tmp_path, ("before", PLAIN), ("after", PLAIN), ("before", PLAIN)) == [""] * 3


def test_a_rank_with_another_plan_is_named_on_every_rank(newest, tmp_path):
    told = outcomes(tmp_path, ("before", PLAIN), ("before", PLAIN), ("before", OTHER))
    other, plain = (make_plan(config).digest for config in (OTHER, PLAIN))
    for outcome in told:
        assert outcome.startswith("RankError: the ranks of this job do not train alike: rank 2 (")
        assert f"has plan {other}, the others {plain}" in outcome
        assert "coati-ext run" in outcome


@pytest.mark.parametrize("unarmed", [0, 1])
def test_an_unarmed_rank_is_named_in_time(newest, tmp_path, unarmed):
    ranks = [("before", SHORT), ("before", SHORT)]
    ranks[unarmed] = ("never", None)
    told = outcomes(tmp_path, *ranks)
    armed = 1 - unarmed
    assert told[unarmed] == ""
    assert told[armed].startswith(f"RankError: rank {unarmed} of this job never reported a plan")
    assert "is COATI_EXT set" in told[armed]
    limit = SHORT["rank_check"] + rank_check._SLACK * armed
    assert float((tmp_path / f"took{armed}").read_text()) < limit + 30


@pytest.mark.generations("G4")
def test_torchrun_ends_a_job_with_an_unarmed_rank(python, tmp_path):
    (tmp_path / "train.py").write_text(
        textwrap.dedent(
            """
            import os, time
            import coati_ext
            os.environ["COATI_EXT"] = "1" if os.environ["RANK"] != "1" else "0"
            coati_ext.enable()
            import coati.models
            import torch.distributed as dist
            dist.init_process_group("gloo")
            time.sleep(120)
            """
        )
    )
    done = python(
        *["-m", "torch.distributed.run", "--nproc_per_node", "3", "--master_port", free_port()],
        "train.py",
        check=False,
        COATI_EXT_SET="rank_check=8",
    )
    assert done.returncode
    assert "rank 1 of this job never reported a plan within 8 s" in done.stderr


def off_and_on(rank, folder):
    """What one rank may do alone, and what both may do; with the seconds that it took."""
    import torch.distributed as dist

    with coati_ext.applied(PLAIN):
        pass
    began = time.monotonic()
    for _ in range(3 * (1 - rank)):  # rank 0 alone
        with coati_ext.applied(PLAIN):
            pass
    took = time.monotonic() - began
    dist.barrier()
    with coati_ext.applied(OTHER), coati_ext.applied(OTHER):
        pass  # another plan, on both ranks
    left = left_in_store()
    told = ""
    if not rank:
        try:
            coati_ext.enable(THIRD)  # which nobody else has
        except RankError as error:
            told = str(error)
    dist.barrier()
    return [took < 30, left, told]


def left_in_store():
    """The keys of the comparison that are still there."""
    _, store = rank_check._group()
    keys = [f"{what}{rank}" for what in ("", "verdict for ", "read by ") for rank in (0, 1)]
    return [key for key in keys if rank_check._take(store, key, 0.01) is not None]


def groups_one_after_the_other(rank, folder):
    """Process groups such as a trainer makes that recovers; the keys left, and what is told."""
    import torch.distributed as dist

    store = dist.FileStore(f"{folder}/store", 2)

    def meet(number):
        inner = dist.PrefixStore(str(number), store)  # gloo needs keys of its own for each
        dist.init_process_group("gloo", store=inner, rank=rank, world_size=2)
        left.append(left_in_store())
        leave()

    def leave():
        dist.barrier()  # the other rank may still be connecting to this one
        dist.destroy_process_group()

    left, told = [], ""
    leave()
    with coati_ext.applied(PLAIN):
        for number in range(3):
            meet(number)
    with coati_ext.applied(PLAIN):
        from coati.models.loss import LogExpLoss

        ours = vars(LogExpLoss)["forward"]
        if rank:
            LogExpLoss.forward = lambda self, chosen, rejected: chosen
        try:
            meet("last")
        except RankError as error:
            told = str(error)
        LogExpLoss.forward = ours
    return left, told  # in the group that has failed


def test_one_rank_may_switch_off_and_on_again_alone(newest, tmp_path):
    """What the ranks have agreed on holds; nobody is waited for, and nothing stays in the store."""
    first, second = on_two_ranks(off_and_on, tmp_path, str(tmp_path))
    assert first[:2] == [True, []]
    assert second == [True, [], ""]
    agreed, changed = (make_plan(config).digest for config in (OTHER, THIRD))
    assert "rank 1 of this job never reported a plan within 1 s" in first[2]
    assert f"had agreed on plan {agreed}, and this rank has changed to {changed}" in first[2]


def test_process_groups_one_after_the_other_are_each_compared(newest, tmp_path):
    for left, told in on_two_ranks(groups_one_after_the_other, tmp_path, str(tmp_path)):
        assert left == [[]] * 3
        assert "the ranks of this job do not train alike: rank 1 (" in told
        assert "without coati.models.loss:LogExpLoss.forward, the others" in told


def test_the_comparison_can_be_switched_off(newest, tmp_path):
    off = {"rank_check": 0}
    assert outcomes(tmp_path, ("before", off), ("never", None)) == ["", ""]


@pytest.mark.parametrize("value", [-1, "soon", None])
def test_its_time_limit_is_a_number_of_seconds(value):
    with pytest.raises(ConfigError, match="wants seconds, or 0 to compare nothing"):
        make_plan({"rank_check": value})


def test_disabling_gives_torch_its_own_function_back(newest):
    import torch.distributed as dist

    before = dist.init_process_group
    with coati_ext.applied():
        assert dist.init_process_group is not before
        assert dist.init_process_group is dist.distributed_c10d.init_process_group
        assert dist.init_process_group.__wrapped__ is before
    assert dist.init_process_group is before
    assert dist.distributed_c10d.init_process_group is before


def test_one_process_compares_with_nobody(newest, tmp_path):
    assert outcomes(tmp_path, ("before", PLAIN)) == [""]
