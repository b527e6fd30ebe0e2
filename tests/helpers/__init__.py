"""What tests of several areas share: no test, and nothing that only one area needs.

A test runs for each generation of coati, and each family of models, and on each stack of
``noxfile.py`` where that can make a difference. Where it can not, its marker ``enough`` or ``once``
says why; and where two matrices are independent, such as families and kinds of pads, every value of
each is there, but not every pair.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
