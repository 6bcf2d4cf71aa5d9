/* On which cores the model runs. */
#ifndef FLEETC_CORES_H
#define FLEETC_CORES_H

enum { MAX_CPUS = 1024 };

typedef struct {
  int threads;
  int num_cpus;
  int cpus[MAX_CPUS]; /* fastest first */
} Cores;

/* Keeps this process, and the threads it will start, on the device's fast cores, and sets how many threads TVM starts.
 *
 * The file at `path` has lines `threads N` and `fast_cores N`. Of the CPUs this process may use, the fast_cores fastest
 * are taken, by what the kernel says of their capacity, else of their highest clock; a second hardware thread of
 * a core comes after all cores. TVM_NUM_THREADS in the environment overrides the number of threads, up to that of the
 * cores. */
Cores use_fast_cores(const char *path);

#endif
