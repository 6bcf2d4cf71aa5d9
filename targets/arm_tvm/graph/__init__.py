"""The model's graph on its way to object files: what is taken of it, and which kernel computes which part."""
