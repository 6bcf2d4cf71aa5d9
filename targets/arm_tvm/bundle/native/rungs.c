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
#include "sizes.h"

enum { TIMED_RUNS = 2 };

static size_t aligned(size_t bytes) { return (bytes + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES; }

size_t tensor_offset(const Signature *signature, int index) {
  size_t offset = 0;
  for (int i = 0; i < index; ++i) {
    const Spec *spec = i < signature->num_inputs ? &signature->inputs[i] : &signature->outputs[i - signature->num_inputs];
    offset += aligned(spec_at(&signature->sizes, spec, signature->sizes.most).bytes);
  }
  return offset;
}

static int is_same(const Signature *one, const Signature *other, const Spec *specs, const Spec *others, int count) {
  const int64_t ends[] = {one->sizes.least, one->sizes.most};
  for (int i = 0; i < count; ++i)
    for (int end = 0; end < 2; ++end) {
      Spec left = spec_at(&one->sizes, &specs[i], ends[end]), right = spec_at(&other->sizes, &others[i], ends[end]);
      if (strcmp(left.name, right.name) != 0 || strcmp(left.dtype, right.dtype) != 0 || left.rank != right.rank ||
          memcmp(left.shape, right.shape, sizeof left.shape) != 0)
        return 0;
    }
  return 1;
}

void check_rung(const Rung *rung, const Signature *signature) {
  static Signature own;
  Places places = find_places(rung->folder);
  free(own.weights);
  memset(&own, 0, sizeof own);
  read_border(&places, &own);
  if (own.num_inputs != signature->num_inputs || own.num_outputs != signature->num_outputs ||
      own.sizes.least != signature->sizes.least || own.sizes.most != signature->sizes.most ||
      !is_same(&own, signature, own.inputs, signature->inputs, own.num_inputs) ||
      !is_same(&own, signature, own.outputs, signature->outputs, own.num_outputs))
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

static void run_once(const Signature *signature, int64_t size, char *memory) {
  run_model();
  for (int i = 0; i < signature->num_outputs; ++i) {
    size_t bytes = spec_at(&signature->sizes, &signature->outputs[i], size).bytes;
    memcpy(memory + tensor_offset(signature, signature->num_inputs + i), output_data(i), bytes);
  }
}

/* The child: loads, says so, and runs whenever it is asked until the parent is gone. */
static _Noreturn void work(const Rung *rung, int channel) {
  static Signature signature;
  static char *data[MAX_TENSORS];
  char byte = 0;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGINT, SIG_IGN), signal(SIGTERM, SIG_IGN); /* these are the parent's: it lets a run finish */
  mark_first_to_go();
  Places places = find_places(rung->folder);
  read_border(&places, &signature);
  for (int i = 0; i < signature.num_inputs; ++i) data[i] = rung->memory + tensor_offset(&signature, i);
  load_bundle(&places, &signature);
  int64_t size = signature.sizes.least, bound = 0;
  do {
    if (size != bound) bind_inputs(&signature, size, data);
    bound = size;
    run_once(&signature, size, rung->memory);
  } while (write(channel, &byte, 1) == 1 && recv(channel, &size, sizeof size, MSG_WAITALL) == sizeof size);
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

int ask_run(const Rung *rung, int64_t size) {
  return send(rung->channel, &size, sizeof size, MSG_NOSIGNAL) == sizeof size;
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
