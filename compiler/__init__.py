"""fleetc: a hardware-aware model compiler with target plugins."""
