"""The commands that the build server adds to `fleetc`; what they need is imported when they run."""

from __future__ import annotations

from server.commands.jobs import cancel, fetch, job, jobs
from server.commands.machines import keys, workers
from server.commands.run import server, worker
from server.commands.submit import submit

__all__ = ["cancel", "fetch", "job", "jobs", "keys", "server", "submit", "worker", "workers"]
