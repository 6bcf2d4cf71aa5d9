"""The candidates of a device: made, judged, varied, and one of them chosen."""
