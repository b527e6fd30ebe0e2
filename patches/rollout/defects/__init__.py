"""Defects of rollouts and PPO steps that ``doctor --live`` measures with the installed coati."""

from __future__ import annotations

from coati_ext import Defect

_ALL, _WHOLE, _TOKENS = ("G1", "G2", "G3", "G4"), ("G1", "G2"), ("G3", "G4")

_ROWS = (
    (
        "reward in PPO",
        "largest difference of a score from that of the same row in training form, GPT-2",
        _ALL,
        "rows:measure_score",
    ),
    (
        "reward in PPO, pad == eos",
        "largest difference of a score from that of the same row in training form, BLOOM",
        ("G1", "G2", "G4"),  # in G3 a pad is attended instead of EOS: here the same token
        "rows:measure_score_where_eos_pads",
    ),
    (
        "masked tokens, pad == eos",
        "real tokens hidden from the models, of 23",
        _ALL,
        "rows:measure_masks_where_eos_pads",
    ),
    (
        "masked tokens, pad sampled",
        "real tokens hidden from the models, of 12",
        _ALL,
        "rows:measure_masks_where_pad_is_sampled",
    ),
    (
        "right-padded prompts",
        "share of greedy answers changed by padding their prompts on the right, BLOOM",
        _ALL,
        "rows:measure_right_padded_prompts",
    ),
    (
        "value knows answer",
        "difference of the first value between two answers to one prompt",
        _ALL,
        "values:measure_foresight",
    ),
    (
        "value in a batch",
        "largest change of a value by batch mates, GPT-2",
        _ALL,
        "values:measure_batch_mates",
    ),
    (
        "nothing to learn",
        "share of answers without advantage when the critic begins as the reward model",
        _WHOLE,
        "values:measure_lost_advantages",
    ),
    (
        "values at step 0",
        "largest change of a value from rollout to first training step, no update between",
        _TOKENS,
        "values:measure_old_values",
    ),
    (
        "old log-probs",
        "largest difference of a stored log-probability from the sampler's, nats, GPT-2",
        _ALL,
        "probabilities:measure_old_log_probs",
    ),
    (
        "ratio with dropout",
        "largest |policy ratio - 1| before the first update, OPT with dropout",
        _ALL,
        "probabilities:measure_dropout",
    ),
    (
        "KL penalty explodes",
        "nats a token by which the penalty of an unlikely answer exceeds 10",
        _WHOLE,
        "probabilities:measure_penalty",
    ),
    (
        "score per token",
        "times that the score of an answer of 7 tokens is counted too often",
        _TOKENS,
        "values:measure_return",
    ),
    (
        "negative KL",
        "lowest logged KL of an action if it is below zero, nats",
        _TOKENS,
        "probabilities:measure_logged_kl",
    ),
    (
        "repeated rollouts",
        "share of answers that the next rollout of the same prompts samples again",
        _TOKENS,
        "sampling:measure_repeats",
    ),
    (
        "no stop_token_ids",
        "answers lost, of 2, when stop_token_ids is None",
        _TOKENS,
        "sampling:measure_no_stops",
    ),
    (
        "no gt_answer",
        "answers lost, of 2, when gt_answer is left out",
        ("G4",),
        "sampling:measure_no_truth",
    ),
    (
        "pads trained, no room",
        "pads among the actions when max_new_tokens does not fit into max_length",
        _TOKENS,
        "sampling:measure_pads_without_room",
    ),
    (
        "pads trained, cut-off",
        "pads among the actions of answers cut off before max_length",
        ("G4",),
        "sampling:measure_pads_after_cut",
    ),
    (
        "rows of two widths",
        "rows lost, of 4, when two rollouts are batched for training",
        _ALL,
        "rows:measure_widths",
    ),
    (
        "lost experience",
        "share of its own experience that a rank does not train on, one of two ranks",
        _WHOLE,
        "rows:measure_lost_experience",
    ),
    (
        "inference tensors",
        "tensors of an Experience that no step can train on without a copy",
        ("G4",),
        "rows:measure_inference_tensors",
    ),
)

DEFECTS = (
    *(
        Defect(name, "rollout", summary, generations, f"{__name__}.{measure}")
        for name, summary, generations, measure in _ROWS
    ),
    Defect(
        "GRPO noise",
        "rollout",
        "largest advantage among answers of equal reward, kl_coef 0.01",
        ("G4",),
        f"{__name__}.values:measure_group_noise",
        tolerance=0.05,  # the size of the KL penalty itself
    ),
)
