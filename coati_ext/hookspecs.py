"""The hooks, one function each. An implementation takes any subset of the arguments, by name.

Three kinds: *registration* hooks hand something over to ``register``; *choices* compute numbers
and exactly one implementation is picked, by name, when the plan is made; *observers* are all
called. Letters: B rows, S sequence columns, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Optional

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from torch import Tensor

    from coati_ext.report import Row

hookspec = HookspecMarker("coati_ext")
hookimpl = HookimplMarker("coati_ext")


@hookspec
def register_patches(register: Callable[[Any], None]) -> None:
    """Call ``register(patch)`` with each ``coati_ext.Patch`` that the plugin brings"""


@hookspec
def register_options(register: Callable[[str, type], None]) -> None:
    """Call ``register(section, options_class)`` for each configuration section of the plugin"""


@hookspec
def register_defects(register: Callable[[Any], None]) -> None:
    """Call ``register(defect)`` with each ``coati_ext.Defect`` that ``doctor --live`` measures"""


@hookspec(firstresult=True)
def pool_reward(
    hidden: Tensor, attention_mask: Tensor, positions: Tensor, model: Any
) -> Optional[Tensor]:
    """Return what the value head scores, (B, H), from hidden (B, S, H) of left-padded rows

    ``attention_mask`` (B, S) is true for real tokens, ``positions`` (B,) is the column of each
    row's last real token, ``model`` is the reward model.
    """


@hookspec
def patch_applied(row: Row) -> None:
    """See a patch's target that has just been changed"""
