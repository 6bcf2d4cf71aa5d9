"""The targets fleetc ships: plugins found through the entry-point group `fleetc.targets`, like any third party's."""
