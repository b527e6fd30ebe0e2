"""What tests of several areas share: no test, and nothing that only one area needs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
