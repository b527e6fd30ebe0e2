"""The arguments of ``coati-ext migrate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """The arguments of ``coati-ext migrate``."""

    checkpoint: Path
    pretrained: str
    data: Path
    output: Path
    tokenizer: str
    """Empty for that of ``pretrained``."""
    max_length: int = 512
    batch_size: int = 8
    held_out: float = 0.1
    device: str = "auto"

    @property
    def part(self) -> Path:
        """The folder of intermediate results, from which an interrupted run resumes."""
        return self.output.with_name(f"{self.output.name}.part")
