/* How much memory there is, and what processes take of it. */
#ifndef FLEETC_MEMORY_H
#define FLEETC_MEMORY_H

#include <sys/types.h>

/* Bytes that can still be taken: of the machine, and below the limits of the control group and of those above it. */
long long free_bytes(void);

/* Bytes that a process takes, its part of what it shares with others; 0 where it is gone. */
long long process_bytes(pid_t pid);

/* Bytes of the files that a bundle loads: what it takes at least. */
long long payload_bytes(const char *weights, const char *model);

#endif
