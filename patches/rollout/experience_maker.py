"""``make_experience`` of each generation, on top of the pipeline in ``coati_ext.rollout``.

Letters: B rows, A action columns, S sequence columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional

from coati_ext import announce, choice, options, tensors

from .sampler import end_tokens, stop_sequences

if TYPE_CHECKING:
    from torch import Tensor

    from coati_ext.rollout import Frame, Judgement, Request, Rollout


def make_experience_g1(self: Any, input_ids: Tensor, **generate_kwargs: Any) -> Any:
    """Experience for G1; the pad and EOS tokens come from the generation arguments."""
    return _bandit_experience(
        self,
        input_ids,
        generate_kwargs,
        generate_kwargs.get("pad_token_id"),
        generate_kwargs.get("eos_token_id"),
    )


def make_experience_g2(self: Any, input_ids: Tensor, **generate_kwargs: Any) -> Any:
    """Experience for G2; the pad and EOS tokens come from the maker's tokenizer."""
    tokenizer = self.tokenizer
    return _bandit_experience(
        self, input_ids, generate_kwargs, tokenizer.pad_token_id, tokenizer.eos_token_id
    )


def make_experience_g3(
    self: Any, input_ids: Tensor, attention_mask: Tensor, **generate_kwargs: Any
) -> Any:
    """Experience for G3: values, advantages and KL of each token."""
    import torch

    with torch.no_grad():
        rollout, judgement = _token_experience(
            self, _request(self, input_ids, attention_mask, generate_kwargs)
        )
        return _announced(self, _g3_fields(rollout, judgement), rollout, judgement)


def make_experience_g4(
    self: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    gt_answer: Any = None,
    **generate_kwargs: Any,
) -> Any:
    """Experience for G4, on the CPU: as in G3, or for GRPO with several answers per prompt."""
    import torch

    from coati_ext.rollout import roll_out

    if self.use_grpo:
        input_ids, attention_mask = (
            item.repeat_interleave(self.num_generation, dim=0)
            for item in (input_ids, attention_mask)
        )
        if gt_answer is not None:
            gt_answer = [item for item in gt_answer for _ in range(self.num_generation)]

    def extras(frame: Frame) -> Dict[str, Any]:
        rows, columns = frame.sequences.shape
        start = torch.tensor(columns - frame.num_actions)  # reward functions call item()
        return {
            "response_start": [start] * rows,
            "response_end": list((start + frame.action_mask.sum(dim=1)).unbind()),
            "gt_answer": [None] * rows if gt_answer is None else list(gt_answer),
        }

    request = _request(
        self,
        input_ids,
        attention_mask,
        generate_kwargs,
        sample_rows=self.inference_batch_size,
        forward_rows=self.logits_forward_batch_size,
    )
    with torch.no_grad():
        if self.use_grpo:
            rollout, judgement = roll_out(self, request, extras), None
            made = _grpo_fields(self, rollout, request)
        else:
            rollout, judgement = _token_experience(self, request, extras)
            made = _g3_fields(rollout, judgement)
        on_cpu = {name: item.cpu() for name, item in made.items()}
        return _announced(self, on_cpu, rollout, judgement)


def _bandit_experience(
    maker: Any, input_ids: Tensor, generate_kwargs: Dict[str, Any], pad: Any, eos: Any
) -> Any:
    """Experience for G1 and G2: per answer if ``rollout.advantage = sequence``, else per token."""
    import torch

    from coati_ext.rollout import Request, judge, roll_out

    mask = generate_kwargs.pop("attention_mask", None)
    if mask is None:
        mask = tensors.without_outer_pads(input_ids, pad)
    stops = tuple(map(tuple, end_tokens(eos)))
    with torch.no_grad():
        rollout = roll_out(maker, Request(input_ids, mask, stops, pad, generate_kwargs))
        judged = judge(maker, rollout, *_discounts(maker))
        whole = options("rollout").advantage == "sequence"
        made = {
            "values": judged.values[:, 0] if whole else judged.values,
            "reward": judged.rewards.sum(dim=1),
            "advantages": judged.advantages[:, :1] if whole else judged.advantages,
        }
        return _announced(maker, {**_common_fields(rollout), **made}, rollout, judged)


def _request(
    maker: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    generate_kwargs: Dict[str, Any],
    **at_once: Optional[int],
) -> Request:
    from coati_ext.rollout import Request

    tokenizer = maker.tokenizer
    ends = [
        *stop_sequences(generate_kwargs.get("stop_token_ids")),
        *end_tokens(tokenizer.eos_token_id),
    ]
    return Request(
        input_ids,
        attention_mask,
        tuple(map(tuple, ends)),
        tokenizer.pad_token_id,
        generate_kwargs,
        **at_once,
    )


def _token_experience(
    maker: Any, request: Request, extras: Optional[Callable[[Frame], Dict[str, Any]]] = None
) -> Any:
    from coati_ext.rollout import judge, roll_out

    rollout = roll_out(maker, request, extras)
    gamma, lam = _discounts(maker)
    return rollout, judge(maker, rollout, gamma, lam, request.sample_rows)


def _g3_fields(rollout: Rollout, judged: Judgement) -> Dict[str, Tensor]:
    return {
        **_common_fields(rollout),
        "values": judged.values,
        "reward": rollout.score,
        "kl": tensors.kl_estimate(rollout.log_ratio, "k3"),
        "advantages": judged.advantages,
    }


def _grpo_fields(maker: Any, rollout: Rollout, request: Request) -> Dict[str, Tensor]:
    from torch.nn.functional import pad

    actions = rollout.frame.action_mask.sum(dim=1).clamp(min=1)
    score = rollout.score - options("rollout").missing_eos_penalty * (~rollout.ended)
    kl = tensors.kl_estimate(rollout.log_ratio, options("rollout").kl or "k1").sum(dim=1) / actions
    penalised = score - maker.kl_coef * kl
    made = _common_fields(rollout)
    # GRPOTrainer treats an answer as ended if its last column is a pad.
    if rollout.frame.num_actions < rollout.new_tokens:
        fill = request.pad_token_id or 0
        made["sequences"] = pad(made["sequences"], (0, 1), value=fill)
        for name in ("action_log_probs", "attention_mask", "action_mask"):
            made[name] = pad(made[name], (0, 1))
    return {
        **made,
        "values": penalised,
        "reward": penalised,
        "kl": tensors.kl_estimate(rollout.log_ratio, "k3").sum(dim=1) / actions,
        "advantages": choice("compare_group")(score, kl, maker.num_generation, maker.kl_coef),
    }


def _common_fields(rollout: Rollout) -> Dict[str, Tensor]:
    return {
        "sequences": rollout.frame.sequences,
        "action_log_probs": rollout.log_probs,
        "attention_mask": rollout.frame.attention_mask.long(),
        "action_mask": rollout.frame.action_mask,
    }


def _discounts(maker: Any) -> Any:
    settings = options("rollout")
    gamma = getattr(maker, "gamma", 1.0) if settings.gamma is None else settings.gamma
    lam = getattr(maker, "lam", 0.95) if settings.lam is None else settings.lam
    return gamma, lam


def _announced(
    maker: Any, made: Mapping[str, Tensor], rollout: Rollout, judgement: Optional[Judgement]
) -> Any:
    from coati.experience_maker.base import Experience

    experience = Experience(**made)
    announce(
        "experience_made",
        experience=experience,
        maker=maker,
        rollout=rollout,
        judgement=judgement,
    )
    return experience
