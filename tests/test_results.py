"""What a plugin's choice returns is what the hook must return, or an error names plugin and hook.

The plugin of these tests implements every choice, rightly, but for one thing that a test puts in.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import pytest
import torch
import transformers

import coati_ext
from coati_ext import results
from coati_ext.errors import PluginError, StampError
from coati_ext.plugins import CHOICES
from coati_ext.rollout import Frame
from coati_ext.testing import (
    cpu_only,
    experience_maker,
    grpo_consumer,
    has_distributed,
    layouts,
    learn,
    make_experience,
    ppo_trainer,
    tiny_actor,
    tiny_config,
    tiny_models,
    tiny_reward_model,
    tiny_tokenizer,
    training_step,
)
from coati_ext.testing import sampled as batch_of_groups
from helpers.host_reads import HostReads

PROMPTS = [[1, 9, 8, 7], [1, 5], [1, 14, 6, 33]]
PLUGIN = """
import torch
from coati_ext import hookimpl
from coati_ext.patches import distributed, eos_pooling, reward_scaling, rollout, token_saving

wrong = {}  # what a test does to the result of a hook
called = set()

def made(hook, right):
    called.add(hook)
    return wrong.get(hook, lambda right: right)(right)

@hookimpl
def last_hidden_states(backbone, input_ids, attention_mask, position_ids):
    right = token_saving.prefix(backbone, input_ids, attention_mask, position_ids)
    return made("last_hidden_states", right)

@hookimpl
def pool_reward(hidden, positions):
    return made("pool_reward", eos_pooling.eos(hidden, positions))

@hookimpl
def align_prompts(input_ids, attention_mask):
    return made("align_prompts", rollout.compacted(input_ids, attention_mask))

@hookimpl
def sample_answers(maker, input_ids, attention_mask, new_tokens, generate_kwargs):
    answers = torch.tensor([[20, 2, 9, 9], [21, 22, 23, 2], [24, 25, 2, 9]])
    answers = answers.repeat(len(input_ids) // 3, 1)
    return made("sample_answers", torch.cat([input_ids, answers], dim=1))

@hookimpl
def mark_actions(sequences, prompt_width, stops):
    return made("mark_actions", rollout.up_to_the_end(sequences, prompt_width, stops))

@hookimpl
def action_log_probs(model, frame):
    return made("action_log_probs", rollout.from_logits(model, frame))

@hookimpl
def state_values(model, frame):
    return made("state_values", rollout.from_critic(model, frame))

@hookimpl
def score_rows(model, frame, extras):
    return made("score_rows", rollout.from_reward_model(model, frame, extras))

@hookimpl
def scale_reward(reward, model, maker):
    return made("scale_reward", reward_scaling.running(reward, model, maker))

@hookimpl
def shape_reward(score, log_ratio, action_mask, kl_coef):
    return made("shape_reward", rollout.terminal(score, log_ratio, action_mask, kl_coef))

@hookimpl
def estimate_advantages(values, rewards, action_mask, gamma, lam):
    return made("estimate_advantages", rollout.gae(values, rewards, action_mask, gamma, lam))

@hookimpl
def compare_group(score, kl, group_size, kl_coef):
    return made("compare_group", rollout.standardised(score, kl, group_size, kl_coef))

@hookimpl
def group_advantages(reward, action_mask, group_size, algorithm):
    found = distributed.by_algorithm(reward, action_mask, group_size, algorithm)
    return made("group_advantages", found)

@hookimpl
def action_losses(
    log_probs, old_log_probs, reference_log_probs, advantages, action_mask, clip, beta, algorithm
):
    given = (log_probs, old_log_probs, reference_log_probs, advantages, action_mask)
    return made("action_losses", distributed.clipped(*given, clip, beta, algorithm))

@hookimpl
def scale_advantages(advantages, action_mask):
    return made("scale_advantages", rollout.whitened(advantages, action_mask))
"""

ANYTHING = {
    "None": lambda it: None,
    "a number": lambda it: 1.0,
    "numpy": lambda it: it.detach().numpy(),
    "a list": lambda it: it.tolist(),
    "a tuple": lambda it: (it,),
    "a pair": lambda it: (it, it),
    "one row": lambda it: it[:1],
    "a row more": lambda it: torch.cat([it, it[:1]]),
    "no row": lambda it: it[:0],
    "a dimension more": lambda it: it.unsqueeze(-1),
    "a dimension in front": lambda it: it.unsqueeze(0),
    "one number": lambda it: it.flatten()[0],
    "complex": lambda it: it.to(torch.complex64),
    "on meta": lambda it: it.to("meta"),
    "sparse": lambda it: it.to_sparse(),
}
WIDE = {
    "a column less": lambda it: it[:, :-1],
    "a column more": lambda it: torch.cat([it, it[:, :1]], dim=1),
    "one column": lambda it: it[:, :1],
    "a row of means": lambda it: it.float().mean(dim=1).to(it.dtype),
    "transposed": lambda it: it.t(),
    "(1, A)": lambda it: it[:1],
    "a sequence of them": lambda it: it.unsqueeze(1).expand(-1, 3, -1),
}
FLOATS = {
    "integers": lambda it: it.long(),
    "bools": lambda it: it > 0,
    "nan": lambda it: it * float("nan"),
    "one nan": lambda it: it.flatten().index_fill(0, torch.tensor([0]), float("nan")).view_as(it),
    "inf": lambda it: it + float("inf"),
    "bf16 nan": lambda it: it.bfloat16() * float("nan"),
}
IDS = {"floats": lambda it: it.float(), "bools": lambda it: it > 0, "int32": lambda it: it.int()}
BOOLS = {"floats": lambda it: it.float(), "integers": lambda it: it.long()}
GRAPH = {"gradients in a rollout": lambda it: it.detach().requires_grad_()}
DETACHED = {
    "detached": lambda it: it.detach(),
    "a constant": lambda it: torch.ones_like(it),
}


def first(kinds):
    return {f"first: {name}": lambda it, f=f: (f(it[0]), it[1]) for name, f in kinds.items()}


def second(kinds):
    return {f"second: {name}": lambda it, f=f: (it[0], f(it[1])) for name, f in kinds.items()}


def with_value(value, row, column):
    def changed(it):
        it = it.clone()
        it[row, column] = value
        return it

    return changed


ROWS = {**ANYTHING, **FLOATS, **GRAPH}
TABLE = {**ROWS, **WIDE}
PAIRS = {
    "None": lambda it: None,
    "the first alone": lambda it: it[0],
    "three": lambda it: (*it, it[0]),
    "swapped": lambda it: (it[1], it[0]),
    "one": lambda it: it[:1],
}
WRONG = {
    "last_hidden_states": {
        **ROWS,
        "a column less": lambda it: it[:, :-1],
        "a column more": lambda it: torch.cat([it, it[:, :1]], dim=1),
        "a feature less": lambda it: it[..., :-1],
        "no columns": lambda it: it.mean(dim=1),
        "columns first": lambda it: it.transpose(0, 1),
    },
    "pool_reward": TABLE,
    "align_prompts": {
        **PAIRS,
        **first({**ANYTHING, **IDS, **WIDE}),
        **second({**ANYTHING, **BOOLS, **WIDE}),
        "right-padded": lambda it: tuple(item.flip(1) for item in it),
        "a gap": second({"": with_value(False, 2, 1)})["second: "],
        "an empty row": second({"": with_value(False, 1, slice(None))})["second: "],
        "no columns": lambda it: tuple(item[:, :0] for item in it),
    },
    "sample_answers": {
        **ANYTHING,
        **IDS,
        "the answers alone": lambda it: it[:, 4:],
        "the prompts alone": lambda it: it[:, :4],
        "too many": lambda it: torch.cat([it, it, it, it, it], dim=1),
        "a prompt rewritten": with_value(50, 0, 0),
        "the prompts' last token rewritten": with_value(50, 1, 3),
        "rows shuffled": lambda it: it.roll(1, 0),
        "transposed": lambda it: it.t(),
    },
    "mark_actions": {
        **PAIRS,
        **first({**ANYTHING, **BOOLS, **WIDE}),
        **second({**ANYTHING, **BOOLS}),
        "a gap": first({"": with_value(False, 1, 1)})["first: "],
        "the last first": first({"": lambda it: it.flip(1)})["first: "],
        "of the sequence": first({"": lambda it: torch.cat([it, it], dim=1)})["first: "],
    },
    "action_log_probs": TABLE,
    "state_values": TABLE,
    "scale_reward": ROWS,
    "score_rows": ROWS,
    "shape_reward": {
        **TABLE,
        "rewards after the end": lambda it: it + 1,
        "nan after the end": with_value(float("nan"), 0, 3),
    },
    "estimate_advantages": {
        **TABLE,
        "advantages after the end": lambda it: it + 1,
        "nan after the end": with_value(float("nan"), 0, 3),
    },
    "compare_group": ROWS,
    "group_advantages": {
        **TABLE,
        "advantages after the end": lambda it: it + 1,
        "nan after the end": with_value(float("nan"), 0, 3),
    },
    "action_losses": {**ANYTHING, **FLOATS, **WIDE},
    "scale_advantages": {**ANYTHING, **FLOATS, **WIDE},
}
DISTRIBUTED = ("group_advantages", "action_losses")
TRAINED = {
    "last_hidden_states": DETACHED,
    "action_log_probs": DETACHED,
    "state_values": DETACHED,
    "scale_advantages": WRONG["scale_advantages"],
}


@pytest.fixture
def mine():
    """The plugin: what is put into ``wrong`` is done to the result of a hook."""
    Path("mine.py").write_text(PLUGIN)
    with coati_ext.applied({"plugins": ["./mine.py"], "rollout": {"advantage": "mine"}}):
        yield sys.modules["coati_ext_plugin_mine"]


def batch():
    _, ids, mask = next(layouts(PROMPTS, pad_token_id=0, width=4))
    return ids, mask


def rollout_of(models, tokenizer, **options):
    maker = experience_maker(models, tokenizer=tokenizer, kl_coef=0.1, **options)
    return make_experience(maker, *batch(), tokenizer=tokenizer, max_length=8)


def got_through(mine, hook, cases, act):
    """The wrong results, of one hook, that no error told of by its plugin's and its own name."""
    silent = []
    for name, wrong in cases:
        mine.wrong = {hook: wrong}
        try:
            act()
            silent.append((hook, name, "no error"))
        except PluginError as error:
            if f"{hook} of plugin mine (" not in str(error) or "mine.py, line" not in str(error):
                silent.append((hook, name, str(error)))
        except Exception as error:
            silent.append((hook, name, f"{type(error).__name__}: {error}"))
    mine.wrong = {}
    return silent


def sampled(hook, kinds, upstream, full):
    """All wrong results of a hook, or a few, which are others for each generation."""
    cases = list(kinds.items())
    if full:
        return cases
    start = zlib.crc32(f"{hook} {upstream.generation}".encode()) % 16
    return cases[start::16]


@pytest.mark.attack
def test_no_wrong_result_gets_into_an_experience(upstream, mine, full, tally):
    tokenizer = tiny_tokenizer(padding_side="left")
    models = tiny_models()
    plain = {"models": models, "tokenizer": tokenizer}
    group = {"models": models._replace(critic=None), "use_grpo": True, "num_generation": 2}
    grouped = {**plain, **group}
    rollout_of(**plain)
    tried, silent = 0, []
    for hook in CHOICES:
        if hook in ("scale_advantages", *DISTRIBUTED):
            continue
        if hook == "compare_group" and upstream.generation != "G4":
            continue
        options = grouped if hook == "compare_group" else plain
        cases = sampled(hook, WRONG[hook], upstream, full)
        silent += got_through(mine, hook, cases, lambda options=options: rollout_of(**options))
        tried += len(cases)
        assert hook in mine.called
    tally("wrong results in a rollout", tried, len(silent))
    assert silent == []


@pytest.mark.attack
def test_no_wrong_result_is_trained_on(upstream, mine, full, tally):
    tokenizer = tiny_tokenizer(padding_side="left")
    tried, silent = 0, []
    with cpu_only():
        made = rollout_of(tiny_models(), tokenizer)
        trainer = ppo_trainer(tiny_models(), tokenizer=tokenizer, max_length=8)
        trainer.writer = None
        for hook, kinds in TRAINED.items():
            cases = sampled(hook, kinds, upstream, full) or list(kinds.items())[:1]
            silent += got_through(mine, hook, cases, lambda: training_step(trainer, made))
            tried += len(cases)
        tally("wrong results in a training step", tried, len(silent))
        assert silent == []
        before = [item.clone() for item in trainer.actor.parameters()]
        training_step(trainer, made)  # the right ones are trained on
        assert any(not old.equal(new) for old, new in zip(before, trainer.actor.parameters()))


@pytest.mark.attack
@pytest.mark.generations("G4")
def test_no_wrong_result_is_trained_on_in_distributed(upstream, mine, full, tally):
    if not has_distributed():
        pytest.skip("coati.distributed, or what it imports, is not here")
    policy = tiny_actor("llama")
    with cpu_only():
        data = batch_of_groups(policy, [[1, 9, 8]], generations=3, new_tokens=4)
        data["action_mask"][0, 0, 2:] = 0
        tried, silent = 0, []
        for hook in DISTRIBUTED:
            kinds = {**WRONG[hook], **(DETACHED if hook == "action_losses" else {})}
            cases = sampled(hook, kinds, upstream, full)
            step = lambda: learn(grpo_consumer(policy, generations=3), data)  # noqa: E731
            silent += got_through(mine, hook, cases, step)
            tried += len(cases)
            assert hook in mine.called
    tally("wrong results in coati.distributed", tried, len(silent))
    assert silent == []


@pytest.mark.attack
def test_no_wrong_pooling_trains_a_reward_model(upstream, mine, full, tally):
    model = tiny_reward_model()
    ids, mask = batch()
    kinds = {**WRONG["pool_reward"], **DETACHED}
    del kinds["gradients in a rollout"]
    silent = got_through(mine, "pool_reward", kinds.items(), lambda: model(ids, mask).sum())
    tally("wrong results in a reward model", len(kinds), len(silent))
    assert silent == []
    model(ids, mask).sum().backward()


# --- the check alone -----------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]).bool()
SEQUENCES = torch.tensor([[1, 9, 20, 2, 0, 0], [1, 5, 21, 22, 23, 2], [1, 14, 24, 25, 2, 0]])
FRAME = Frame.of(SEQUENCES, torch.cat([MASK[:, :2], MASK], dim=1), MASK)
NUMBERS = torch.randn(3, 4) * MASK
SCORE = torch.randn(3)
# For each hook what it is given and a right result.
RIGHT = {
    "action_log_probs": ((None, FRAME), NUMBERS),
    "align_prompts": ((SEQUENCES, SEQUENCES > 0), (SEQUENCES.flip(1), SEQUENCES.flip(1) > 0)),
    "compare_group": ((SCORE, SCORE, 3, 0.1), SCORE),
    "estimate_advantages": ((NUMBERS, NUMBERS, MASK, 1.0, 1.0), NUMBERS),
    "action_losses": (
        (NUMBERS, NUMBERS, None, NUMBERS, MASK, (0.2, 0.2), 0.0, "GRPO"),
        NUMBERS,
    ),
    "group_advantages": ((SCORE, MASK, 3, "GRPO"), NUMBERS),
    "last_hidden_states": ((None, SEQUENCES, SEQUENCES > 0, SEQUENCES), torch.randn(3, 6, 8)),
    "mark_actions": ((SEQUENCES, 2, ((2,),)), (MASK, MASK[:, 0])),
    "pool_reward": ((torch.randn(3, 6, 8), SEQUENCES > 0, None, None), torch.randn(3, 8)),
    "sample_answers": ((None, SEQUENCES[:, :2], MASK[:, :2], 4, {}), SEQUENCES),
    "scale_advantages": ((NUMBERS, MASK), NUMBERS),
    "scale_reward": ((SCORE, None, None), SCORE),
    "score_rows": ((None, FRAME, {}), SCORE),
    "shape_reward": ((SCORE, NUMBERS, MASK, 0.1), NUMBERS),
    "state_values": ((None, FRAME), NUMBERS),
}


@pytest.mark.parametrize("hook", CHOICES)
def test_a_right_result_is_left_alone(hook):
    arguments, right = RIGHT[hook]
    results.check(hook, "it", right, arguments)
    if isinstance(right, torch.Tensor) and right.is_floating_point():
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            results.check(hook, "it", right.to(dtype), arguments)


@pytest.mark.parametrize("hook", ["action_log_probs", "state_values", "scale_advantages"])
def test_what_stands_where_no_action_is_does_not_matter(hook):
    arguments, right = RIGHT[hook]
    results.check(hook, "it", right.masked_fill(~MASK, float("nan")), arguments)


def test_hidden_states_are_as_wide_as_the_backbone_makes_them():
    """OPT-350m's layers are 1024 wide, and its last hidden states 512, as its embeddings."""
    config = tiny_config("opt", hidden_size=32)
    config.word_embed_proj_dim = 16
    backbone = transformers.AutoModel.from_config(config)
    right = backbone(SEQUENCES)["last_hidden_state"]
    arguments = (backbone, SEQUENCES, SEQUENCES > 0, SEQUENCES)
    results.check("last_hidden_states", "it", right, arguments)
    wide = torch.cat([right, right], dim=-1)
    with pytest.raises(PluginError, match=r"shape \(3, 6, 32\).* expected .* = \(3, 6, 16\)"):
        results.check("last_hidden_states", "it", wide, arguments)


class OnCuda(torch.Tensor):
    """A tensor that looks like one on CUDA."""

    is_cpu, is_cuda = False, True
    __torch_function__ = torch._C._disabled_torch_function_impl  # what is made of it is plain


def as_if_on_cuda(item):
    if isinstance(item, Frame):
        return Frame(*(as_if_on_cuda(getattr(item, name)) for name in vars(item)))
    if isinstance(item, tuple):
        return tuple(map(as_if_on_cuda, item))
    return item.as_subclass(OnCuda) if isinstance(item, torch.Tensor) else item


@pytest.mark.parametrize("hook", CHOICES)
def test_nothing_is_read_back_from_a_device(hook, monkeypatch):
    asserted = []
    monkeypatch.setattr(torch, "_assert_async", lambda *given: asserted.append(given))
    arguments, right = (as_if_on_cuda(item) for item in RIGHT[hook])
    with HostReads() as reads:
        results.check(hook, "it", right, arguments)
    assert reads.seen == []
    assert asserted
    assert all(bool(holds) for holds, *_ in asserted)


def test_on_a_device_what_is_wrong_is_asserted_with_words(monkeypatch):
    asserted = []
    monkeypatch.setattr(torch, "_assert_async", lambda *given: asserted.append(given))
    arguments, right = (as_if_on_cuda(item) for item in RIGHT["sample_answers"])
    changed = as_if_on_cuda(right.flip(0))
    results.check("sample_answers", "sample_answers of plugin mine", changed, arguments)
    ((holds, *words),) = asserted
    assert not holds
    told = "sample_answers of plugin mine returned the prompts changed"
    assert words == [] or words[0].startswith(told)
    asserted.clear()
    arguments, right = (as_if_on_cuda(item) for item in RIGHT["pool_reward"])
    overflown = as_if_on_cuda((right * float("nan")).requires_grad_())
    results.check("pool_reward", "it", overflown, arguments)
    assert asserted == []  # a GradScaler lets a forward pass overflow


def test_a_message_says_what_came_and_what_was_expected(newest, mine):
    mine.wrong = {"shape_reward": lambda it: it[:1].long()}
    told = (
        r"^shape_reward of plugin mine \(.*mine\.py, line \d+\) returned a tensor of shape "
        r"\(1, 4\), int64, on cpu: expected \(B, A\) = \(3, 4\), floating point, on cpu$"
    )
    with pytest.raises(PluginError, match=told):
        rollout_of(tiny_models(), tiny_tokenizer(padding_side="left"))


# --- what a choice raises ------------------------------------------------------------------------


class _ControlFlow(Exception):
    pass


def raising(error):
    def fail(it):
        raise error

    return fail


def test_what_a_choice_raises_names_it(newest, mine):
    model, given = tiny_reward_model(), batch()
    mine.wrong = {"pool_reward": raising(KeyError("weight"))}
    told = r"^pool_reward of plugin mine \(.*mine\.py, line \d+\) failed: KeyError: 'weight'$"
    with pytest.raises(PluginError, match=told) as caught:
        model(*given)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("changed", ["prompts", "frame", "log_ratio", "hidden"])
def test_a_choice_that_changes_its_arguments_is_named(newest, changed):
    code = {
        "prompts": "def sample_answers(input_ids):\n    input_ids[:, :1] = 7\n"
        "    return torch.cat([input_ids, input_ids], dim=1)",
        "frame": "def score_rows(frame):\n    frame.action_mask[:] = True\n"
        "    return frame.sequences[:, 0].float()",
        "log_ratio": "def shape_reward(log_ratio):\n    return log_ratio.mul_(0)",
        "hidden": "def pool_reward(hidden):\n    return hidden.mul_(2)[:, -1]",
    }[changed]
    Path("changes.py").write_text(
        f"import torch\nfrom coati_ext import hookimpl\n@hookimpl\n{code}\n"
    )
    told = r"plugin changes \(.*changes\.py, line 3\) has changed an argument in place"
    with coati_ext.applied({"plugins": ["./changes.py"]}), pytest.raises(PluginError, match=told):
        rollout_of(tiny_models(), tiny_tokenizer(padding_side="left"))


def test_what_others_wait_for_keeps_its_type(newest, mine):
    model, given = tiny_reward_model(), batch()
    lacking = torch.cuda.OutOfMemoryError("CUDA out of memory")
    for error in (lacking, MemoryError(), _ControlFlow(), StampError("ours"), KeyboardInterrupt()):
        mine.wrong = {"pool_reward": raising(error)}
        with pytest.raises(type(error)) as caught:
            model(*given)
        assert caught.value is error


@pytest.mark.skipif(torch.__version__ < "2", reason="torch.compile came with torch 2")
def test_a_plugins_pooling_compiles_without_a_graph_break(newest, mine):
    model, (ids, mask) = tiny_reward_model("llama"), batch()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert compiled(ids, mask).sub(model(ids, mask)).abs().max() < 1e-6


def test_every_choice_has_a_contract():
    assert sorted(results._CONTRACTS) == sorted(RIGHT) == sorted(WRONG) == CHOICES
