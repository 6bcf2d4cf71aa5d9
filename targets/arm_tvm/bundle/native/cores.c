#include "cores.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor.h"

#ifndef CPU_FACTS
#define CPU_FACTS "/sys/devices/system/cpu"
#endif

typedef struct {
  int cpu;
  long speed;
  int is_second_thread;
} Candidate;

/* The first number in a file about a CPU, or -1. */
static long read_fact(int cpu, const char *name) {
  char path[512];
  long value = -1;
  snprintf(path, sizeof path, CPU_FACTS "/cpu%d/%s", cpu, name);
  FILE *file = fopen(path, "r");
  if (!file) return -1;
  if (fscanf(file, "%ld", &value) != 1) value = -1;
  fclose(file);
  return value;
}

static Candidate describe(int cpu) {
  long capacity = read_fact(cpu, "cpu_capacity"), first = read_fact(cpu, "topology/thread_siblings_list");
  long speed = capacity >= 0 ? capacity : read_fact(cpu, "cpufreq/cpuinfo_max_freq");
  return (Candidate){cpu, speed, first >= 0 && first != cpu};
}

static int by_speed(const void *left, const void *right) {
  const Candidate *a = left, *b = right;
  if (a->is_second_thread != b->is_second_thread) return a->is_second_thread - b->is_second_thread;
  if (a->speed != b->speed) return a->speed < b->speed ? 1 : -1;
  return a->cpu - b->cpu;
}

static void read_wishes(const char *path, long *threads, long *fast_cores) {
  char key[32];
  long value;
  FILE *file = fopen(path, "r");
  if (!file) fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
  while (fscanf(file, "%31s %ld", key, &value) == 2) {
    if (strcmp(key, "threads") == 0) *threads = value;
    if (strcmp(key, "fast_cores") == 0) *fast_cores = value;
  }
  fclose(file);
  if (*threads < 1 || *fast_cores < 1) fail(EXIT_RUNTIME, "%s: threads and fast_cores must be there and positive", path);
}

/* More threads than cores would wait for each other at every kernel. */
static long wanted_threads(long from_file, int num_cpus) {
  const char *text = getenv("TVM_NUM_THREADS");
  long value = text ? strtol(text, NULL, 10) : 0;
  if (value > num_cpus) {
    fprintf(stderr, "TVM_NUM_THREADS is %ld: as many threads are started as the model has cores, %d\n", value, num_cpus);
    value = num_cpus;
  }
  return value > 0 ? value : from_file;
}

Cores use_fast_cores(const char *path) {
  long threads = 0, fast_cores = 0;
  read_wishes(path, &threads, &fast_cores);
  static Candidate candidates[MAX_CPUS];
  cpu_set_t *set = CPU_ALLOC(MAX_CPUS);
  size_t bytes = CPU_ALLOC_SIZE(MAX_CPUS);
  int count = 0;
  Cores cores = {0};
  if (!set || sched_getaffinity(0, bytes, set) != 0) fail(EXIT_RUNTIME, "cannot tell which CPUs to use: %s", strerror(errno));
  for (int cpu = 0; cpu < MAX_CPUS; ++cpu)
    if (CPU_ISSET_S(cpu, bytes, set)) candidates[count++] = describe(cpu);
  qsort(candidates, (size_t)count, sizeof *candidates, by_speed);
  CPU_ZERO_S(bytes, set);
  for (; cores.num_cpus < count && cores.num_cpus < fast_cores; ++cores.num_cpus) {
    cores.cpus[cores.num_cpus] = candidates[cores.num_cpus].cpu;
    CPU_SET_S(candidates[cores.num_cpus].cpu, bytes, set);
  }
  if (sched_setaffinity(0, bytes, set) != 0) fail(EXIT_RUNTIME, "cannot choose CPUs: %s", strerror(errno));
  CPU_FREE(set);

  threads = wanted_threads(threads < cores.num_cpus ? threads : cores.num_cpus, cores.num_cpus);
  char text[24];
  snprintf(text, sizeof text, "%ld", threads);
  setenv("TVM_NUM_THREADS", text, 1);
  setenv("TVM_BIND_THREADS", "0", 0); /* TVM would bind by the clocks of all CPUs; its threads inherit these */
  cores.threads = (int)threads;
  return cores;
}
