"""The candidates of a device: made, judged, varied, and the best one chosen; a search that was killed is resumed."""
