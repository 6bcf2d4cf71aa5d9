"""Passes on the portable graph (fold, fuse, infer): one file each, lists in `pipelines.py`, the loop in `run.py`."""
