"""The boards fleetc knows: one YAML file each, and the JSON schema they obey."""
