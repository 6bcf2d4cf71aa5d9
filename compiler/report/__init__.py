"""The report people read, made from the manifests of a build alone."""
