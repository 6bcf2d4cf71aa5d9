#include "tensor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_LINE = 8192 };

static const struct {
  const char *dtype, *descr;
  uint8_t code, bits;
} DTYPES[] = {
    {"float32", "<f4", 2, 32}, {"float16", "<f2", 2, 16}, {"float64", "<f8", 2, 64}, {"int8", "|i1", 0, 8},
    {"int16", "<i2", 0, 16},   {"int32", "<i4", 0, 32},   {"int64", "<i8", 0, 64},   {"uint8", "|u1", 1, 8},
    {"uint16", "<u2", 1, 16},  {"uint32", "<u4", 1, 32},  {"uint64", "<u8", 1, 64},  {"bool", "|b1", 6, 8},
};

void fail(int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "%s: ", program_invocation_short_name);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(code);
}

void format_shape(const int64_t *shape, int rank, char *out, size_t out_bytes) {
  size_t used = (size_t)snprintf(out, out_bytes, "%s", rank ? "" : "scalar");
  for (int i = 0; i < rank && used < out_bytes; ++i)
    used += (size_t)snprintf(out + used, out_bytes - used, "%s%lld", i ? "x" : "", (long long)shape[i]);
}

static void set_dtype(Spec *spec, const char *path) {
  for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; ++i)
    if (strcmp(spec->dtype, DTYPES[i].dtype) == 0) {
      strcpy(spec->descr, DTYPES[i].descr);
      spec->code = DTYPES[i].code, spec->bits = DTYPES[i].bits;
      return;
    }
  fail(EXIT_RUNTIME, "%s: unknown dtype %s", path, spec->dtype);
}

/* One extent, or `1|2|8` for the built sizes; gives what follows. */
static const char *set_extent(Spec *spec, const char *text, int num_sizes, const char *path) {
  int64_t extents[MAX_SIZES];
  int count = 0;
  for (char *end = NULL; !end || *end == '|'; text = *end == '|' ? end + 1 : end) {
    long long size = strtoll(text, &end, 10);
    if (end == text || size < 0 || spec->rank == MAX_RANK || count == num_sizes)
      fail(EXIT_RUNTIME, "%s: bad shape of %s", path, spec->name);
    extents[count++] = size;
  }
  if (count > 1) {
    if (count != num_sizes) fail(EXIT_RUNTIME, "%s: bad shape of %s", path, spec->name);
    spec->extents[spec->rank] = calloc((size_t)count, sizeof *extents);
    if (!spec->extents[spec->rank]) fail(EXIT_RUNTIME, "out of memory");
    memcpy(spec->extents[spec->rank], extents, sizeof *extents * (size_t)count);
  }
  spec->shape[spec->rank++] = extents[0];
  spec->bytes *= (size_t)extents[0];
  return text;
}

static void set_shape(Spec *spec, const char *text, int num_sizes, const char *path) {
  spec->bytes = spec->bits / 8;
  if (strcmp(text, "-") == 0) return;
  while (*text) {
    text = set_extent(spec, text, num_sizes, path);
    if (*text == ',') ++text;
  }
}

static void add_spec(Signature *out, const char *kind, const Spec *spec, const char *path) {
  if (strcmp(kind, "weight") == 0) {
    if ((out->num_weights & (out->num_weights - 1)) == 0)
      out->weights = realloc(out->weights, sizeof *spec * (size_t)(out->num_weights ? 2 * out->num_weights : 1));
    if (!out->weights) fail(EXIT_RUNTIME, "out of memory");
    out->weights[out->num_weights++] = *spec;
    return;
  }
  int is_input = strcmp(kind, "input") == 0;
  int *count = is_input ? &out->num_inputs : &out->num_outputs;
  if (*count == MAX_TENSORS) fail(EXIT_RUNTIME, "%s: more than %d tensors", path, MAX_TENSORS);
  (is_input ? out->inputs : out->outputs)[(*count)++] = *spec;
}

void read_signature(const char *path, Signature *out) {
  static char line[MAX_LINE], shape[MAX_LINE];
  char kind[8];
  FILE *file = fopen(path, "r");
  if (!file) fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
  while (fgets(line, sizeof line, file)) {
    Spec spec = {0};
    if (sscanf(line, "%7s %15s %8191s %511[^\n]", kind, spec.dtype, shape, spec.name) != 4)
      fail(EXIT_RUNTIME, "%s: cannot read the line: %s", path, line);
    set_dtype(&spec, path);
    set_shape(&spec, shape, out->sizes.count, path);
    add_spec(out, kind, &spec, path);
  }
  fclose(file);
}

static const char *after_key(const char *header, const char *key, const char *path) {
  const char *found = strstr(header, key);
  found = found ? strchr(found, ':') : NULL;
  if (!found) fail(EXIT_USAGE, "%s: the .npy header has no %s", path, key);
  return found + 1 + strspn(found + 1, " ");
}

static char *read_header(FILE *file, const char *path) {
  unsigned char fixed[12];
  if (fread(fixed, 1, 10, file) != 10 || memcmp(fixed, "\x93NUMPY", 6) != 0)
    fail(EXIT_USAGE, "%s: not a .npy file", path);
  size_t size = fixed[8] | (size_t)fixed[9] << 8;
  if (fixed[6] > 1) {
    if (fread(fixed + 10, 1, 2, file) != 2) fail(EXIT_USAGE, "%s: truncated header", path);
    size |= (size_t)fixed[10] << 16 | (size_t)fixed[11] << 24;
  }
  if (size > 1 << 16) fail(EXIT_USAGE, "%s: the header of %zu bytes is too long", path, size);
  char *header = calloc(1, size + 1);
  if (!header || fread(header, 1, size, file) != size) fail(EXIT_USAGE, "%s: truncated header", path);
  return header;
}

static int parse_shape(const char *header, const char *path, int64_t *shape) {
  int rank = 0;
  const char *text = after_key(header, "'shape'", path) + 1;
  for (char *end; rank < MAX_RANK; text = end + strspn(end, ", ")) {
    shape[rank] = strtoll(text, &end, 10);
    if (end == text) break;
    ++rank;
  }
  return rank;
}

static void check_header(const char *header, const Spec *spec, const char *path) {
  const char *descr = after_key(header, "'descr'", path) + 1;
  if (strncmp(descr, spec->descr, 3) != 0 || descr[3] != '\'')
    fail(EXIT_USAGE, "%s: dtype is '%.*s', input '%s' takes %s ('%s')", path, (int)strcspn(descr, "'\n"), descr, spec->name,
         spec->dtype, spec->descr);
  if (spec->rank > 1 && strncmp(after_key(header, "'fortran_order'", path), "False", 5) != 0)
    fail(EXIT_USAGE, "%s: is in Fortran order; save it with numpy.ascontiguousarray", path);
  int64_t shape[MAX_RANK];
  int rank = parse_shape(header, path, shape);
  if (rank == spec->rank && memcmp(shape, spec->shape, sizeof(int64_t) * (size_t)rank) == 0) return;
  char got[256], want[256];
  format_shape(shape, rank, got, sizeof got);
  format_shape(spec->shape, spec->rank, want, sizeof want);
  fail(EXIT_USAGE, "%s: shape is %s, input '%s' takes %s", path, got, spec->name, want);
}

int read_npy_shape(const char *path, int64_t *shape) {
  FILE *file = fopen(path, "rb");
  if (!file) fail(EXIT_USAGE, "%s: %s", path, strerror(errno));
  char *header = read_header(file, path);
  int rank = parse_shape(header, path, shape);
  free(header);
  fclose(file);
  return rank;
}

void *aligned_room(size_t bytes) {
  size_t room = (bytes / ALIGNMENT_BYTES + 1) * ALIGNMENT_BYTES;
  void *data = aligned_alloc(ALIGNMENT_BYTES, room);
  if (!data) fail(EXIT_RUNTIME, "out of memory: %zu bytes for a tensor", room);
  return data;
}

void *read_npy(const char *path, const Spec *spec) {
  FILE *file = fopen(path, "rb");
  if (!file) fail(EXIT_USAGE, "%s: %s", path, strerror(errno));
  char *header = read_header(file, path);
  check_header(header, spec, path);
  free(header);
  void *data = aligned_room(spec->bytes);
  size_t got = fread(data, 1, spec->bytes, file);
  if (got != spec->bytes || fgetc(file) != EOF)
    fail(EXIT_USAGE, "%s: %s data, %zu bytes are needed", path, got == spec->bytes ? "trailing" : "truncated", spec->bytes);
  fclose(file);
  return data;
}

static size_t aligned(size_t bytes) { return (bytes + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES; }

void map_weights(const char *path, const Spec *weights, int count, void **data) {
  if (count == 0) return;
  size_t needed = 0;
  for (int i = 0; i < count; ++i) needed += aligned(weights[i].bytes);
  struct stat found;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0 || fstat(file, &found) != 0) fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
  if ((size_t)found.st_size != needed)
    fail(EXIT_RUNTIME, "%s: has %lld bytes, payload/io.txt declares %zu; copy the folder again", path,
         (long long)found.st_size, needed);
  char *start = mmap(NULL, needed, PROT_READ, MAP_PRIVATE, file, 0);
  if (start == MAP_FAILED) fail(EXIT_RUNTIME, "%s: cannot be mapped: %s", path, strerror(errno));
  madvise(start, needed, MADV_WILLNEED);
  close(file);
  for (int i = 0; i < count; start += aligned(weights[i++].bytes)) data[i] = start;
}

void write_npy(const char *path, const Spec *spec, const void *data) {
  char shape[512] = "", header[1024];
  size_t used = 0;
  for (int i = 0; i < spec->rank; ++i)
    used += (size_t)snprintf(shape + used, sizeof shape - used, "%lld, ", (long long)spec->shape[i]);
  if (spec->rank > 1) shape[used - 2] = '\0';
  int length = snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", spec->descr, shape);
  int padded = (length + 11 + 63) / 64 * 64 - 10;
  memset(header + length, ' ', (size_t)(padded - length));
  header[padded - 1] = '\n';
  unsigned char start[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (unsigned char)padded, (unsigned char)(padded >> 8)};
  FILE *file = fopen(path, "wb");
  if (!file) fail(EXIT_USAGE, "%s: %s", path, strerror(errno));
  int complete = fwrite(start, 1, 10, file) == 10 && fwrite(header, 1, (size_t)padded, file) == (size_t)padded &&
                 fwrite(data, 1, spec->bytes, file) == spec->bytes;
  if (fclose(file) != 0 || !complete) fail(EXIT_USAGE, "%s: cannot write: %s", path, strerror(errno));
}
