#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "bundle.h"
#include "cores.h"
#include "model.h"
#include "sizes.h"
#include "tensor.h"
#include "usage.h"

enum { MAX_REPEAT = 100000, MAX_DEADLINE_MS = 3600000, MAX_MEMORY_MIB = 1 << 24 };

static Signature signature;
static Cores cores;
static double load_us, first_us;

static void print_specs(const char *kind, const Spec *specs, int count) {
  for (int i = 0; i < count; ++i) {
    char shape[256];
    Spec least = spec_at(&signature.sizes, &specs[i], signature.sizes.least);
    Spec most = spec_at(&signature.sizes, &specs[i], signature.sizes.most);
    format_shape(least.shape, least.rank, shape, sizeof shape);
    printf("  %s %d: %s %s", kind, i + 1, least.dtype, shape);
    format_shape(most.shape, most.rank, shape, sizeof shape);
    if (open_axis(&specs[i]) >= 0) printf(" to %s", shape);
    printf(" '%s'\n", specs[i].name);
  }
}

static void print_help(void) {
  puts("Usage: run [--repeat N] IN.npy... OUT.npy...\n"
       "       run --serve SOCKET [--rungs FOLDER,FOLDER...] [--deadline-ms N] [--memory-mib N]\n\n"
       "Runs the compiled model once: one .npy file per input, then one per output, in this order:");
  print_specs("input", signature.inputs, signature.num_inputs);
  print_specs("output", signature.outputs, signature.num_outputs);
  if (*signature.sizes.dimension)
    printf("  %s: any size from %lld to %lld, the same in all files\n", signature.sizes.dimension,
           (long long)signature.sizes.least, (long long)signature.sizes.most);
  puts("\n  --repeat N  run once to warm up and N times measured; print as JSON: percentiles of latency, processor\n"
       "              time of each, time to load and of the first inference, peak resident memory, threads, and the\n"
       "              CPUs they are kept on\n"
       "  --help      print this\n\n"
       "  --serve SOCKET      load the model and answer requests of other programs of this user at a Unix socket, until\n"
       "                      SIGTERM; what a request looks like is in fleetc's docs/boards.md\n"
       "  --rungs FOLDERS     folders of bundles of the same model, the most accurate first: the first that is in time\n"
       "                      answers, or the next where memory is short or one crashes; this bundle alone by default\n"
       "  --deadline-ms N     time of a request that says nothing; any time by default\n"
       "  --memory-mib N      most memory that the builds together may take\n\n"
       "It runs on the fast cores of the device (payload/cores.txt), of those it may use: see taskset.\n"
       "TVM_NUM_THREADS in the environment sets how many threads it uses.\n"
       "Exit status: 0 done, 1 the model or its libraries failed, 2 a wrong command line or file.");
}

/* Nearest-rank percentile of sorted values. */
static double percentile(const double *sorted, long count, long percent) {
  return sorted[(count * percent + 99) / 100 - 1];
}

static void print_setting(void) {
  printf("\"load_ms\": %.3f, \"first_ms\": %.3f, \"peak_kib\": %ld, \"threads\": %d, \"cpus\": [", load_us / 1e3,
         first_us / 1e3, peak_kib(), cores.threads);
  for (int i = 0; i < cores.num_cpus; ++i) printf("%s%d", i ? ", " : "", cores.cpus[i]);
  printf("], ");
}

static void print_sorted(const char *name, double *values, long count) {
  printf("\"%s\": [", name);
  for (long i = 0; i < count; ++i) printf("%s%.1f", i ? ", " : "", values[i]);
  printf("]");
}

static void measure(long repeat) {
  double *latency_us = malloc(sizeof *latency_us * (size_t)repeat), *used_us = malloc(sizeof *used_us * (size_t)repeat);
  if (!latency_us || !used_us) fail(EXIT_RUNTIME, "out of memory");
  for (long i = 0; i < repeat; ++i) {
    double used_before_us = processor_us(), start_us = now_us();
    run_model();
    latency_us[i] = now_us() - start_us;
    used_us[i] = processor_us() - used_before_us;
  }
  qsort(latency_us, (size_t)repeat, sizeof *latency_us, by_value);
  qsort(used_us, (size_t)repeat, sizeof *used_us, by_value);
  printf("{\"repeat\": %ld, ", repeat);
  print_setting();
  printf("\"latency_us\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, ", percentile(latency_us, repeat, 50),
         percentile(latency_us, repeat, 90), percentile(latency_us, repeat, 99));
  print_sorted("sorted", latency_us, repeat);
  printf("}, ");
  print_sorted("processor_us", used_us, repeat);
  puts("}");
  free(latency_us), free(used_us);
}

static long parse_number(const char *option, const char *text, long most) {
  char *end;
  long value = text ? strtol(text, &end, 10) : 0;
  if (!text || *end || value < 1 || value > most) fail(EXIT_USAGE, "%s takes a number from 1 to %ld", option, most);
  return value;
}

/* `.,rungs/int8` → one folder after another. */
static void parse_rungs(char *text, Service *service) {
  if (!text || !*text) fail(EXIT_USAGE, "--rungs takes folders of bundles, the most accurate first, with commas between");
  service->num_folders = 0;
  for (char *folder = strtok(text, ","); folder; folder = strtok(NULL, ",")) {
    if (service->num_folders == MAX_RUNGS) fail(EXIT_USAGE, "--rungs takes %d folders at most", MAX_RUNGS);
    service->folders[service->num_folders++] = folder;
  }
  if (!service->num_folders) fail(EXIT_USAGE, "--rungs: %s names no folder", text);
}

/* Reads the options. Returns how many of the arguments they are, the program's name included. */
static int parse_options(int argc, char **argv, Service *service, long *repeat) {
  const char *of_service = NULL;
  int first = 1;
  for (; first < argc && strncmp(argv[first], "--", 2) == 0; ++first) {
    const char *option = argv[first];
    if (strcmp(option, "--help") == 0) {
      print_help();
      exit(0);
    }
    char *value = first + 1 < argc ? argv[++first] : NULL;
    if (strcmp(option, "--repeat") == 0) {
      *repeat = parse_number(option, value, MAX_REPEAT);
      continue;
    }
    of_service = option;
    if (strcmp(option, "--serve") == 0)
      service->socket = value ? value : "";
    else if (strcmp(option, "--rungs") == 0)
      parse_rungs(value, service);
    else if (strcmp(option, "--deadline-ms") == 0)
      service->deadline_us = 1e3 * (double)parse_number(option, value, MAX_DEADLINE_MS);
    else if (strcmp(option, "--memory-mib") == 0)
      service->memory_bytes = (long long)parse_number(option, value, MAX_MEMORY_MIB) << 20;
    else
      fail(EXIT_USAGE, "unknown option %s; see --help", option);
  }
  if (of_service && !service->socket) fail(EXIT_USAGE, "%s belongs to --serve", of_service);
  return first;
}

/* The size of the first file whose tensor depends on it; read_npy compares the others with it. */
static int64_t size_of_files(char **files) {
  char why[256], given[256], takes[256];
  for (int i = 0; i < signature.num_inputs; ++i) {
    const Spec *spec = &signature.inputs[i];
    int64_t shape[MAX_RANK];
    if (open_axis(spec) < 0) continue;
    int rank = read_npy_shape(files[i], shape);
    int64_t size = size_of_shape(&signature.sizes, spec, shape, rank);
    if (size && !is_taken(&signature.sizes, size, why, sizeof why)) fail(EXIT_USAGE, "%s: %s", files[i], why);
    if (size) return size;
    Spec least = spec_at(&signature.sizes, spec, signature.sizes.least);
    format_shape(shape, rank, given, sizeof given);
    format_shape(least.shape, least.rank, takes, sizeof takes);
    fail(EXIT_USAGE, "%s: shape is %s, input '%s' takes %s with %s from %lld to %lld in axis %d", files[i], given, spec->name,
         takes, signature.sizes.dimension, (long long)signature.sizes.least, (long long)signature.sizes.most, open_axis(spec));
  }
  return signature.sizes.least;
}

static void run_files(char **files, long repeat) {
  static char *data[MAX_TENSORS];
  Places places = find_places(NULL);
  int64_t size = size_of_files(files);
  for (int i = 0; i < signature.num_inputs; ++i) {
    Spec spec = spec_at(&signature.sizes, &signature.inputs[i], size);
    data[i] = read_npy(files[i], &spec);
  }
  double start_us = now_us();
  cores = load_bundle(&places, &signature);
  bind_inputs(&signature, size, data);
  double loaded_us = now_us();
  run_model();
  load_us = loaded_us - start_us, first_us = now_us() - loaded_us;
  if (repeat) measure(repeat);
  for (int i = 0; i < signature.num_outputs; ++i) {
    Spec spec = spec_at(&signature.sizes, &signature.outputs[i], size);
    write_npy(files[signature.num_inputs + i], &spec, output_data(i));
  }
}

int main(int argc, char **argv) {
  Places places = find_places(NULL);
  read_border(&places, &signature);
  Service service = {.num_folders = 1, .deadline_us = INFINITY};
  long repeat = 0;
  int first = parse_options(argc, argv, &service, &repeat), needed = signature.num_inputs + signature.num_outputs;
  if (service.socket) {
    if (first < argc || repeat) fail(EXIT_USAGE, "--serve takes neither files nor --repeat; see --help");
    answer_requests(&service, &signature);
    return 0;
  }
  if (argc - first != needed)
    fail(EXIT_USAGE, "%d input and %d output files are needed, %d were given; see --help", signature.num_inputs,
         signature.num_outputs, argc - first);
  run_files(argv + first, repeat);
  return 0;
}
