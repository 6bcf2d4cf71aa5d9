"""The targets fleetc ships. Each is a plugin found through the entry-point group `fleetc.targets`, like any third party's."""
