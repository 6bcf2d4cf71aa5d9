/* One build of a ladder in a process of its own, so that a crash takes nothing else along and its memory comes back.
 *
 * Inputs and outputs stand one after another in memory that both processes map. The child runs when it is sent a size,
 * and sends a byte back when the outputs are there.
 */
#ifndef FLEETC_RUNGS_H
#define FLEETC_RUNGS_H

#include <sys/types.h>

#include "tensor.h"

typedef enum { ABSENT, LOADING, TIMING, READY } RungStage;

typedef struct {
  const char *folder; /* NULL: the one that holds this program */
  const char *name;
  RungStage stage;
  pid_t pid;
  int channel;              /* -1 where the process is not there */
  char *memory;             /* shared with the process */
  int timings;              /* timed runs that are still to be made before it may answer */
  double best_us;           /* the shortest of those that were */
  long long resident_bytes; /* when it was looked at last; 0: never */
} Rung;

/* Where tensor `index`, inputs first, begins in the shared memory, which has room for the largest size; at the number of
 * all tensors, the bytes of all. */
size_t tensor_offset(const Signature *signature, int index);

/* Reads a rung's signature; exits where it takes or gives other tensors than `signature`. */
void check_rung(const Rung *rung, const Signature *signature);

/* Maps the memory of a rung that is not there, and starts its process. `forget` closes in it what is the parent's. */
void start_rung(Rung *rung, const Signature *signature, void (*forget)(void));

/* Asks for a run of a size. */
int ask_run(const Rung *rung, int64_t size);

/* Takes the byte that says that the model is loaded or a run is done; 0 where the process is gone. */
int take_report(const Rung *rung);

/* Ends the process, if it is there, and gives its exit status as waitpid does. */
int end_rung(Rung *rung);

#endif
