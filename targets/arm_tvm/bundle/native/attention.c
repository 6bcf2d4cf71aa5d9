#include "attention.h"

#include <stdlib.h>
#include <string.h>

#include "functions.h"
#include "pool.h"
#include "rounding.h"
#include "tensor.h"

#ifdef __aarch64__
#include <arm_neon.h>
#endif

typedef float Vector __attribute__((vector_size(16), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(16)));
enum { LANES = 4, KEYS = 4, MOST_HEADS = 4, MOST_VECTORS = 4, BYTES = 4 * LANES };

#define INLINE static inline __attribute__((always_inline))

typedef struct {
  const float *query, *key, *value;
  char *keys, *values; /* caches */
  float *out;
  int64_t heads, groups, tokens, context, size, start;
  size_t row_bytes; /* of a head and token in a cache */
  float scale;
  int is_narrow;
} Attention;

static float *scores[MAX_THREADS]; /* of each task */
static int64_t room;               /* tokens that they are for */

INLINE Vector load(const float *from) { return *(const Vector *)from; }

INLINE Vector all(float value) { return (Vector){value, value, value, value}; }

/* The sum of each of four vectors. */
INLINE Vector sums(Vector a, Vector b, Vector c, Vector d) {
#ifdef __aarch64__
  return (Vector)vpaddq_f32(vpaddq_f32((float32x4_t)a, (float32x4_t)b), vpaddq_f32((float32x4_t)c, (float32x4_t)d));
#else
  return (Vector){a[0] + a[1] + a[2] + a[3], b[0] + b[1] + b[2] + b[3], c[0] + c[1] + c[2] + c[3], d[0] + d[1] + d[2] + d[3]};
#endif
}

/* e^x of x <= 0, to 2e-7 of the result: 2^n * e^r with |r| <= ln(2) / 2. */
INLINE Vector exponential(Vector x) {
  const Integers is_low = x < all(-87.0f);
  x = (Vector)(((Integers)all(-87.0f) & is_low) | ((Integers)x & ~is_low));
  Vector shifted = x * all(1.44269504f) + all(12582912.0f); /* 1.5 * 2^23: its last bits are the nearest integer */
  Vector whole = shifted - all(12582912.0f);
  Vector rest = x - whole * all(0.693359375f) + whole * all(2.12194440e-4f);
  Vector sum = all(1.9875691500e-4f);
  sum = sum * rest + all(1.3981999507e-3f);
  sum = sum * rest + all(8.3334519073e-3f);
  sum = sum * rest + all(4.1665795894e-2f);
  sum = sum * rest + all(1.6666665459e-1f);
  sum = sum * rest + all(5.0000001201e-1f);
  sum = sum * rest * rest + rest + all(1.0f);
  return (Vector)((Integers)sum + (((Integers)shifted - (Integers)all(12582912.0f)) << 23));
}

/* Products of some heads' queries with KEYS keys. */
INLINE void score_keys(const Attention *it, const float *query, const float *key, int heads, int64_t stride, float *out,
                       int64_t row) {
  Vector sum[MOST_HEADS][KEYS] = {0};
  for (int64_t i = 0; i < it->size; i += LANES)
    for (int h = 0; h < heads; ++h)
      for (int k = 0; k < KEYS; ++k) sum[h][k] += load(query + h * stride + i) * load(key + k * it->size + i);
  for (int h = 0; h < heads; ++h)
    *(Vector *)(out + h * row) = sums(sum[h][0], sum[h][1], sum[h][2], sum[h][3]) * all(it->scale);
}

INLINE void score(const Attention *it, const float *query, const float *keys, int heads, int64_t stride, int64_t length,
                  float *out, int64_t row) {
  int64_t first = 0;
  for (; first + KEYS <= length; first += KEYS)
    score_keys(it, query, keys + first * it->size, heads, stride, out + first, row);
  for (; first < length; ++first)
    for (int h = 0; h < heads; ++h) {
      Vector sum = all(0);
      for (int64_t i = 0; i < it->size; i += LANES)
        sum += load(query + h * stride + i) * load(keys + first * it->size + i);
      out[h * row + first] = (sum[0] + sum[1] + sum[2] + sum[3]) * it->scale;
    }
}

/* Softmax in place; a row has room for a multiple of LANES. */
static void soften(float *row, int64_t length) {
  float most = row[0];
  for (int64_t i = 1; i < length; ++i) most = row[i] > most ? row[i] : most;
  for (int64_t i = length; i % LANES; ++i) row[i] = most - 100.0f;
  Vector total = all(0);
  for (int64_t i = 0; i < length; i += LANES) {
    Vector power = exponential(load(row + i) - all(most));
    *(Vector *)(row + i) = power;
    total += power;
  }
  for (int64_t i = length; i % LANES; ++i) total[i % LANES] -= row[i];
  Vector factor = all(1.0f / (total[0] + total[1] + total[2] + total[3]));
  for (int64_t i = 0; i < length; i += LANES) *(Vector *)(row + i) *= factor;
}

/* Sums of values by weight, `vectors` of their elements at a time. */
INLINE void mix_part(const Attention *it, const float *weights, int64_t row, const float *values, int heads, int vectors,
                     int64_t length, float *out) {
  Vector sum[MOST_HEADS][MOST_VECTORS] = {0};
  for (int64_t j = 0; j < length; ++j)
    for (int h = 0; h < heads; ++h)
      for (int v = 0; v < vectors; ++v) sum[h][v] += all(weights[h * row + j]) * load(values + j * it->size + v * LANES);
  for (int h = 0; h < heads; ++h)
    for (int v = 0; v < vectors; ++v) *(Vector *)(out + h * it->size + v * LANES) = sum[h][v];
}

INLINE void mix(const Attention *it, const float *weights, int64_t row, const float *values, int heads, int64_t length,
                float *out) {
  int64_t i = 0;
  for (; i + MOST_VECTORS * LANES <= it->size; i += MOST_VECTORS * LANES)
    mix_part(it, weights, row, values + i, heads, MOST_VECTORS, length, out + i);
  for (; i < it->size; i += LANES) mix_part(it, weights, row, values + i, heads, 1, length, out + i);
}

/* Sixteen integers as floats. */
INLINE void expand(const int8_t *from, Vector *out) {
#ifdef __aarch64__
  int8x16_t bytes = vld1q_s8(from);
  int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  out[0] = (Vector)vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), out[1] = (Vector)vcvtq_f32_s32(vmovl_high_s16(low));
  out[2] = (Vector)vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), out[3] = (Vector)vcvtq_f32_s32(vmovl_high_s16(high));
#else
  for (int v = 0; v < BYTES / LANES; ++v)
    out[v] = (Vector){from[v * LANES], from[v * LANES + 1], from[v * LANES + 2], from[v * LANES + 3]};
#endif
}

INLINE float factor_of(const int8_t *row, int64_t size) {
  float factor;
  memcpy(&factor, row + size, sizeof factor);
  return factor;
}

INLINE void score_narrow_keys(const Attention *it, const float *query, const int8_t *key, int heads, int keys, int64_t stride,
                              float *out, int64_t row) {
  Vector sum[MOST_HEADS][KEYS] = {0}, part[KEYS][BYTES / LANES];
  for (int64_t i = 0; i < it->size; i += BYTES) {
    for (int k = 0; k < keys; ++k) expand(key + (size_t)k * it->row_bytes + i, part[k]);
    for (int v = 0; v < BYTES / LANES; ++v)
      for (int h = 0; h < heads; ++h)
        for (int k = 0; k < keys; ++k) sum[h][k] += load(query + h * stride + i + v * LANES) * part[k][v];
  }
  Vector factors = all(0);
  for (int k = 0; k < keys; ++k) factors[k] = factor_of(key + (size_t)k * it->row_bytes, it->size);
  for (int h = 0; h < heads; ++h) {
    Vector scored = sums(sum[h][0], sum[h][1], sum[h][2], sum[h][3]) * factors * all(it->scale);
    memcpy(out + h * row, &scored, (size_t)keys * sizeof *out);
  }
}

INLINE void score_narrow(const Attention *it, const float *query, const int8_t *keys, int heads, int64_t stride, int64_t length,
                         float *out, int64_t row) {
  int64_t first = 0;
  for (; first + KEYS <= length; first += KEYS)
    score_narrow_keys(it, query, keys + (size_t)first * it->row_bytes, heads, KEYS, stride, out + first, row);
  for (; first < length; ++first)
    score_narrow_keys(it, query, keys + (size_t)first * it->row_bytes, heads, 1, stride, out + first, row);
}

/* Sums of values by weight, which the factors of the values are put into first. */
INLINE void mix_narrow(const Attention *it, float *weights, int64_t row, const int8_t *values, int heads, int64_t length,
                       float *out) {
  for (int64_t j = 0; j < length; ++j)
    for (int h = 0; h < heads; ++h) weights[h * row + j] *= factor_of(values + (size_t)j * it->row_bytes, it->size);
  for (int64_t i = 0; i < it->size; i += BYTES) {
    Vector sum[MOST_HEADS][BYTES / LANES] = {0}, part[BYTES / LANES];
    for (int64_t j = 0; j < length; ++j) {
      expand(values + (size_t)j * it->row_bytes + i, part);
      for (int h = 0; h < heads; ++h)
        for (int v = 0; v < BYTES / LANES; ++v) sum[h][v] += all(weights[h * row + j]) * part[v];
    }
    for (int h = 0; h < heads; ++h)
      for (int v = 0; v < BYTES / LANES; ++v) *(Vector *)(out + h * it->size + i + v * LANES) = sum[h][v];
  }
}

/* Some heads of one group, of one token; their number is a constant, so that sums stay in registers. */
INLINE void attend_heads(const Attention *it, int64_t token, int64_t head, int heads, float *row) {
  int64_t group = head / (it->heads / it->groups), length = it->start + token + 1;
  const float *query = it->query + (head * it->tokens + token) * it->size;
  const size_t place = (size_t)(group * it->context) * it->row_bytes;
  const void *keys = it->keys + place, *values = it->values + place;
  float *out = it->out + (token * it->heads + head) * it->size;
  if (it->is_narrow)
    score_narrow(it, query, keys, heads, it->tokens * it->size, length, row, room);
  else
    score(it, query, keys, heads, it->tokens * it->size, length, row, room);
  for (int h = 0; h < heads; ++h) soften(row + h * room, length);
  if (it->is_narrow)
    mix_narrow(it, row, room, values, heads, length, out);
  else
    mix(it, row, room, values, heads, length, out);
}

static void attend_token(const Attention *it, int64_t token, int64_t group, float *row) {
  int64_t times = it->heads / it->groups, head = group * times, end = head + times;
  for (; head + 4 <= end; head += 4) attend_heads(it, token, head, 4, row);
  if (end - head == 3) attend_heads(it, token, head, 3, row);
  if (end - head == 2) attend_heads(it, token, head, 2, row);
  if (end - head == 1) attend_heads(it, token, head, 1, row);
}

/* A share of the tokens and groups; those of later tokens take longer, so that tasks take turns. */
static int attend_share(int task, Group *tasks, void *data) {
  const Attention *it = data;
  for (int64_t i = task; i < it->tokens * it->groups; i += tasks->num_task)
    attend_token(it, i / it->groups, i % it->groups, scores[task]);
  return 0;
}

void narrow_rows(const float *from, int64_t rows, int64_t size, int8_t *to) {
  for (int64_t i = 0; i < rows; ++i, from += size, to += size + FACTOR_BYTES) {
    float factor = round_values(from, size, to);
    memcpy(to + size, &factor, sizeof factor);
  }
}

void widen_rows(const int8_t *from, int64_t rows, int64_t size, float *to) {
  for (int64_t i = 0; i < rows; ++i, from += size + FACTOR_BYTES, to += size)
    for (int64_t j = 0; j < size; ++j) to[j] = factor_of(from, size) * (float)from[j];
}

static void write_rows(const Attention *it, const float *rows, char *cache) {
  for (int64_t group = 0; group < it->groups; ++group, rows += it->tokens * it->size) {
    char *to = cache + (size_t)(group * it->context + it->start) * it->row_bytes;
    if (it->is_narrow)
      narrow_rows(rows, it->tokens, it->size, (int8_t *)to);
    else
      memcpy(to, rows, (size_t)it->tokens * it->row_bytes);
  }
}

static void make_room(int64_t context) {
  if (context <= room) return;
  room = (context + LANES - 1) / LANES * LANES;
  for (int i = 0; i < MAX_THREADS; ++i) {
    free(scores[i]);
    scores[i] = i < pool_threads() ? aligned_room((size_t)room * MOST_HEADS * sizeof **scores) : NULL;
  }
}

static int attend(void *self, const TVMFFIAny *given, int32_t count, TVMFFIAny *result) {
  (void)self, (void)count, (void)result;
  const int64_t *query = tensor_of(&given[0])->shape, *cache = tensor_of(&given[3])->shape;
  Attention it = {.query = data_of(&given[0]),
                  .key = data_of(&given[1]),
                  .value = data_of(&given[2]),
                  .keys = data_of(&given[3]),
                  .values = data_of(&given[4]),
                  .out = data_of(&given[7]),
                  .heads = query[1],
                  .groups = cache[1],
                  .tokens = query[2],
                  .context = cache[2],
                  .size = query[3],
                  .start = *(const int64_t *)data_of(&given[5]),
                  .scale = *(const float *)data_of(&given[6]),
                  .is_narrow = tensor_of(&given[3])->dtype.bits == 8};
  it.row_bytes = it.is_narrow ? (size_t)it.size + FACTOR_BYTES : (size_t)it.size * sizeof(float);
  if (it.start < 0 || it.start + it.tokens > it.context)
    fail(EXIT_RUNTIME, "%lld tokens behind %lld are more than the context of %lld", (long long)it.tokens, (long long)it.start,
         (long long)it.context);
  make_room(it.context);
  write_rows(&it, it.key, it.keys);
  write_rows(&it, it.value, it.values);
  return launch_tasks(attend_share, &it, 0);
}

void register_attention(void) { add_function("fleetc.attention", attend); }
