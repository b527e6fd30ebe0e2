"""Checkpoints: how models were trained (``stamp``), re-fitted (``migrate``) and calibrated."""
