"""``launch_distributed`` of both packages, which starts all actors."""

from __future__ import annotations

from inspect import signature
from typing import Any, Callable, Iterator, Mapping

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
    if "n_behind" in call.arguments:  # the package that counts the updates of an episode
        reasons += _reasons_of_episodes(call.arguments)
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
    yield from _reasons_of_the_model(given["train_model_config"]["path"], given["plugin_config"])
    for name in ("inference_model_config", "train_model_config"):
        if given[name].get("checkpoint_path") is not None:
            yield (
                f"{name}['checkpoint_path']: after a resume the producers end the episode before "
                "the consumers, which wait for ever: start from the saved weights as a new run"
            )


def _reasons_of_the_model(path: str, plugin: Mapping[str, Any]) -> Iterator[str]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError):
        return  # the actors will say why
    split = [name for name in ("tp_size", "pp_size") if plugin.get(name, 1) > 1]
    if split and config.model_type == "gpt2":
        yield (
            f"{' and '.join(split)} with GPT-2: ColossalAI's forward of a part of it fails without "
            "labels, in a pipeline on the last stage, for which the others wait: expected 1"
        )
    multiple = plugin.get("make_vocab_size_divisible_by", 64)
    if plugin.get("tp_size", 1) == 1 and config.vocab_size % multiple:
        yield (
            f"a vocabulary of {config.vocab_size} with tp_size = 1: ColossalAI pads it to a "
            f"multiple of {multiple}, and then fails to give the producers its weights: expected "
            "plugin_config['make_vocab_size_divisible_by'] = 1"
        )


def _reasons_of_episodes(given: Mapping[str, Any]) -> Iterator[str]:
    path = given["train_dataset_config"]["path"]
    with open(path, encoding="utf-8") as file:
        prompts = sum(bool(line.strip()) for line in file)
    update = given["inference_batch_size"] * given["num_producers"]
    updates = prompts // update
    told = f"{path} has {prompts} prompts, and an update takes {update}"
    saves = "upstream divides by the number of the step when it saves, which is 0 for the first"
    if updates == 0:
        yield f"{told}: there is no update, and the schedule of the learning rate divides by 0"
    elif updates <= given["n_behind"]:
        yield f"n_behind = {given['n_behind']}, {told}: in {updates} updates nothing is trained"
    if updates == 1:
        yield f"{told}, so that each episode is saved after one: {saves}: expected {2 * update}"
    if given["save_interval"] == 1:
        yield f"save_interval = 1: {saves}: expected 2 or more"
