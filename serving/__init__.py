"""Delivered artifacts under load: one front for requests, one process for each build, and the ladder between them."""
