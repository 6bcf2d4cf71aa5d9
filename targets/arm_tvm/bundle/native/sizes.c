#include "sizes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void read_sizes(const char *path, Sizes *out) {
  char line[MAX_NAME + 32], key[16];
  long long value;
  *out = (Sizes){.least = 1, .most = 1, .count = 1, .built = {1}};
  FILE *file = fopen(path, "r");
  if (!file && errno == ENOENT) return;
  if (!file) fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
  out->count = 0;
  while (fgets(line, sizeof line, file)) {
    if (sscanf(line, "dimension %511[^\n]", out->dimension) == 1) continue;
    if (sscanf(line, "%15s %lld", key, &value) != 2) fail(EXIT_RUNTIME, "%s: cannot read the line: %s", path, line);
    if (strcmp(key, "least") == 0) out->least = value;
    if (strcmp(key, "most") == 0) out->most = value;
    if (strcmp(key, "divides") == 0) out->divides = value != 0;
    if (strcmp(key, "size") == 0 && out->count < MAX_SIZES) out->built[out->count++] = value;
  }
  fclose(file);
  if (!out->count || !*out->dimension) fail(EXIT_RUNTIME, "%s: says no size or no dimension", path);
}

static int64_t extent_at(const Sizes *sizes, const Spec *spec, int axis, int64_t size) {
  const int64_t *extents = spec->extents[axis];
  if (!extents) return spec->shape[axis];
  for (int i = 0; i < sizes->count; ++i)
    if (sizes->built[i] == size) return extents[i];
  return extents[0] / sizes->built[0] * size;
}

Spec spec_at(const Sizes *sizes, const Spec *spec, int64_t size) {
  Spec at = *spec;
  at.bytes = spec->bits / 8;
  for (int axis = 0; axis < spec->rank; ++axis) {
    at.shape[axis] = extent_at(sizes, spec, axis, size);
    at.bytes *= (size_t)at.shape[axis];
  }
  return at;
}

int open_axis(const Spec *spec) {
  for (int axis = 0; axis < spec->rank; ++axis)
    if (spec->extents[axis]) return axis;
  return -1;
}

int64_t size_of_shape(const Sizes *sizes, const Spec *spec, const int64_t *shape, int rank) {
  int axis = open_axis(spec);
  if (rank != spec->rank || axis < 0) return 0;
  if (sizes->divides) {
    int64_t count = spec->extents[axis][0] / sizes->built[0], size = count ? shape[axis] / count : 0;
    Spec at = spec_at(sizes, spec, size);
    return size > 0 && memcmp(at.shape, shape, sizeof *shape * (size_t)rank) == 0 ? size : 0;
  }
  for (int i = 0; i < sizes->count; ++i) {
    Spec at = spec_at(sizes, spec, sizes->built[i]);
    if (memcmp(at.shape, shape, sizeof *shape * (size_t)rank) == 0) return sizes->built[i];
  }
  return 0;
}

int64_t size_of_bytes(const Sizes *sizes, const Spec *spec, uint64_t bytes) {
  size_t unit = spec_at(sizes, spec, sizes->built[0]).bytes / (size_t)sizes->built[0];
  if (sizes->divides) return unit && bytes % unit == 0 ? (int64_t)(bytes / unit) : 0;
  for (int i = 0; i < sizes->count; ++i)
    if (spec_at(sizes, spec, sizes->built[i]).bytes == bytes) return sizes->built[i];
  return 0;
}

int is_taken(const Sizes *sizes, int64_t size, char *why, size_t room) {
  if (size >= sizes->least && size <= sizes->most) return 1;
  snprintf(why, room, "%.100s is %lld; this bundle takes %lld to %lld", sizes->dimension, (long long)size,
           (long long)sizes->least, (long long)sizes->most);
  return 0;
}

int next_part(const Sizes *sizes, int64_t left) {
  int place = sizes->count - 1;
  while (place > 0 && sizes->built[place] > left) --place;
  return place;
}

void copy_places(const Sizes *sizes, const Spec *spec, int64_t size, int64_t first, int64_t count, char *whole, char *part,
                 int into_whole) {
  int axis = open_axis(spec);
  size_t outer = 1, inner = spec->bits / 8;
  for (int i = 0; i < axis; ++i) outer *= (size_t)spec->shape[i];
  for (int i = axis + 1; i < spec->rank; ++i) inner *= (size_t)spec->shape[i];
  inner *= (size_t)(spec->extents[axis][0] / sizes->built[0]);
  for (size_t i = 0; i < outer; ++i) {
    char *at = whole + (i * (size_t)size + (size_t)first) * inner, *own = part + i * (size_t)count * inner;
    memcpy(into_whole ? at : own, into_whole ? own : at, (size_t)count * inner);
  }
}
