"""A plugin in one file: score the mean of the last four real tokens instead of the last one.

    COATI_EXT=1 COATI_EXT_SET=plugins=./last_tokens.py python train_rm.py ...

or `plugins = ["./last_tokens.py"]` in coati-ext.toml.
"""

from coati_ext import hookimpl


@hookimpl
def pool_reward(hidden, attention_mask):
    last = hidden[:, -4:]  # rows are left-padded: their ends are aligned
    real = attention_mask[:, -4:].unsqueeze(-1).to(hidden.dtype)
    return (last * real).sum(dim=1) / real.sum(dim=1)
