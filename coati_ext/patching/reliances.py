"""Compare the functions that patches rely on with upstream's source. Nothing is changed.

A patch is right only with what runs around it: the loop that hands the pairs to its loss, the
sampler, the buffer. These functions stay as they are, so unknown code there does not stop a plan,
but is told; only where an edit could change what is learnt without a sign, it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from coati_ext.errors import CoatiNotFoundError
from coati_ext.patching.patch import Patch, Reliance
from coati_ext.patching.source import Coati, Function, OfFunction
from coati_ext.report import REFUSED

FITS = "fits"
CHANGED = "changed"


@dataclass(frozen=True)
class Reading(OfFunction):
    """What was found of one reliance."""

    patch: str
    reliance: Reliance
    state: str
    """``fits``, ``changed`` or ``refused``."""
    reason: str
    function: Optional[Function] = None


def read_reliances(patches: Sequence[Patch], coati: Coati, policy: str) -> Tuple[Reading, ...]:
    """What this coati has of the functions that some patches rely on."""
    return tuple(
        reading
        for patch in patches
        for reliance in patch.relies_in(coati.generation)
        for reading in _reading(patch.name, reliance, coati, policy)
    )


def _reading(patch: str, reliance: Reliance, coati: Coati, policy: str) -> List[Reading]:
    function = None
    try:
        function = coati.function(reliance.module, reliance.qualname)
        problem = f"{reliance.target} does not exist in the coati at {coati.root}"
    except CoatiNotFoundError as error:
        problem = str(error)
    else:
        if function is None and reliance.optional:
            return []
    if function is not None:
        for label, known in reliance.fits.items():
            if function.fingerprint == known:
                return [Reading(patch, reliance, FITS, f"fits {label}", function)]
        where = f"{function.file}, line {function.line}: {reliance.qualname}"
        problem = f"{where} {function.difference(reliance.fits)}"
    refused = reliance.refuse and policy == "strict"
    reason = f"{problem}. The patch leaves it as it is and relies on it: it {reliance.why}"
    return [Reading(patch, reliance, REFUSED if refused else CHANGED, reason, function)]
