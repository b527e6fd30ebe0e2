"""The level of rewards over seeds of a reward model's training: raw, centred and calibrated.

    python benchmarks/reward_level.py                                    the four stand-ins
    python benchmarks/reward_level.py compare HEAD=FOLDER:PYTHON --out results
    python benchmarks/reward_level.py run level.json                     the coati importable here

Each seed makes a reward model of its own, which upstream's `RewardModelTrainer` trains on the same
preference pairs of a planted task. Then all score one fixed set of held-out answers: with the
patches off, on, on with a centring term in training, and on with the checkpoint calibrated by
`coati-ext calibrate` on reference answers that are in neither set.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

HERE = Path(__file__).resolve().parent
for _place in (HERE.parent, HERE):  # coati_ext of this checkout, installed or not; our peers
    if str(_place) not in sys.path:
        sys.path.insert(0, str(_place))

from each_coati import FailedError, Place, add_commands, places, run_elsewhere  # noqa: E402

import coati_ext  # noqa: E402
from coati_ext.demo.task import LENGTH  # noqa: E402
from coati_ext.demo.task import pairs as preference_pairs  # noqa: E402

SEEDS = (0, 1, 2)
PAIRS, EPOCHS, BATCH = 1200, 1, 16  # of the training
REFERENCE, FIXED = 1000, 1000  # pairs whose chosen answers are measured by; that all models score
CENTRES = (0.01, 0.1)
CALIBRATED = {"reward_scaling": {"enabled": True, "mode": "reference"}}

Level = Dict[str, float]


def measure(seed: int, pairs: int = PAIRS, epochs: int = EPOCHS) -> Dict[str, Level]:
    """What the coati that can be imported makes of one seed, in every state of the patches.

    Works in the current folder, where it leaves a checkpoint and what `calibrate` needs.

    Returns:
        By state: "mean" and "spread" of the rewards of the fixed set's chosen answers, "rejected",
        the mean of its rejected ones, and "accuracy", the share of pairs in the right order.
    """
    import torch

    from coati_ext.cli import main
    from coati_ext.testing import tiny_reward_model, tiny_tokenizer, train_reward_model

    draw = random.Random(100)  # the same data for all seeds
    training, reference, fixed = (preference_pairs(n, draw) for n in (pairs, REFERENCE, FIXED))
    tokenizer = tiny_tokenizer(pad="eos")  # as in upstream's scripts

    def new() -> Any:
        return tiny_reward_model("gpt2", seed=seed, vocab_size=len(tokenizer))

    def trained() -> Any:
        return train_reward_model(
            new(),
            training,
            tokenizer=tokenizer,
            epochs=epochs,
            batch_size=BATCH,
            max_length=LENGTH,
            seed=seed,
        )

    found = {"off": level(trained(), fixed, tokenizer)}
    for centre in CENTRES:
        settings = {"enabled": True, "mode": "off", "center": centre}
        with coati_ext.applied({"reward_scaling": settings}):
            found[f"center {centre:g}"] = level(trained(), fixed, tokenizer)
    with coati_ext.applied():
        model = trained()
        found["on"] = level(model, fixed, tokenizer)
        torch.save(model.state_dict(), "rm.pt")
    model.model.config.save_pretrained("pretrained")
    tokenizer.save_pretrained("pretrained")
    lines = (json.dumps(pair) + "\n" for pair in reference)
    Path("answers.jsonl").write_text("".join(lines))
    files = ["rm.pt", "--pretrained", "pretrained", "--data", "answers.jsonl"]
    with redirect_stdout(io.StringIO()):
        status = main(["calibrate", *files, "--max-length", str(LENGTH), "--device", "cpu"])
    if status:
        raise SystemExit(status)
    with coati_ext.applied(CALIBRATED):
        again = new()
        again.load_state_dict(torch.load("rm.pt"))
        found["calibrated"] = level(again, fixed, tokenizer)
    return found


def level(model: Any, pairs: Sequence[Mapping[str, str]], tokenizer: Any) -> Level:
    """Mean and spread of the rewards that a model gives to pairs, and how often it is right."""
    import torch

    from coati_ext.testing.padding import pad_rows

    rewards = {}
    with torch.no_grad():
        for answer in ("chosen", "rejected"):
            texts = [pair["prompt"] + pair[answer] + tokenizer.eos_token for pair in pairs]
            rows = [tokenizer(text)["input_ids"] for text in texts]
            ids, mask = pad_rows(
                rows, pad_token_id=tokenizer.pad_token_id, side="right", width=LENGTH
            )
            rewards[answer] = model.eval()(ids, attention_mask=mask).double()
    chosen, rejected = rewards["chosen"], rewards["rejected"]
    return {
        "mean": float(chosen.mean()),
        "spread": float(chosen.std(unbiased=False)),
        "rejected": float(rejected.mean()),
        "accuracy": float((chosen > rejected).double().mean()),
    }


def run(out: Path) -> None:
    """Measure each seed and write what was found as JSON."""
    import torch

    torch.set_num_threads(1)
    found = []
    target = out.resolve()
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            found.append(measure(seed))
            os.chdir(target.parent)
    target.write_text(json.dumps(found))


def compare(coatis: Sequence[Place], out: Path) -> None:
    """Run each coati in a process of its own; then write the table.

    Args:
        coatis: where they are.
        out: the folder for `reward_level.json` and `reward_level.md`.
    """
    from coati_ext.patching.source import generation_of

    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for at in coatis:
        print(f"{at.label} ...", flush=True)
        name = f"{generation_of(at.folder / 'coati')}: {at.label}"
        try:
            results[name] = run_elsewhere(__file__, at)
        except FailedError as error:
            raise SystemExit(f"{at.folder} failed:\n{error}") from None
        (out / "reward_level.json").write_text(json.dumps(results))
    lines = table(results)
    (out / "reward_level.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    print((out / "reward_level.md").read_text(), end="")


def table(results: Mapping[str, Sequence[Mapping[str, Level]]]) -> List[List[str]]:
    """The means of each coati and state over the seeds, and how far apart they are."""
    heads = ["coati", "state", "mean reward, each seed", "apart by", "spread", "pair accuracy"]
    lines = [heads, ["---"] * len(heads)]
    for name, seeds in results.items():
        for state in seeds[0]:
            means, spreads, right = (
                [found[state][what] for found in seeds] for what in ("mean", "spread", "accuracy")
            )
            lines.append(
                [
                    name,
                    state,
                    ", ".join(f"{mean:.3f}" for mean in means),
                    f"{max(means) - min(means):.3f}",
                    ", ".join(f"{spread:.2f}" for spread in spreads),
                    ", ".join(f"{share:.3f}" for share in right),
                ]
            )
    return lines


def main() -> None:
    """Take the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_commands(parser, one="measure", several="measure several coatis")
    given = parser.parse_args(sys.argv[1:] or ["compare"])
    if given.command == "run":
        run(given.out)
    else:
        compare(places(given.coatis), given.out)


if __name__ == "__main__":
    main()
