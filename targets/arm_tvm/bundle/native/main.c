#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cores.h"
#include "model.h"
#include "processor.h"
#include "tensor.h"

enum { MAX_REPEAT = 100000 };

typedef struct {
  char model[PATH_MAX], signature[PATH_MAX], extra[PATH_MAX], weights[PATH_MAX], cores[PATH_MAX], processor[PATH_MAX];
} Places;

static Signature signature;
static Cores cores;
static double load_us, first_us;

/* Everything stands beside the executable, wherever the folder was copied to. */
static Places find_places(void) {
  static const char *const names[] = {"payload/model.so", "payload/io.txt", "runtime/libtvm_runtime_extra.so",
                                      "payload/weights.bin", "payload/cores.txt", "payload/cpu.txt"};
  char self[PATH_MAX - 64];
  Places places;
  ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
  if (length <= 0) fail(EXIT_RUNTIME, "cannot tell where this program is: %s", strerror(errno));
  self[length] = '\0';
  *strrchr(self, '/') = '\0';
  char *const into[] = {places.model, places.signature, places.extra, places.weights, places.cores, places.processor};
  for (int i = 0; i < 6; ++i) snprintf(into[i], PATH_MAX, "%s/%s", self, names[i]);
  return places;
}

static void print_specs(const char *kind, const Spec *specs, int count) {
  for (int i = 0; i < count; ++i) {
    char shape[256];
    format_shape(specs[i].shape, specs[i].rank, shape, sizeof shape);
    printf("  %s %d: %s %s '%s'\n", kind, i + 1, specs[i].dtype, shape, specs[i].name);
  }
}

static void print_help(void) {
  puts("Usage: run [--repeat N] IN.npy... OUT.npy...\n\n"
       "Runs the compiled model once: one .npy file per input, then one per output, in this order:");
  print_specs("input", signature.inputs, signature.num_inputs);
  print_specs("output", signature.outputs, signature.num_outputs);
  puts("\n  --repeat N  run once to warm up and N times measured; print as JSON: percentiles of latency, time to\n"
       "              load and of the first inference, peak resident memory, threads, and the CPUs they are kept on\n"
       "  --help      print this\n\n"
       "It runs on the fast cores of the device (payload/cores.txt), of those it may use: see taskset.\n"
       "TVM_NUM_THREADS in the environment sets how many threads it uses.\n"
       "Exit status: 0 done, 1 the model or its libraries failed, 2 a wrong command line or file.");
}

static double now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static int by_value(const void *left, const void *right) {
  double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

/* Nearest-rank percentile of sorted values. */
static double percentile(const double *sorted, long count, long percent) {
  return sorted[(count * percent + 99) / 100 - 1];
}

/* Largest resident memory of this process so far, in KiB, files mapped by it included. */
static long peak_kib(void) {
  char line[256];
  long peak = -1;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %ld", &peak) == 1) break;
  if (file) fclose(file);
  return peak;
}

static void print_setting(void) {
  printf("\"load_ms\": %.3f, \"first_ms\": %.3f, \"peak_kib\": %ld, \"threads\": %d, \"cpus\": [", load_us / 1e3,
         first_us / 1e3, peak_kib(), cores.threads);
  for (int i = 0; i < cores.num_cpus; ++i) printf("%s%d", i ? ", " : "", cores.cpus[i]);
  printf("], ");
}

static void measure(long repeat) {
  double *latency_us = malloc(sizeof *latency_us * (size_t)repeat);
  if (!latency_us) fail(EXIT_RUNTIME, "out of memory");
  for (long i = 0; i < repeat; ++i) {
    double start_us = now_us();
    run_model();
    latency_us[i] = now_us() - start_us;
  }
  qsort(latency_us, (size_t)repeat, sizeof *latency_us, by_value);
  printf("{\"repeat\": %ld, ", repeat);
  print_setting();
  printf("\"latency_us\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"sorted\": [",
         percentile(latency_us, repeat, 50), percentile(latency_us, repeat, 90), percentile(latency_us, repeat, 99));
  for (long i = 0; i < repeat; ++i) printf("%s%.1f", i ? ", " : "", latency_us[i]);
  puts("]}}");
  free(latency_us);
}

static long parse_repeat(const char *text) {
  char *end;
  long value = text ? strtol(text, &end, 10) : 0;
  if (!text || *end || value < 1 || value > MAX_REPEAT)
    fail(EXIT_USAGE, "--repeat takes a number from 1 to %d", MAX_REPEAT);
  return value;
}

static void load(const Places *places) {
  void **data = calloc((size_t)signature.num_weights + 1, sizeof *data);
  if (!data) fail(EXIT_RUNTIME, "out of memory");
  require_processor(places->processor);
  cores = use_fast_cores(places->cores);
  map_weights(places->weights, signature.weights, signature.num_weights, data);
  for (int i = 0; i < signature.num_weights; ++i)
    bind_argument(signature.num_inputs + i, &signature.weights[i], data[i]);
  free(data);
  if (access(places->extra, F_OK) == 0 && !dlopen(places->extra, RTLD_NOW | RTLD_GLOBAL)) fail(EXIT_RUNTIME, "%s", dlerror());
  load_model(places->model);
}

int main(int argc, char **argv) {
  Places places = find_places();
  read_signature(places.signature, &signature);
  long repeat = 0;
  int first = 1;
  for (; first < argc && strncmp(argv[first], "--", 2) == 0; ++first) {
    if (strcmp(argv[first], "--help") == 0) return print_help(), 0;
    if (strcmp(argv[first], "--repeat") != 0) fail(EXIT_USAGE, "unknown option %s; see --help", argv[first]);
    repeat = parse_repeat(argv[++first]);
  }
  if (argc - first != signature.num_inputs + signature.num_outputs)
    fail(EXIT_USAGE, "%d input and %d output files are needed, %d were given; see --help", signature.num_inputs,
         signature.num_outputs, argc - first);

  for (int i = 0; i < signature.num_inputs; ++i)
    bind_argument(i, &signature.inputs[i], read_npy(argv[first + i], &signature.inputs[i]));
  double start_us = now_us();
  load(&places);
  double loaded_us = now_us();
  run_model();
  load_us = loaded_us - start_us, first_us = now_us() - loaded_us;
  if (repeat) measure(repeat);
  for (int i = 0; i < signature.num_outputs; ++i) {
    const Spec *spec = &signature.outputs[i];
    write_npy(argv[first + signature.num_inputs + i], spec, output_data(i, signature.num_outputs, spec));
  }
  return 0;
}
