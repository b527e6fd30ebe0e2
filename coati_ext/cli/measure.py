"""The process in which ``coati-ext doctor --live`` measures defects, patches off or on.

``python -m coati_ext.cli.measure off|on`` prints them as JSON, and what plugins note of a tiny
reward model of each family. Off and on run in separate processes, so that neither can affect the
other.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from contextlib import suppress
from typing import Any, Dict, List

from coati_ext.active import announce
from coati_ext.cli.child import tell
from coati_ext.errors import NotMeasuredError
from coati_ext.patching.defect import NOT_MEASURED, Defect
from coati_ext.plan import make_plan
from coati_ext.switch import enable


def measure(defect: Defect) -> Dict[str, Any]:
    """Measure one defect with the patches as they are now."""
    module, name = defect.measure.split(":")
    value: Any
    try:
        value = float(getattr(importlib.import_module(module), name)())
        right = math.isfinite(value) and abs(value - defect.right) <= defect.tolerance
        verdict = "right" if right else "wrong"
    except NotMeasuredError as error:
        value, verdict = str(error), NOT_MEASURED
    except (Exception, SystemExit) as error:
        value, verdict = f"{type(error).__name__}: {error}".splitlines()[0], "wrong"
    return {
        "name": defect.name,
        "patch": defect.patch,
        "summary": defect.summary,
        "right": defect.right,
        "tolerance": defect.tolerance,
        "value": str(value) if isinstance(value, float) and not math.isfinite(value) else value,
        "verdict": verdict,
    }


def notes() -> List[str]:
    """What the report notes once a reward model of each family has scored a padded batch."""
    from coati_ext.testing import families, layouts, random_rows, tiny_reward_model

    _, ids, mask = next(layouts(random_rows((4, 9)), pad_token_id=0))
    models = []  # kept, since the report speaks of what there is
    for family in families():
        with suppress(Exception):  # a family that this coati does not take is none of ours
            models.append(tiny_reward_model(family))
            models[-1](ids, attention_mask=mask)
    found: List[str] = []
    announce("report_made", note=found.append)
    return list(dict.fromkeys(found))


def main(flag: str) -> int:
    """Measure and print all known defects of the generation of this coati."""
    from coati_ext.testing import cpu_only

    plan = make_plan()
    generation = plan.coati.generation if plan.coati else None
    defects = [item for item in plan.registry.defects if generation in item.generations]
    if flag == "on":
        enable()
        defects = [item for item in defects if plan.settings.enabled[item.patch].value]
    with cpu_only():
        measured = []
        for number, defect in enumerate(defects):
            tell(number, len(defects), defect.name)
            measured.append(measure(defect))
        found = json.dumps({"defects": measured, "notes": notes() if flag == "on" else []})
    print(f"\n{found}")  # a line of its own, whatever a plugin has printed
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
