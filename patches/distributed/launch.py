"""``launch_distributed`` of both packages, which starts all actors."""

from __future__ import annotations

from inspect import signature
from typing import Any, Callable, Iterator, Mapping

from coati_ext.errors import ConfigError

_FROM_MEMORY = ("project_name", "eval_save_dir", "eval_generation_config")
"""Arguments whose default, ``None``, stops an actor."""


def launch(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Launch a run, unless it would die or wait for ever.

    Raises:
        ConfigError: it would; the message lists every reason.
    """
    call = signature(original).bind(*args, **kwargs)
    call.apply_defaults()
    reasons = list(_reasons(call.arguments))
    # Only the package that trains in episodes divides by the number of a step when it saves.
    if "n_behind" in call.arguments:
        reasons += _reasons_of_saving(call.arguments)
    if reasons:
        raise ConfigError("this run would not end well:\n" + "\n".join(f"  {it}" for it in reasons))
    original(*args, **kwargs)


def _reasons(given: Mapping[str, Any]) -> Iterator[str]:
    if given["inference_backend"] == "transformers":
        yield (
            "inference_backend = 'transformers': upstream's producer needs vLLM's SamplingParams, "
            "and its backend a max_length that it is not given: use 'vllm'"
        )
    for name in _FROM_MEMORY:
        if given[name] is None:
            yield f"{name} = None, which is the default: an actor uses it as if it were set"
    if given["num_generations"] < 2:
        yield (
            f"num_generations = {given['num_generations']}: a group of one answer has no "
            "deviation, and its advantage is nan: expected 2 or more"
        )
    for name in ("inference_model_config", "train_model_config"):
        if given[name].get("checkpoint_path") is not None:
            yield (
                f"{name}['checkpoint_path']: after a resume the producers end the episode before "
                "the consumers, which wait for ever: start from the saved weights as a new run"
            )


def _reasons_of_saving(given: Mapping[str, Any]) -> Iterator[str]:
    if given["save_interval"] == 1:
        yield (
            "save_interval = 1: upstream divides by the number of the step when it saves, which is "
            "0 for the first: expected 2 or more"
        )
