"""Checkpoint in, HTTP out: ``python -m service --checkpoint runs/mine/best``."""
