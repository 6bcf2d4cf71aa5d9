#include "decoder.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "attention.h"
#include "model.h"
#include "sizes.h"

static const Decoder *decoder;
static const Signature *signature;
static char *data[MAX_TENSORS]; /* of each input of compiled code */
static int64_t bound, past;
static Spec vector, logits;
static char *last;
static const char *values[MAX_TENSORS];

static Border border_of(const char *kind, int place, const Signature *from, int is_output) {
  static const char *const names[] = {"ids", "mask", "positions", "cache", "values", "logits"};
  Border border = {.place = place};
  for (int i = 0; i < 6; ++i)
    if (strcmp(kind, names[i]) == 0) border.kind = (TensorKind)i;
  if (place >= 0) border.spec = is_output && border.kind == VALUES ? from->outputs[place] : from->inputs[place];
  border.is_narrow = border.kind == CACHE && border.spec.bits == 8;
  if (border.is_narrow) {
    border.spec.shape[3] -= FACTOR_BYTES, border.spec.bits = 32, border.spec.code = 2;
    strcpy(border.spec.dtype, "float32"), strcpy(border.spec.descr, "<f4");
  }
  return border;
}

void read_decoder(const char *path, const Signature *from, Decoder *out) {
  char line[MAX_NAME + 64], key[16], kind[16];
  long long value;
  out->ids = out->positions = out->start = -1; /* the rest is zero: a copy would touch memory that few decoders need */
  FILE *file = fopen(path, "r");
  if (!file) fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
  while (fgets(line, sizeof line, file)) {
    if (sscanf(line, "%15s %15s %lld", key, kind, &value) == 3) {
      int is_output = strcmp(key, "gives") == 0, *count = is_output ? &out->num_outputs : &out->num_inputs;
      if (*count == MAX_TENSORS || value >= MAX_TENSORS) fail(EXIT_RUNTIME, "%s: bad line: %s", path, line);
      (is_output ? out->outputs : out->inputs)[(*count)++] = border_of(kind, (int)value, from, is_output);
      continue;
    }
    if (sscanf(line, "%15s %lld", key, &value) != 2) fail(EXIT_RUNTIME, "%s: cannot read the line: %s", path, line);
    if (strcmp(key, "context") == 0) out->context = value;
    if (strcmp(key, "prefill") == 0) out->prefill = value;
    if (strcmp(key, "vocabulary") == 0) out->vocabulary = value;
    if (strcmp(key, "ids") == 0) out->ids = (int)value;
    if (strcmp(key, "positions") == 0) out->positions = (int)value;
    if (strcmp(key, "start") == 0) out->start = (int)value;
  }
  fclose(file);
  if (out->context < 1 || out->vocabulary < 1 || out->ids < 0 || out->start < 0 || out->ids >= from->num_inputs ||
      out->start >= from->num_inputs || out->positions >= from->num_inputs)
    fail(EXIT_RUNTIME, "%s: is not whole", path);
}

void begin_decoder(const Decoder *used, const Signature *from) {
  decoder = used, signature = from;
  int64_t most = from->sizes.built[from->sizes.count - 1];
  for (int i = 0; i < from->num_inputs; ++i) data[i] = aligned_room(spec_at(&from->sizes, &from->inputs[i], most).bytes);
  vector = spec_at(&from->sizes, &from->outputs[0], 1);
  vector.shape[1] = 1; /* of a build whose sizes do not begin with one token, too */
  logits = (Spec){.name = "logits", .code = 2, .bits = 32, .rank = 3, .shape = {1, 1, used->vocabulary}};
  last = aligned_room(vector.bytes);
  load_head();
}

static void write_integers(int input, const int64_t *values, int64_t first, int64_t count) {
  if (input < 0) return;
  for (int64_t i = 0; i < count; ++i) {
    int64_t value = values ? values[i] : first + i;
    if (signature->inputs[input].bits == 64)
      ((int64_t *)data[input])[i] = value;
    else
      ((int32_t *)data[input])[i] = (int32_t)value;
  }
}

static void copy_values(int input, int64_t first, int64_t size) {
  Spec spec = spec_at(&signature->sizes, &signature->inputs[input], size);
  memcpy(data[input], values[input] + spec.bytes / (size_t)size * (size_t)first, spec.bytes);
}

void give_values(int input, const char *all) { values[input] = all; }

void read_ids(const int64_t *ids, int64_t count, void (*each)(int64_t first, int64_t count)) {
  for (int64_t first = 0, size; first < count; first += size) {
    size = signature->sizes.built[next_part(&signature->sizes, count - first)];
    write_integers(decoder->ids, ids + first, 0, size);
    write_integers(decoder->positions, NULL, past, size);
    write_integers(decoder->start, &past, 0, 1);
    for (int i = 0; i < signature->num_inputs; ++i)
      if (values[i]) copy_values(i, first, size);
    if (size != bound) bind_inputs(signature, bound = size, data);
    run_model();
    past += size;
    char *hidden = (char *)output_data(0);
    memcpy(last, hidden + vector.bytes * (size_t)(size - 1), vector.bytes);
    if (each) each(first, size);
  }
}

int64_t tokens_read(void) { return past; }

void set_tokens_read(int64_t count) { past = count; }

char *cache_of(int input) { return data[input]; }

const float *logits_of(char *hidden) {
  if (hidden) memcpy(last, hidden, vector.bytes);
  return run_head(&vector, &logits, last);
}
