"""A stamp, and the tokenizer of the rows that a model is trained on."""

from __future__ import annotations

from coati_ext.checkpoints.stamp import Stamp
from coati_ext.testing import tiny_tokenizer

TOKENIZER = tiny_tokenizer(padding_side="left")
FRAME = ("left", "from the mask")
SOME = Stamp("reward model", "eos", *FRAME, 2, "abc", "G2", "0.4.0", "123456")
