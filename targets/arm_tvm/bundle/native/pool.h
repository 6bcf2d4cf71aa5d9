/* Threads that kernels are spread over. */
#ifndef FLEETC_POOL_H
#define FLEETC_POOL_H

/* Takes the place of TVM's own threads in a model that is loaded: the library at `path` calls these from then on.
 *
 * TVM gives each thread a task and waits for all, by a system call for each look. Here a task is done by whoever is
 * there first: a thread that the kernel has put aside holds nobody up. Threads look for work for a moment, and then
 * sleep until there is some. They are started when they are first needed: a process that was forked has none. */
void use_pool(const char *path, int threads);

#endif
