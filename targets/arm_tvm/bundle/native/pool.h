/* Threads that kernels are spread over. */
#ifndef FLEETC_POOL_H
#define FLEETC_POOL_H

#include <stdint.h>

enum { MAX_THREADS = 256 };

/* As TVM's c_backend_api.h has them. */
typedef struct {
  void *sync_handle;
  int32_t num_task;
} Group;
typedef int (*Task)(int task, Group *group, void *data);

/* Takes the place of TVM's own threads in a model that is loaded: the library at `path` calls these from then on.
 *
 * TVM gives each thread a task and waits for all, by a system call for each look. Here a task is done by whoever is
 * there first: a thread that the kernel has put aside holds nobody up. Threads look for work for a moment, and then
 * sleep until there is some. They are started when they are first needed: a process that was forked has none. */
void use_pool(const char *path, int threads);

/* Does the tasks 0 to count - 1, where 0 is as many as there are threads, and fewer do where there are fewer: a task is
 * told how many there are. Other than 0 where one gives that. */
int launch_tasks(Task function, void *data, int count);

/* Threads that tasks may be spread over. */
int pool_threads(void);

#endif
