"""Smaller models: quantized, pruned, and recovered after pruning."""
