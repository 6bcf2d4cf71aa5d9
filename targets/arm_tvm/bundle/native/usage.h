/* What the programs of a bundle use of the machine. */
#ifndef FLEETC_USAGE_H
#define FLEETC_USAGE_H

#include <sys/resource.h>

/* Processor time of all threads of this process. Not of a clock: the plugin of count.c counts between reads of one. */
static inline double processor_us(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return ((double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec) * 1e6 + (double)usage.ru_utime.tv_usec +
         (double)usage.ru_stime.tv_usec;
}

#endif
