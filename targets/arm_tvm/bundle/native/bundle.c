#include "bundle.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "pool.h"
#include "processor.h"
#include "sizes.h"

enum { LONGEST_NAME = 64 };

static void find_program(char *folder, size_t room) {
  ssize_t length = readlink("/proc/self/exe", folder, room - 1);
  if (length <= 0) fail(EXIT_RUNTIME, "cannot tell where this program is: %s", strerror(errno));
  folder[length] = '\0';
  *strrchr(folder, '/') = '\0';
}

Places find_places(const char *folder) {
  static const char *const names[] = {"payload/model.so", "payload/io.txt", "runtime/libtvm_runtime_extra.so",
                                      "payload/weights.bin", "payload/cores.txt", "payload/cpu.txt", "payload/sizes.txt",
                                      "payload/decoder.txt"};
  char place[PATH_MAX - LONGEST_NAME];
  Places places;
  if (!folder)
    find_program(place, sizeof place);
  else if ((size_t)snprintf(place, sizeof place, "%s", folder) >= sizeof place)
    fail(EXIT_USAGE, "the name of the folder is too long: %s", folder);
  char *const into[] = {places.model, places.signature, places.extra, places.weights, places.cores, places.processor,
                        places.sizes, places.decoder};
  for (int i = 0; i < 8; ++i) snprintf(into[i], PATH_MAX, "%s/%s", place, names[i]);
  return places;
}

void read_border(const Places *places, Signature *out) {
  read_sizes(places->sizes, &out->sizes);
  read_signature(places->signature, out);
}

Cores load_bundle(const Places *places, const Signature *signature) {
  void **data = calloc((size_t)signature->num_weights + 1, sizeof *data);
  if (!data) fail(EXIT_RUNTIME, "out of memory");
  require_processor(places->processor);
  Cores cores = use_fast_cores(places->cores);
  map_weights(places->weights, signature->weights, signature->num_weights, data);
  for (int i = 0; i < signature->num_weights; ++i) bind_weight(i, &signature->weights[i], data[i]);
  free(data);
  if (access(places->extra, F_OK) == 0 && !dlopen(places->extra, RTLD_NOW | RTLD_GLOBAL)) fail(EXIT_RUNTIME, "%s", dlerror());
  load_model(places->model, &signature->sizes);
  use_pool(places->model, cores.threads);
  return cores;
}
