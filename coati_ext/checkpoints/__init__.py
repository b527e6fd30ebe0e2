"""Checkpoints: how a model was trained (``stamp``), and re-fitting old ones (``migrate``)."""
