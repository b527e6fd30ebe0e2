"""``coati-ext show``: the layout of a batch, upstream's beside ours."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from coati_ext.cli.screen import console, telling, write
from coati_ext.cli.some_coati import importable, some_coati
from coati_ext.errors import ConfigError, InputError
from coati_ext.launch.installation import version_of
from coati_ext.patching.patch import GENERATIONS

Facts = Dict[str, Any]
PICTURES = (".png", ".svg")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="a file of records, or a batch captured from a job",
    )
    add(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="the Hugging Face tokenizer of FILE's texts",
    )
    add("--pad", type=int, metavar="ID", help="pad id of FILE, without --tokenizer (default: 0)")
    add("--eos", type=int, metavar="ID", help="EOS id of FILE, without --tokenizer (default: 2)")
    told = "max_length of coati (default: a little more than the rows need)"
    add("--max-length", type=int, metavar="COLUMNS", help=told)
    add(
        "--rows",
        type=int,
        default=4,
        metavar="N",
        help="how many rows of FILE to show (default: 4)",
    )
    add("--generation", choices=GENERATIONS, help="show a stand-in for this generation of coati")
    add("--out", type=Path, metavar="FILE", help="draw the first batch, as .png or .svg")


def facts(options: Namespace) -> Tuple[int, Facts]:
    """Lay out a batch with the patches off and on.

    Raises:
        ConfigError: a package is missing, or COATI_EXT is set, which would switch the patches.
        InputError: the file cannot be read, or the picture would be of another format.
    """
    for package in ("torch", "transformers"):
        if version_of(package) is None:
            raise ConfigError(f"show needs {package}: pip install 'coati-ext[demo]'")
    if os.environ.get("COATI_EXT"):
        raise ConfigError("show switches the patches itself: unset COATI_EXT")
    if options.out and options.out.suffix not in PICTURES:
        raise InputError(f"--out {options.out}: expected a name in {' or '.join(PICTURES)}")
    if options.out and version_of("matplotlib") is None:
        raise ConfigError("the picture needs matplotlib: pip install 'coati-ext[demo]'")
    coati = some_coati(options.generation)
    with importable(coati), telling() as tell:
        _quiet()
        batches = [
            {"kind": batch.kind, "states": _states(batch, options.max_length, tell)}
            for batch in _batches(options)
        ]
    found = {"coati": coati.words, "generation": coati.generation, "batches": batches}
    if options.out:
        from coati_ext.show.draw import draw

        draw(batches[0], options.out)
        found["picture"] = str(options.out)
    return 0, found


def _quiet() -> None:
    """Keep back what transformers says of the inputs that upstream's models are built with."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def _batches(options: Namespace) -> List[Any]:
    from coati_ext.show.batch import PAIRS, ROLLOUT, Vocabulary, example, read

    if options.file is None:
        return [example(kind, pad="eos") for kind in (ROLLOUT, PAIRS)]
    if options.tokenizer is None:
        given = {"pad": options.pad, "eos": options.eos}
        known = {name: it for name, it in given.items() if it is not None}
        return [read(options.file, Vocabulary(**known), options.rows)]
    return [read(options.file, Vocabulary.of(_tokenizer(options.tokenizer)), options.rows)]


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():  # or transformers would ask the hub for one of that name
        raise InputError(f"no tokenizer at {folder}: there is no such folder")
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"no tokenizer at {folder}: {str(error).splitlines()[0]}") from None


def _states(batch: Any, max_length: Any, tell: Callable[[str], None]) -> List[Facts]:
    from coati_ext.show.layout import layout
    from coati_ext.switch import applied

    # Saving tokens would feed the models rows without pads, of which there is nothing to see.
    patches = {"token_saving": {"enabled": False}}
    tell(f"{batch.kind}, patches off")
    before = {"title": "upstream (patches off)", **_tried(batch, max_length)}
    tell(f"{batch.kind}, patches on")
    with applied(patches):
        return [before, {"title": "patches on", **layout(batch, max_length)}]


def _tried(batch: Any, max_length: Any) -> Facts:
    """Upstream's layout, or the error that it ends in."""
    from coati_ext.show.layout import layout

    try:
        return layout(batch, max_length)
    except Exception as error:  # upstream's own, of any kind
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"grids": [], "findings": [f"upstream fails: {reason}"]}


def view(found: Facts) -> None:
    """Print :func:`facts`."""
    from coati_ext.show.text import LEGEND, lines

    screen = console()
    width = screen.width if screen.is_terminal else None
    write(f"{found['coati']}, generation {found['generation']}.", *LEGEND)
    for batch in found["batches"]:
        what = "a rollout" if batch["kind"] == "rollout" else "a batch of reward-model training"
        for state in batch["states"]:
            write("", f"{what}, {state['title']}")
            for grid in state["grids"]:
                write(*lines(grid, width))
            write(*(f"- {text}" for text in state["findings"]))
    if "picture" in found:
        write("", f"picture: {found['picture']}")
