"""Checkpoints: what one says of its model (``stamp``), re-fitting an old one (``migrate``)."""
