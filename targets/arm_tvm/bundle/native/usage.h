/* What the programs of a bundle use of the machine, and in what order figures of it stand. */
#ifndef FLEETC_USAGE_H
#define FLEETC_USAGE_H

#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

/* Processor time of all threads of this process. Not of a clock: the plugin of count.c counts between reads of one. */
static inline double processor_us(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return ((double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec) * 1e6 + (double)usage.ru_utime.tv_usec +
         (double)usage.ru_stime.tv_usec;
}

/* The clock that only goes forward. */
static inline double now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

/* Largest resident memory of this process so far, in KiB, files mapped by it included. */
static inline long peak_kib(void) {
  char line[256];
  long peak = -1;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %ld", &peak) == 1) break;
  if (file) fclose(file);
  return peak;
}

/* For qsort. */
static inline int by_value(const void *left, const void *right) {
  double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

#endif
