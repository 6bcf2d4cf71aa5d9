/* The program of a decoder's bundle: token ids in, token ids out. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "blocks.h"
#include "bundle.h"
#include "decoder.h"
#include "model.h"
#include "sizes.h"
#include "tensor.h"
#include "usage.h"

enum { DEFAULT_TOKENS = 64, MAX_REPEAT = 100000 };

typedef struct {
  int64_t *values, count, room;
} Ids;

static Signature signature;
static Decoder decoder;

static void print_help(void) {
  printf("Usage: generate [--tokens N] [--stop ID,ID...] [--json] [ID...]\n"
         "       generate --call [--repeat N] IN.npy... OUT.npy...\n\n"
         "Goes on behind the tokens of a prompt, each time with the most probable one, and prints their ids. The prompt is\n"
         "the ids that are given, or one line of them from the standard input. This model has %lld tokens, and a context of\n"
         "%lld: prompt and answer together.\n\n"
         "  --tokens N   most tokens of the answer; 64 by default\n"
         "  --stop IDS   ids that end an answer; they are not printed\n"
         "  --json       print one object: tokens, prompt_ms, token_ms, load_ms, peak_kib\n"
         "  --call       one call of the model as it was exported, with a .npy file for each of its inputs and outputs\n"
         "  --repeat N   then N calls whose times are printed as JSON, with logits of the last token alone\n"
         "  --help       print this\n\n"
         "Times go to the standard error. Exit status: 0 done, 1 the model or its libraries failed, 2 a wrong command line,\n"
         "file or prompt.\n",
         (long long)decoder.vocabulary, (long long)decoder.context);
}

static double now_ms(void) { return now_us() / 1e3; }

static void *room_for(void *array, int64_t count, size_t item_bytes) {
  array = realloc(array, item_bytes * (size_t)(count ? count : 1));
  if (!array) fail(EXIT_RUNTIME, "out of memory");
  return array;
}

static void add_id(Ids *ids, int64_t value) {
  if (ids->count == ids->room) ids->values = room_for(ids->values, ids->room = 2 * ids->room + 64, sizeof *ids->values);
  ids->values[ids->count++] = value;
}

/* Ids with spaces or commas between. */
static void parse_ids(const char *text, const char *where, Ids *ids) {
  for (char *end; text += strspn(text, " ,\t\r\n"), *text; text = end) {
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || (*end && !strchr(" ,\t\r\n", *end)))
      fail(EXIT_USAGE, "%s: '%.*s' is no token id", where, (int)strcspn(text, " ,\t\r\n"), text);
    if (errno || value < 0 || value >= decoder.vocabulary)
      fail(EXIT_USAGE, "%s: id %.*s is not one of the model's: 0 to %lld", where, (int)strcspn(text, " ,\t\r\n"), text,
           (long long)decoder.vocabulary - 1);
    add_id(ids, value);
  }
}

static void read_line(Ids *ids) {
  char *line = NULL;
  size_t size = 0;
  if (getline(&line, &size, stdin) > 0) parse_ids(line, "standard input", ids);
  free(line);
}

static void check_prompt(const Ids *prompt, int64_t tokens, int is_asked) {
  if (!prompt->count) fail(EXIT_USAGE, "the prompt is empty: give token ids, or a line of them at the standard input");
  if (prompt->count >= decoder.context)
    fail(EXIT_USAGE, "the prompt has %lld tokens, and may have 1 to %lld", (long long)prompt->count,
         (long long)decoder.context - 1);
  if (is_asked && prompt->count + tokens > decoder.context)
    fail(EXIT_USAGE, "--tokens %lld behind a prompt of %lld are more than the context of %lld", (long long)tokens,
         (long long)prompt->count, (long long)decoder.context);
}

static int64_t most_probable(void) {
  const float *logits = logits_of(NULL);
  int64_t best = 0;
  for (int64_t i = 1; i < decoder.vocabulary; ++i)
    if (logits[i] > logits[best]) best = i;
  return best;
}

static int is_among(const Ids *ids, int64_t value) {
  for (int64_t i = 0; i < ids->count; ++i)
    if (ids->values[i] == value) return 1;
  return 0;
}

static void print_json(const Ids *answer, double prompt_ms, const double *token_ms, int64_t steps, double load_ms) {
  printf("{\"tokens\": [");
  for (int64_t i = 0; i < answer->count; ++i) printf("%s%lld", i ? ", " : "", (long long)answer->values[i]);
  printf("], \"prompt_ms\": %.3f, \"token_ms\": [", prompt_ms);
  for (int64_t i = 0; i < steps; ++i) printf("%s%.3f", i ? ", " : "", token_ms[i]);
  printf("], \"load_ms\": %.3f, \"peak_kib\": %ld}\n", load_ms, peak_kib());
}

static void print_times(int64_t prompt, double prompt_ms, double *token_ms, int64_t steps) {
  fprintf(stderr, "prompt of %lld tokens: %.1f ms", (long long)prompt, prompt_ms);
  qsort(token_ms, (size_t)steps, sizeof *token_ms, by_value);
  if (steps) fprintf(stderr, "; then %.1f tokens per second, by the median", 1e3 / token_ms[steps / 2]);
  fputc('\n', stderr);
}

static void print_id(const Ids *answer, int is_json) {
  if (is_json) return;
  printf("%s%lld", answer->count > 1 ? " " : "", (long long)answer->values[answer->count - 1]);
  fflush(stdout);
}

/* The prompt in parts, then token after token. Nothing reads the clock but before and behind these: a counter of
 * instructions finds the last step by it. */
static void answer_prompt(const Ids *prompt, int64_t tokens, const Ids *stop, int is_json, double load_ms) {
  Ids answer = {0};
  double *token_ms = room_for(NULL, tokens, sizeof *token_ms), prompt_ms = now_ms();
  int64_t steps = 0;
  for (int64_t first = 0, size; first < prompt->count; first += size) {
    size = prompt->count - first < decoder.prefill ? prompt->count - first : decoder.prefill;
    read_ids(prompt->values + first, size, NULL);
  }
  int64_t best = most_probable();
  prompt_ms = now_ms() - prompt_ms;
  while (!is_among(stop, best)) {
    add_id(&answer, best);
    print_id(&answer, is_json);
    if (answer.count == tokens || tokens_read() == decoder.context) break;
    double begun_ms = now_ms();
    read_ids(&best, 1, NULL);
    best = most_probable();
    token_ms[steps++] = now_ms() - begun_ms;
  }
  if (is_json)
    print_json(&answer, prompt_ms, token_ms, steps, load_ms);
  else
    putchar('\n');
  print_times(prompt->count, prompt_ms, token_ms, steps);
}

/* The size of one axis of a file's array. */
static int64_t tokens_of(const char *path, int axis, int rank) {
  int64_t shape[MAX_RANK];
  int got = read_npy_shape(path, shape);
  if (got != rank || shape[0] != 1) fail(EXIT_USAGE, "%s: an array of one sequence with %d dimensions is needed", path, rank);
  return shape[axis];
}

static Spec sized(const Spec *spec, int axis, int64_t size) {
  Spec at = *spec;
  at.shape[axis] = size;
  at.bytes = spec->bits / 8;
  for (int i = 0; i < at.rank; ++i) at.bytes *= (size_t)at.shape[i], at.extents[i] = NULL;
  return at;
}

/* Tokens that the cache has room for: a whole prompt behind a full context. */
static int64_t rows_of_cache(void) {
  for (int i = 0; i < decoder.num_inputs; ++i)
    if (decoder.inputs[i].kind == CACHE) return decoder.inputs[i].spec.shape[2];
  return decoder.context;
}

static void move_cache(const Spec *part, int is_narrow, char *cache, char *rows, int into_cache) {
  int64_t count = part->shape[2], size = part->shape[3];
  size_t item = part->bits / 8, block = (size_t)(count * size) * item;
  size_t stride = (size_t)rows_of_cache() * (is_narrow ? (size_t)size + FACTOR_BYTES : (size_t)size * item);
  for (int64_t head = 0; head < part->shape[1]; ++head) {
    char *own = cache + (size_t)head * stride, *other = rows + (size_t)head * block;
    if (is_narrow && into_cache)
      narrow_rows((const float *)other, count, size, (int8_t *)own);
    else if (is_narrow)
      widen_rows((const int8_t *)own, count, size, (float *)other);
    else
      memcpy(into_cache ? own : other, into_cache ? other : own, block);
  }
}

static char *results[MAX_TENSORS]; /* of each output that has values of tokens */
static Spec result_specs[MAX_TENSORS];

static void keep_logits(int output, int64_t first, int64_t count) {
  size_t bytes = (size_t)decoder.vocabulary * sizeof(float);
  size_t width = spec_at(&signature.sizes, &signature.outputs[0], 1).bytes;
  char *hidden = (char *)output_data(0);
  for (int64_t i = 0; i < count; ++i)
    memcpy(results[output] + (size_t)(first + i) * bytes, logits_of(hidden + (size_t)i * width), bytes);
}

static void keep_results(int64_t first, int64_t count) {
  for (int i = 0; i < decoder.num_outputs; ++i) {
    const Border *own = &decoder.outputs[i];
    if (own->kind == LOGITS) keep_logits(i, first, count);
    if (own->kind != VALUES) continue;
    size_t bytes = spec_at(&signature.sizes, &own->spec, count).bytes;
    memcpy(results[i] + bytes / (size_t)count * (size_t)first, output_data(own->place), bytes);
  }
}

static void make_results(int64_t count) {
  for (int i = 0; i < decoder.num_outputs; ++i) {
    const Border *own = &decoder.outputs[i];
    if (own->kind == CACHE) continue;
    Spec logits = {.descr = "<f4", .bits = 32, .rank = 3, .shape = {1, count, decoder.vocabulary}};
    result_specs[i] = own->kind == LOGITS ? sized(&logits, 1, count) : sized(&own->spec, 1, count);
    results[i] = aligned_room(result_specs[i].bytes);
  }
}

static void read_cache(const Border *given, const char *path, int64_t past) {
  Spec spec = sized(&given->spec, 2, past);
  char *rows = read_npy(path, &spec);
  move_cache(&spec, given->is_narrow, cache_of(given->place), rows, 1);
  free(rows);
}

static void write_cache(const Border *given, const char *path, int64_t total) {
  Spec spec = sized(&given->spec, 2, total);
  char *rows = aligned_room(spec.bytes);
  move_cache(&spec, given->is_narrow, cache_of(given->place), rows, 0);
  write_npy(path, &spec, rows);
  free(rows);
}

static void refuse_gaps(const char *path, int64_t total) {
  Spec spec = sized(&signature.inputs[decoder.ids], 1, total);
  strcpy(spec.name, "mask");
  char *ones = read_npy(path, &spec);
  for (size_t i = 0; i < spec.bytes; ++i)
    if (ones[i] != (i % (spec.bits / 8) == 0))
      fail(EXIT_USAGE, "%s: the mask hides tokens; this bundle computes each of them", path);
  free(ones);
}

static void refuse_other_positions(const char *path, const Border *given, int64_t past, int64_t count) {
  Spec spec = sized(&given->spec, 1, count);
  char *positions = read_npy(path, &spec);
  for (int64_t i = 0; i < count; ++i) {
    int64_t value = spec.bits == 64 ? ((int64_t *)positions)[i] : ((int32_t *)positions)[i];
    if (value != past + i)
      fail(EXIT_USAGE, "%s: position %lld is %lld; this bundle takes tokens in order, from %lld on", path, (long long)i,
           (long long)value, (long long)past);
  }
  free(positions);
}

/* Ids of the file that has them, as int64; their number. */
static int64_t read_call_ids(const char *path, const Border *given, Ids *ids) {
  int64_t count = tokens_of(path, 1, 2);
  Spec spec = sized(&given->spec, 1, count);
  char *values = read_npy(path, &spec);
  for (int64_t i = 0; i < count; ++i) {
    int64_t value = spec.bits == 64 ? ((int64_t *)values)[i] : ((int32_t *)values)[i];
    if (value < 0 || value >= decoder.vocabulary)
      fail(EXIT_USAGE, "%s: id %lld is not one of the model's: 0 to %lld", path, (long long)value,
           (long long)decoder.vocabulary - 1);
    add_id(ids, value);
  }
  free(values);
  return count;
}

/* Times of more calls, as `run --repeat` prints them. */
static void measure(const Ids *ids, int64_t past, int64_t repeat) {
  double *latency_us = room_for(NULL, repeat, sizeof *latency_us), *used_us = room_for(NULL, repeat, sizeof *used_us);
  for (int64_t i = 0; i < repeat; ++i) {
    double used_before_us = processor_us(), begun_ms = now_ms();
    set_tokens_read(past);
    read_ids(ids->values, ids->count, NULL);
    logits_of(NULL);
    latency_us[i] = 1e3 * (now_ms() - begun_ms);
    used_us[i] = processor_us() - used_before_us;
  }
  qsort(latency_us, (size_t)repeat, sizeof *latency_us, by_value);
  qsort(used_us, (size_t)repeat, sizeof *used_us, by_value);
  printf("{\"repeat\": %lld, \"peak_kib\": %ld, \"latency_us\": {\"sorted\": [", (long long)repeat, peak_kib());
  for (int64_t i = 0; i < repeat; ++i) printf("%s%.1f", i ? ", " : "", latency_us[i]);
  printf("]}, \"processor_us\": [");
  for (int64_t i = 0; i < repeat; ++i) printf("%s%.1f", i ? ", " : "", used_us[i]);
  puts("]}");
  free(latency_us), free(used_us);
}

static int64_t tokens_in_cache(char **files) {
  for (int i = 0; i < decoder.num_inputs; ++i)
    if (decoder.inputs[i].kind == CACHE) return tokens_of(files[i], 2, 4);
  return 0;
}

static void read_others(char **files, int64_t past, int64_t count) {
  for (int i = 0; i < decoder.num_inputs; ++i) {
    const Border *given = &decoder.inputs[i];
    if (given->kind == MASK) refuse_gaps(files[i], past + count);
    if (given->kind == POSITIONS) refuse_other_positions(files[i], given, past, count);
    if (given->kind == CACHE) read_cache(given, files[i], past);
    if (given->kind == VALUES) {
      Spec spec = sized(&given->spec, 1, count);
      give_values(given->place, read_npy(files[i], &spec));
    }
  }
}

static void call_files(char **files, int count, int64_t repeat) {
  if (count != decoder.num_inputs + decoder.num_outputs)
    fail(EXIT_USAGE, "%d input and %d output files are needed, %d were given; see --help", decoder.num_inputs,
         decoder.num_outputs, count);
  Ids ids = {0};
  int64_t past = tokens_in_cache(files);
  for (int i = 0; i < decoder.num_inputs; ++i)
    if (decoder.inputs[i].kind == IDS) read_call_ids(files[i], &decoder.inputs[i], &ids);
  if (!ids.count || past + ids.count > rows_of_cache())
    fail(EXIT_USAGE, "%lld tokens behind %lld: this bundle takes 1 to %lld", (long long)ids.count, (long long)past,
         (long long)(rows_of_cache() - past));
  read_others(files, past, ids.count);
  set_tokens_read(past);
  make_results(ids.count);
  read_ids(ids.values, ids.count, keep_results);
  if (repeat) measure(&ids, past, repeat);
  for (int i = 0; i < decoder.num_outputs; ++i) {
    const char *file = files[decoder.num_inputs + i];
    if (decoder.outputs[i].kind == CACHE)
      write_cache(&decoder.outputs[i], file, past + ids.count);
    else
      write_npy(file, &result_specs[i], results[i]);
  }
}

static int64_t parse_count(const char *option, const char *text, int64_t most) {
  char *end = NULL;
  long long value = text ? strtoll(text, &end, 10) : 0;
  if (!text || !*text || *end || value < 1 || value > most)
    fail(EXIT_USAGE, "%s takes a number from 1 to %lld", option, (long long)most);
  return value;
}

int main(int argc, char **argv) {
  Places places = find_places(NULL);
  read_border(&places, &signature);
  read_decoder(places.decoder, &signature, &decoder);
  Ids prompt = {0}, stop = {0};
  int64_t tokens = DEFAULT_TOKENS, repeat = 0;
  int is_json = 0, is_asked = 0, is_call = 0, first = 1;
  for (; first < argc && strncmp(argv[first], "--", 2) == 0; ++first) {
    const char *option = argv[first], *value = first + 1 < argc ? argv[first + 1] : NULL;
    if (strcmp(option, "--help") == 0) {
      print_help();
      return 0;
    }
    if (strcmp(option, "--json") == 0)
      is_json = 1;
    else if (strcmp(option, "--call") == 0)
      is_call = 1;
    else if (strcmp(option, "--tokens") == 0)
      tokens = parse_count(option, value, decoder.context), is_asked = 1, ++first;
    else if (strcmp(option, "--repeat") == 0)
      repeat = parse_count(option, value, MAX_REPEAT), ++first;
    else if (strcmp(option, "--stop") == 0 && value)
      parse_ids(value, option, &stop), ++first;
    else
      fail(EXIT_USAGE, "unknown option %s, or its value is missing; see --help", option);
  }
  if (!is_call) {
    for (int i = first; i < argc; ++i) parse_ids(argv[i], "the prompt", &prompt);
    if (first == argc) read_line(&prompt);
    check_prompt(&prompt, tokens, is_asked);
  }
  double load_ms = now_ms();
  register_attention();
  register_blocks();
  load_bundle(&places, &signature);
  begin_decoder(&decoder, &signature);
  load_ms = now_ms() - load_ms;
  if (is_call)
    call_files(argv + first, argc - first, repeat);
  else
    answer_prompt(&prompt, tokens, &stop, is_json, load_ms);
  return 0;
}
