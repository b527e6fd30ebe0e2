"""What token_saving is worth: the tables of docs/performance.md, by ``coati-ext bench``.

    python benchmarks/token_saving.py measure HEAD=FOLDER:PYTHON v0.3.6=FOLDER:PYTHON --out results
    python benchmarks/token_saving.py measure HEAD=FOLDER --only layer --out results
    python benchmarks/token_saving.py write results          the tables, into docs/performance.md

FOLDER holds a ``coati/``; PYTHON is an interpreter that can import it, this one by default. Each
case is a process of its own, and leaves LABEL-CASE.json in the folder of ``--out``.

Letters: B pairs of a batch, L columns to which upstream pads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence, Tuple

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from each_coati import NAMED, ROOT, place  # noqa: E402

DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ROUNDS = 3
STAGES = {"rm": "RM step", "scoring": "scoring", "ppo": "PPO step"}


def scaled(batch: int, length: int, scale: float, *stages: str) -> List[str]:
    """The options of a batch of another size."""
    sizes = ["--batch", str(batch), "--length", str(length), "--scale", str(scale)]
    return [*sizes, "--levels", "auto", *(it for name in stages for it in ("--stage", name))]


CASES: Dict[str, List[str]] = {
    "goals": ["--stage", "rm", "--stage", "scoring", "--stage", "ppo"],
    "layer": ["--stage", "layer"],
    "longest": [*scaled(8, 512, 1, "rm", "ppo"), "--longest"],
    "B4": scaled(4, 512, 1, *STAGES),
    "B16": scaled(16, 512, 1, *STAGES),
    "B4-L256": scaled(4, 256, 1, *STAGES),
    "B4-L1024": scaled(4, 1024, 1, *STAGES),
    "B4-L2048": scaled(4, 2048, 1, "scoring"),
    "B4-half": scaled(4, 512, 0.5, *STAGES),
    "B4-double": scaled(4, 512, 2, *STAGES),
}


def measure(coatis: Sequence[str], only: Sequence[str], rounds: int, out: Path) -> None:
    """Run the cases for each coati."""
    out.mkdir(parents=True, exist_ok=True)
    for at in map(place, coatis):
        path = os.pathsep.join([str(ROOT), str(at.folder)])
        for case in only or CASES:
            command = [at.python, "-m", "coati_ext", "bench", "--json"]
            done = subprocess.run(
                [*command, "--rounds", str(rounds), *CASES[case]],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                cwd=str(out),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            (out / f"{at.label}-{case}.json").write_text(done.stdout, encoding="utf-8")


def write(results: Path) -> None:
    """Put the tables between the two marks of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{DOCUMENT} has no {BEGIN} and {END}")
    body = "\n\n".join(tables(results))
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


def tables(results: Path) -> Iterable[str]:
    """The tables of what :func:`measure` left, in Markdown."""
    found = {item.stem: json.loads(item.read_text()) for item in sorted(results.glob("*.json"))}
    for name, facts in cases(found, "goals"):
        for stage, measured in facts["stages"].items():
            yield of_levels(f"{name}, {STAGES[stage]}", facts, measured)
    sizes = [(name, facts) for name, facts in found.items() if "-B" in name]
    if sizes:
        yield of_sizes([*cases(found, "goals"), *sizes])
    for name, facts in cases(found, "layer"):
        yield of_layer(name, facts["layer"])
    rows = [
        [
            *(name, STAGES[stage], f"{it['budget'] / 1e6:.0f}"),
            *(str(it["upstream"]), str(it["longest"])),
            ("at least " if it["at_least"] else "") + f"{it['ratio']:.1f}x",
        ]
        for name, facts in cases(found, "longest")
        for stage, it in facts["longest"].items()
    ]
    if rows:
        heads = ["coati", "longest trainable row", "MB", "upstream", "`auto`", "ratio"]
        yield table(heads, rows)


def cases(found: Dict[str, Any], case: str) -> List[Tuple[str, Any]]:
    """The results of a case, by the labels of their coatis."""
    end = f"-{case}"
    return [(name[: -len(end)], facts) for name, facts in found.items() if name.endswith(end)]


def of_levels(title: str, facts: Any, measured: Any) -> str:
    """One stage: a row for upstream, each level and each floor."""
    variants, tokens = measured["variants"], measured["tokens"]
    floors = [name for name in variants if name.startswith("floor")]
    share = tokens["real"] / tokens["padded"]
    heads = [f"{title}; B {facts['batch']}, L {facts['length']}, {share:.1%} real", "time"]
    heads += [f"of the {name}" for name in floors] + ["peak MB", "memory", "off by, at most"]
    return table(
        heads,
        [
            [
                *(name, span(row["speedup"])),
                *(f"{row['of_floor'][floor][0]:.0%}" for floor in floors),
                *(f"{row['peak'] / 1e6:.1f}", f"1/{row['memory']:.1f}"),
                ", ".join(f"{what} {gap:.1g}" for what, gap in row["errors"].items()),
            ]
            for name, row in variants.items()
        ],
    )


def of_sizes(found: Sequence[Tuple[str, Any]]) -> str:
    """`auto` over batches of other sizes: a row for each batch and stage."""
    heads = ["coati", "stage", "B", "L", "real", "unique", "`auto`", "of the floor", "peak MB"]
    rows = []
    for name, facts in found:
        for stage, measured in facts["stages"].items():
            row, tokens = measured["variants"]["auto"], measured["tokens"]
            floor = list(row["of_floor"])[-1]  # the stricter one comes last
            rows.append(
                [
                    *(name.split("-")[0], STAGES[stage]),
                    *(str(facts["batch"]), str(facts["length"])),
                    *(f"{tokens[key] / tokens['padded']:.1%}" for key in ("real", "unique")),
                    *(span(row["speedup"]), f"{row['of_floor'][floor][0]:.0%}"),
                    f"{measured['variants']['upstream']['peak'] / 1e6:.0f} to "
                    f"{row['peak'] / 1e6:.1f}",
                ]
            )
    return table(heads, sorted(rows, key=lambda row: (row[0], row[1], int(row[3]), int(row[2]))))


def of_layer(name: str, facts: Any) -> str:
    """What is paid where there is nothing to save."""
    times = {"looking up the hooks": facts["asking"]}
    times.update({f"all but the backbone, {it}": us for it, us in facts["forwards"].items()})
    rows = [[it, f"{us[0]:.2f} us [{us[1]:.2f}-{us[2]:.2f}]"] for it, us in times.items()]
    rows += [[f"RM step without pads, `{it}`", span(row)] for it, row in facts["unpadded"].items()]
    return table([f"{name}, the layer itself", "a forward of a reward model"], rows)


def span(values: Sequence[float]) -> str:
    """Median, smallest and largest ratio."""
    return f"{values[0]:.2f}x [{values[1]:.2f}-{values[2]:.2f}]"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Take the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="run the cases")
    one.add_argument("coatis", nargs="+", metavar=NAMED)
    one.add_argument("--only", action="append", choices=CASES, help="may be repeated")
    one.add_argument("--rounds", type=int, default=ROUNDS)
    one.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    other = commands.add_parser("write", help="the tables, from what measure left")
    other.add_argument("results", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.command == "measure":
        measure(given.coatis, given.only or (), given.rounds, given.out)
    else:
        write(given.results)


if __name__ == "__main__":
    main()
