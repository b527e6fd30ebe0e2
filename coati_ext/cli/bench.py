"""``coati-ext bench``: what computing real tokens only is worth, measured here.

Upstream, each level of ``token_saving`` and the floor run by turns in one process.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from coati_ext.cli.screen import table, telling, write
from coati_ext.cli.some_coati import importable, some_coati
from coati_ext.errors import ConfigError, UnknownNameError, nearest
from coati_ext.launch.installation import version_of

Facts = Dict[str, Any]
STAGES = ("rm", "scoring", "ppo", "layer")
_DRAWN = 16  # batches of drawn pairs whose tokens are counted


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--model", type=Path, metavar="PATH", help="a Hugging Face folder or configuration file")
    add("--data", type=Path, metavar="FILE", help="preference pairs or their lengths, JSONL")
    add(
        "--stage",
        action="append",
        choices=STAGES,
        help="what to measure (repeatable; default: all)",
    )
    add("--levels", help="of token_saving, separated by commas (default: all)")
    add("--rounds", type=_positive, default=3, help="measurements of each (default: 3)")
    add("--batch", type=_positive, default=8, help="pairs, or rows of PPO (default: 8)")
    add("--length", type=_positive, default=512, help="columns upstream pads to (default: 512)")
    add("--scale", type=float, default=1.0, help="multiplies the drawn lengths (default: 1)")
    add("--device", choices=("cpu", "cuda"), help="where to run (default: cuda where there is one)")
    add(
        "--longest",
        action="store_true",
        help="also find the longest row that fits into upstream's memory",
    )
    add("--out", type=Path, metavar="FOLDER", help="write bench.json and bench.png there")


def facts(options: Namespace) -> Tuple[int, Facts]:
    """Count the tokens, then measure the stages.

    Raises:
        ConfigError: torch, transformers or (for ``--out``) matplotlib is missing; or COATI_EXT is
            set, which would switch the patches of this process.
        InputError: the model or the data cannot be read.
        UnknownNameError: there is no such level.
    """
    for package in ("torch", "transformers"):
        if version_of(package) is None:
            raise ConfigError(f"bench needs {package}: pip install 'coati-ext[bench]'")
    if options.out and version_of("matplotlib") is None:
        raise ConfigError("the picture needs matplotlib: pip install 'coati-ext[bench]'")
    if os.environ.get("COATI_EXT"):
        raise ConfigError("bench switches the patches itself: unset COATI_EXT")
    coati = some_coati()
    with importable(coati), telling() as tell:
        words = f"{coati.words}, generation {coati.generation}"
        found = {"coati": words, **_measured(options, tell)}
    if options.out:
        _written(found, options.out)
    return 0, found


def _measured(options: Namespace, tell: Callable[[str], None]) -> Facts:
    # The profiler, which counts memory, writes lines of its own to standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from coati_ext.bench import facts as bench
    from coati_ext.bench import layer
    from coati_ext.bench.lengths import drawn, read
    from coati_ext.bench.measure import one_thread
    from coati_ext.bench.scenes import SCENES, fitted
    from coati_ext.bench.source import Source, place

    names = _chosen(options.levels, bench.levels())
    stages = options.stage or list(STAGES)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with one_thread(), place(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source = Source(options.model, device)
        if options.data:
            pairs = read(options.data, source.tokenizer, source.words)
        else:
            wanted = options.batch * _DRAWN
            pairs = drawn(wanted, options.length, source.words, options.scale)
        if len(pairs) < options.batch:
            raise ConfigError(f"{len(pairs)} pairs are less than a batch of {options.batch}")
        found: Facts = {
            "versions": {name: version_of(name) for name in ("torch", "transformers")},
            "device": str(device),
            "model": source.facts,
            "data": str(options.data or "drawn"),
            **{name: getattr(options, name) for name in ("batch", "length", "scale", "rounds")},
            "levels": names,
            "tokens": {},
            "stages": {},
        }
        for name in [name for name in SCENES if name in stages]:
            found["tokens"][name] = bench.tokens(name, pairs, options.batch, options.length)
            _say(f"{name}: {_saved(found['tokens'][name])}")
        for name in found["tokens"]:
            some = fitted(name, pairs[: options.batch], options.length)
            scene = SCENES[name](source, some, options.length)
            done = _named(tell, name)
            found["stages"][name] = bench.stage(scene, names, options.rounds, device, done)
            del scene
        if "layer" in stages:
            done = _named(tell, "layer")
            found["layer"] = {
                "asking": layer.asking(),
                "forwards": layer.forwards(source),
                "unpadded": layer.unpadded(
                    source, options.batch, options.length, names, options.rounds, done
                ),
            }
        if options.longest:
            found["longest"] = {
                name: bench.longest(
                    name,
                    source,
                    pairs[: options.batch],
                    options.length,
                    "auto" if "auto" in names else names[-1],
                    _named(tell, f"{name}, longest row"),
                )
                for name in ("rm", "ppo")
                if name in stages
            }
    return found


def _written(found: Facts, folder: Path) -> None:
    from coati_ext.bench.draw import draw

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=2)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")
    if found["stages"]:
        draw(found, folder / "bench.png")


def view(found: Facts) -> None:
    """Print :func:`facts`."""
    model = found["model"]
    write(
        f"{found['coati']}; {model['family']} of {model['layers']} layers, hidden size "
        f"{model['hidden_size']}, vocabulary {model['vocabulary']}, {model['dtype']}, weights "
        f"{model['weights']}; on {found['device']}, batch {found['batch']}, length "
        f"{found['length']}, {found['rounds']} rounds."
    )
    for name, stage in found["stages"].items():
        floors = [it for it in stage["variants"] if it.startswith("floor")]
        rows = [
            [
                *(variant, str(row["computed"]), _span(row["speedup"])),
                *(f"{row['of_floor'][it][0]:.0%}" for it in floors),
                *(f"{row['peak'] / 1e6:.1f}", f"1/{row['memory']:.1f}"),
                ", ".join(f"{what} {gap:.1g}" for what, gap in row["errors"].items()),
            ]
            for variant, row in stage["variants"].items()
        ]
        heads = [name, "tokens", "speed-up", *(f"of {it}" for it in floors)]
        write("", table([*heads, "peak MB", "memory", "against rows alone"], rows))
    if "layer" in found:
        times = {
            "looking up its hooks": found["layer"]["asking"],
            **{f"without its backbone, {it}": us for it, us in found["layer"]["forwards"].items()},
        }
        rows = [[it, f"{us[0]:.2f} us [{us[1]:.2f}-{us[2]:.2f}]"] for it, us in times.items()]
        rows += [
            [f"nothing padded, {name}", _span(it)]
            for name, it in found["layer"]["unpadded"].items()
        ]
        write("", table(["layer", "a forward"], rows))
    for name, row in found.get("longest", {}).items():
        most = "at least " if row["at_least"] else ""
        write(
            f"{name}, longest row in {row['budget'] / 1e6:.0f} MB: {row['upstream']} upstream, "
            f"{row['longest']} {row['level']}: {most}{row['ratio']:.1f}x"
        )


def _named(tell: Callable[[str], None], stage: str) -> Callable[[str], None]:
    return lambda what: tell(f"{stage}: {what} done")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _saved(tokens: Facts) -> str:
    """What each level computes, in words."""
    padded = tokens["padded"]
    parts = [
        f"{tokens[key] / padded:.1%} {words}"
        for key, words in (("groups", "in groups"), ("real", "real"), ("unique", "unique"))
    ]
    return f"{padded} tokens in {tokens['batches']} batches, of which {', '.join(parts)}"


def _chosen(asked: Any, offered: List[str]) -> List[str]:
    names = [name.strip() for name in asked.split(",")] if asked else offered
    for name in names:
        if name not in offered:
            raise UnknownNameError(
                f"no level {name!r}, only {', '.join(offered)}{nearest(name, offered)}"
            )
    return names


def _span(values: List[float]) -> str:
    return f"{values[0]:.2f}x [{values[1]:.2f}-{values[2]:.2f}]"


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)
