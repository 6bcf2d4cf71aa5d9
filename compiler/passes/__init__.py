"""Passes on the portable graph: one file per pass, the named lists in `pipelines.py`, the loop in `run.py`."""
