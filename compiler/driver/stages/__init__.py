"""The stages of a build: one file for each, each kept in the store."""
