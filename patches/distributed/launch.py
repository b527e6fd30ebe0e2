"""``launch_distributed`` of both packages, which starts all actors."""

from __future__ import annotations

from contextlib import suppress
from inspect import signature
from typing import Any, Callable, Iterator, Mapping, Optional

from coati_ext.errors import ConfigError

_NEEDED = ("project_name", "eval_save_dir", "eval_generation_config")
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
            "inference_backend = 'transformers': upstream's producer makes SamplingParams of vLLM "
            "from its settings, and its backend moves a list to a device: use 'vllm'"
        )
    for name in _NEEDED:
        if given[name] is None:
            yield f"{name} = None, which is the default: an actor uses it as if it were set"
    if given["num_generations"] < 2:
        yield (
            f"num_generations = {given['num_generations']}: a group of one answer has no "
            "deviation, and its advantage is nan: expected 2 or more"
        )
    if given["save_interval"] == 0:
        yield (
            "save_interval = 0: upstream divides the number of a step by it: expected more than "
            "there are steps where nothing is to be saved"
        )
    split = [name for name in ("tp_size", "pp_size") if given["plugin_config"].get(name, 1) > 1]
    if split and _family(given["train_model_config"]["path"]) == "gpt2":
        yield (
            f"{' and '.join(split)} with GPT-2: ColossalAI's forward of a part of it fails without "
            "labels, in a pipeline on the last stage, for which the others wait: expected 1"
        )
    for name in ("inference_model_config", "train_model_config"):
        if given[name].get("checkpoint_path") is not None:
            yield (
                f"{name}['checkpoint_path']: after a resume the producers end the episode before "
                "the consumers, which wait for ever: start from the saved weights as a new run"
            )


def _family(path: str) -> Optional[str]:
    """The family of a model, unless it cannot be told here; then the actors will say why."""
    from transformers import AutoConfig

    with suppress(OSError, ValueError):
        return str(AutoConfig.from_pretrained(path).model_type)
    return None


def _reasons_of_saving(given: Mapping[str, Any]) -> Iterator[str]:
    why = "upstream divides by the number of the step when it saves, which is 0 for the first"
    if given["save_interval"] == 1:
        yield f"save_interval = 1: {why}: expected 2 or more"
    path = given["train_dataset_config"]["path"]
    with open(path, encoding="utf-8") as file:
        prompts = sum(bool(line.strip()) for line in file)
    update = given["inference_batch_size"] * given["num_producers"]
    if prompts // update == 1:
        yield (
            f"{path} has {prompts} prompts, one update of {update} an episode, after which it is "
            f"saved: {why}: expected {2 * update} or more"
        )
