#include "rungs.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bundle.h"
#include "model.h"

enum { TIMED_RUNS = 2 };

static size_t aligned(size_t bytes) { return (bytes + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES; }

size_t tensor_offset(const Signature *signature, int index) {
  size_t offset = 0;
  for (int i = 0; i < index; ++i)
    offset += aligned(i < signature->num_inputs ? signature->inputs[i].bytes
                                                : signature->outputs[i - signature->num_inputs].bytes);
  return offset;
}

static int is_same(const Spec *one, const Spec *other, int count) {
  for (int i = 0; i < count; ++i)
    if (strcmp(one[i].name, other[i].name) != 0 || strcmp(one[i].dtype, other[i].dtype) != 0 ||
        one[i].rank != other[i].rank || memcmp(one[i].shape, other[i].shape, sizeof one[i].shape) != 0)
      return 0;
  return 1;
}

void check_rung(const Rung *rung, const Signature *signature) {
  static Signature own;
  Places places = find_places(rung->folder);
  free(own.weights);
  memset(&own, 0, sizeof own);
  read_signature(places.signature, &own);
  if (own.num_inputs != signature->num_inputs || own.num_outputs != signature->num_outputs ||
      !is_same(own.inputs, signature->inputs, own.num_inputs) || !is_same(own.outputs, signature->outputs, own.num_outputs))
    fail(EXIT_USAGE, "%s takes or gives other tensors than this bundle: give builds of one model", rung->name);
}

static size_t all_bytes(const Signature *signature) {
  size_t bytes = tensor_offset(signature, signature->num_inputs + signature->num_outputs);
  return bytes ? bytes : ALIGNMENT_BYTES;
}

/* Where memory runs out the kernel shall choose this process, and not the one that answers. */
static void mark_first_to_go(void) {
  FILE *file = fopen("/proc/self/oom_score_adj", "w");
  if (file) fputs("1000", file), fclose(file);
}

static void run_once(const Signature *signature, char *memory) {
  run_model();
  for (int i = 0; i < signature->num_outputs; ++i) {
    const Spec *spec = &signature->outputs[i];
    memcpy(memory + tensor_offset(signature, signature->num_inputs + i), output_data(i, signature->num_outputs, spec),
           spec->bytes);
  }
}

/* The child: loads, says so, and runs whenever it is asked until the parent is gone. */
static _Noreturn void work(const Rung *rung, int channel) {
  static Signature signature;
  char byte = 0;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGINT, SIG_IGN), signal(SIGTERM, SIG_IGN); /* these are the parent's: it lets a run finish */
  mark_first_to_go();
  Places places = find_places(rung->folder);
  read_signature(places.signature, &signature);
  for (int i = 0; i < signature.num_inputs; ++i)
    bind_argument(i, &signature.inputs[i], rung->memory + tensor_offset(&signature, i));
  load_bundle(&places, &signature);
  do
    run_once(&signature, rung->memory);
  while (write(channel, &byte, 1) == 1 && read(channel, &byte, 1) == 1);
  _exit(0); /* what is unloaded may crash, and nobody waits for it */
}

void start_rung(Rung *rung, const Signature *signature, void (*forget)(void)) {
  int ends[2];
  if (!rung->memory)
    rung->memory = mmap(NULL, all_bytes(signature), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (rung->memory == MAP_FAILED) fail(EXIT_RUNTIME, "out of memory: %zu bytes for tensors", all_bytes(signature));
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    fail(EXIT_RUNTIME, "cannot connect to another process: %s", strerror(errno));
  fflush(NULL); /* what is buffered would be written twice */
  rung->pid = fork();
  if (rung->pid < 0) fail(EXIT_RUNTIME, "cannot start a process: %s", strerror(errno));
  if (rung->pid == 0) {
    forget();
    close(ends[0]);
    work(rung, ends[1]);
  }
  close(ends[1]);
  rung->channel = ends[0];
  rung->stage = LOADING;
  rung->timings = TIMED_RUNS;
  rung->best_us = 0;
}

int ask_run(const Rung *rung) {
  char byte = 0;
  return send(rung->channel, &byte, 1, MSG_NOSIGNAL) == 1;
}

int take_report(const Rung *rung) {
  char byte;
  return read(rung->channel, &byte, 1) == 1;
}

int end_rung(Rung *rung) {
  int status = 0;
  if (rung->channel < 0) return status;
  close(rung->channel);
  rung->channel = -1;
  rung->stage = ABSENT;
  kill(rung->pid, SIGKILL);
  waitpid(rung->pid, &status, 0);
  return status;
}
