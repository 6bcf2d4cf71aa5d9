"""The build server: jobs, their workers, the page and the commands, on the compiler's public names alone.

One process is the server: the HTTP API, the table of jobs and the dispatcher. What builds is a child process on a
worker, one for each device class; Dask says which workers there are and carries the order to one of them.
"""
