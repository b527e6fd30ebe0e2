"""Upstream's example scripts, each as one would start it, on the tiny models of `lifts/hub.py`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

HUB_NAMES = {
    "gpt2": "gpt2",
    "opt": "facebook--opt-350m",
    "bloom": "bigscience--bloom-560m",
    "llama": "hf-internal-testing--llama-tokenizer",
}
END = {"gpt2": ("<|endoftext|>", 0), "opt": ("</s>", 2), "llama": ("</s>", 2)}
Option = Union[str, int, float, Path, Sequence[Union[str, Path]]]


@dataclass(frozen=True)
class Script:
    """One start of a script."""

    name: str
    file: Path
    arguments: Tuple[str, ...]
    ranks: int = 0
    """By torchrun; 0 is a plain Python."""
    folders: Tuple[Path, ...] = ()
    """That must exist."""


def scripts_of(coati: Path, hub: Path, here: Path) -> Iterator[Script]:
    """The scripts of a tree in order, that read and write in the folder ``here``.

    G1 and G2 have them in one folder, G3 and G4 in one for data and one for training.
    """
    if (coati / "examples" / "train_reward_model.py").exists():
        yield from _of_strategies(coati / "examples", hub, here)
    elif (coati / "examples" / "training_scripts").exists():
        yield from _of_plugins(coati, hub, here)


def _of_strategies(examples: Path, hub: Path, here: Path) -> Iterator[Script]:
    texts, prompts = here / "texts.json", here / "prompts.json"
    rows = [
        {
            "instruction": f"Which of {number} is best?",
            "input": "",
            "output": "the first",
            "id": number,
        }
        for number in range(16)
    ]
    texts.write_text(json.dumps(rows))
    yield _script(
        examples / "generate_prompt_dataset.py",
        dataset_path=texts,
        save_path=prompts,
        sample_size=8,
    )
    for family, strategy, ranks in (
        ("gpt2", "ddp", 2),
        ("opt", "colossalai_zero2", 1),
        ("bloom", "colossalai_gemini", 1),
        ("llama", "ddp", 1),
    ):
        model, reward_model = hub / HUB_NAMES[family], here / f"rm-{family}.pt"
        common: Dict[str, Option] = {"model": family, "strategy": strategy, "tokenizer": model}
        # On several ranks this script lets all of them write one file at once.
        yield _script(
            examples / "train_reward_model.py",
            1,
            **common,
            pretrain=model,
            dataset="Anthropic/hh-rlhf",
            max_datasets_size=8,
            batch_size=2,
            max_len=96,
            save_path=reward_model,
        )
        yield _script(
            examples / "train_prompts.py",
            ranks,
            **common,
            pretrain=model,
            rm_pretrain=model,
            rm_path=reward_model,
            prompt_dataset=prompts,
            pretrain_dataset=texts,
            num_episodes=1,
            num_collect_steps=2,
            num_update_steps=1,
            experience_batch_size=2,
            train_batch_size=2,
            max_input_len=48,
            max_seq_len=64,
            save_path=here / f"actor-{family}",
        )


def _of_plugins(coati: Path, hub: Path, here: Path) -> Iterator[Script]:
    kinds = ["sft", "prompt", "preference"]
    kinds += ["kto"] if (coati / "examples" / "training_scripts" / "train_kto.py").exists() else []
    for kind in kinds:
        folder = here / "raw" / kind
        if kind == "kto":  # its loss wants as many good answers as bad ones in each part
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "1.jsonl").write_text("".join(json.dumps(it) + "\n" for it in _kto_rows()))
            continue
        yield _script(
            coati / "tests" / "generate_dummy_datasets_for_testing.py",
            name=kind,
            folders=(folder,),
            data_dir=folder,
            data_type=kind,
        )
    for family, plugin, ranks in (("gpt2", "gemini", 2), ("llama", "zero2", 1), ("opt", "ddp", 1)):
        yield from _prepared(coati, hub, here, family, kinds)
        yield from _trained(coati, hub, here, family, plugin, ranks)


def _kto_rows() -> Iterator[Dict[str, Any]]:
    for number in range(16):
        yield {
            "prompt": [{"from": "user", "content": f"Which of {number} is best?"}],
            "completion": {"from": "assistant", "content": "The first."},
            "label": number % 2 == 0,
        }


def _prepared(
    coati: Path, hub: Path, here: Path, family: str, kinds: List[str]
) -> Iterator[Script]:
    end, number = END[family]
    template = {
        "chat_template": "{% for message in messages %}{{ message['role'] + ': ' + "
        f"message['content'].strip() + '{end}' }}}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        "system_message": "Be brief.",
        "stop_ids": [number],
        "end_of_assistant": end,
    }
    (here / f"{family}.json").write_text(json.dumps(template))
    for kind in kinds:
        out = here / family / kind
        yield _script(
            coati / "examples" / "data_preparation_scripts" / "prepare_dataset.py",
            name=f"{kind} {family}",
            folders=(out,),
            type=kind,
            data_input_dirs=here / "raw" / kind,
            tokenizer_dir=hub / HUB_NAMES[family],
            conversation_template_config=here / f"{family}.json",
            data_cache_dir=out / "cache",
            data_jsonl_output_dir=out / "jsonl",
            data_arrow_output_dir=out / "arrow",
            num_spliced_dataset_bins=2,
            num_samples_per_datafile=8,
            max_length=640,
        )


def _trained(
    coati: Path, hub: Path, here: Path, family: str, plugin: str, ranks: int
) -> Iterator[Script]:
    data = {
        kind: [here / family / kind / "arrow" / "part-00000"]
        for kind in ("sft", "prompt", "preference", "kto")
    }
    model = hub / HUB_NAMES[family]
    given: Dict[str, Option] = {
        "plugin": plugin,
        "pretrain": model,
        "tokenizer_dir": model,
        "mixed_precision": "bf16",
        "max_epochs": 1,
        "batch_size": 2,
        "accumulation_steps": 1,
        "max_length": 640,
        "max_len": 640,
    }
    ppo: Dict[str, Option] = {
        "prompt_dataset": data["prompt"],
        "conversation_template_config": here / f"{family}.json",
        "num_episodes": 1,
        "num_collect_steps": 1,
        "num_update_steps": 1,
        "experience_batch_size": 2,
        "train_batch_size": 2,
        "max_seq_len": 16,
    }
    reward_model = here / family / "rm"
    uses: Dict[str, Dict[str, Option]] = {
        "rm": {"dataset": data["preference"], "save_dir": reward_model},
        "ppo": {**ppo, "rm_pretrain": model, "rm_checkpoint_path": reward_model / "modeling"},
    }
    if family == "gpt2":
        uses["sft"] = {"dataset": data["sft"]}
        uses["dpo"] = uses["orpo"] = {"dataset": data["preference"]}
        uses["kto"] = {"dataset": data["kto"]}
        uses["grpo"] = {
            **ppo,
            "rm_pretrain": model,
            "rm_checkpoint_path": reward_model / "modeling",
            "num_generations": 2,
        }
    for use, options in uses.items():
        out = here / family / use
        folders: Dict[str, Option] = {
            "save_dir": out,
            "save_path": out,
            "log_dir": out / "logs",
            "config_file": out / "config" / "config.json",
        }
        file = coati / "examples" / "training_scripts" / f"train_{use}.py"
        if file.exists() and plugin in _plugins(file):
            yield _script(
                file,
                ranks,
                name=f"{family} {plugin}",
                folders=(out / "logs",),
                **{**given, **folders, **options},
            )


def _plugins(file: Path) -> str:
    """What the script says of the plugins that it takes."""
    found = re.search(r'"--plugin",.*?choices=\[(.*?)\]', file.read_text("utf-8"), re.DOTALL)
    return found.group(1) if found else ""


def _script(
    file: Path,
    ranks: int = 0,
    *,
    name: str = "",
    folders: Tuple[Path, ...] = (),
    **options: Option,
) -> Script:
    """A start with those of the options that the script has."""
    text = file.read_text(encoding="utf-8")
    arguments: List[str] = []
    for option, value in options.items():
        if f'--{option}"' in text or f"--{option}'" in text:
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{option}", *map(str, values)]
    told = name or " ".join(str(options[it]) for it in ("model", "strategy") if it in options)
    where = "/".join(file.parts[-3:] if file.parts[-2].endswith("scripts") else file.parts[-2:])
    return Script(f"{where} {told}".strip(), file, tuple(arguments), ranks, folders)
