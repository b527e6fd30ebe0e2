"""Do the actors of a Ray cluster use the patches? Ask them.

    python run.py [--coati FOLDER]

An actor of a job that was started plainly scores some rows, then one of a job that was given
`coati_ext.launch.ray_runtime_env()`. Each says in which process it runs and whose code has scored.
A script that you do not want to change is started by `coati-ext run -- python train_on_ray.py`,
which gives the same to its `ray.init()`.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import ray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _common import LOOKS, coati_of, moved

from coati_ext.cli.screen import table, write
from coati_ext.demo.draw import bare
from coati_ext.launch import ray_runtime_env


@ray.remote(num_cpus=0)
class Scorer:
    """An actor as a training job has them: it contains no code for patches."""

    def look(self):
        from _common import scores_by_layout

        import coati_ext
        from coati_ext.testing import tiny_reward_model

        scores = scores_by_layout(tiny_reward_model("gpt2"))
        from coati.models import RewardModel

        return {
            "process": os.getpid(),
            "code": RewardModel.forward.__module__,
            "patched functions": sum(it.state == "applied" for it in coati_ext.status().patches),
            "scores": scores,
        }


def ask(runtime_env):
    """What an actor says of itself, in a job on a cluster of this machine."""
    ray.init(
        num_cpus=1,
        object_store_memory=10**8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env=runtime_env,
    )
    try:
        return ray.get(Scorer.remote().look.remote(), timeout=300)
    finally:
        ray.shutdown()


def draw(found, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for state, (name, actor) in zip(LOOKS, found.items()):
        look = {"color": LOOKS[state]["color"], "marker": LOOKS[state]["marker"], "s": 30}
        for layout, padded in actor["scores"].items():
            label = name if layout == "alone" else None  # one for all of its layouts
            axis.scatter(actor["scores"]["alone"], padded, **look, label=label)
    axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
    axis.set_title("scores of six rows, from within two actors", loc="left")
    axis.set_xlabel("score of the row alone")
    axis.set_ylabel("score of the row with pads")
    axis.legend(frameon=False)
    bare(axis)
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--coati", metavar="FOLDER", help="holds coati/; or G1 to G4: a stand-in for one")
    add("--picture", default="picture.png", metavar="FILE", help="to draw")
    add("--json", action="store_true", help="print all that the actors said")
    given = parser.parse_args()
    coati = coati_of(given.coati)
    os.environ.pop("COATI_EXT", None)  # a cluster that knows nothing of the flag
    # Where the workers of this cluster find what is not installed.
    mine = {"env_vars": {"PYTHONPATH": os.pathsep.join([coati.folder, *filter(None, sys.path)])}}
    found = {"plain": ask(mine), "with ray_runtime_env()": ask(ray_runtime_env(mine))}
    if given.json:
        print(json.dumps({"driver": os.getpid(), "found": found}))
    else:
        write(f"{coati.words} ({coati.generation}); this is process {os.getpid()}.", "")
        rows = [
            [what, *(str(actor[what]) for actor in found.values())]
            for what in ("process", "code", "patched functions")
        ]
        moves = [f"{moved(actor['scores']):.2g}" for actor in found.values()]
        rows.append(["pads move a score by up to", *moves])
        write(table(["what the actor says", *found], rows))
    draw(found, given.picture)


if __name__ == "__main__":
    main()
