/* `run --serve`: answers requests of other programs at a socket, with the builds of a ladder. */
#ifndef FLEETC_ANSWER_H
#define FLEETC_ANSWER_H

#include "ladder.h"
#include "tensor.h"

typedef struct {
  const char *socket;
  const char *folders[MAX_RUNGS]; /* the most accurate build first; NULL is the bundle that holds this program */
  int num_folders;
  double deadline_us;     /* time of a request that says nothing; infinite: any */
  long long memory_bytes; /* most that all builds together may take; 0: no limit of their own */
} Service;

/* Answers until SIGTERM or SIGINT comes and everybody who was let in is answered. */
void answer_requests(const Service *service, const Signature *signature);

#endif
