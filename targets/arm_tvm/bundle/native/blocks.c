#include "blocks.h"

#include <stdlib.h>
#include <string.h>

#include "functions.h"
#include "pool.h"
#include "rounding.h"
#include "tensor.h"

#ifdef __aarch64__
#include <arm_neon.h>
#endif

enum { OUTPUTS = 8, HALF = 4, ROWS = 4, MOST_BLOCK = 256 };

#define INLINE static inline __attribute__((always_inline))

typedef struct {
  int64_t bits, block, outputs, inputs, blocks;
  size_t record;
} Form;

typedef struct {
  Form form;
  const uint8_t *weights;
  const int8_t *rounded; /* (rows, blocks, block) */
  const float *steps;    /* of each block of a row, and of a row's sums of integers behind them */
  float *out;
  int64_t rows;
} Product;

static size_t record_bytes(int64_t bits, int64_t block) {
  return OUTPUTS * 2 + (bits == 4 ? OUTPUTS : 0) + (size_t)(OUTPUTS * block * bits / 8);
}

#ifdef __aarch64__
typedef int32x4_t Sums;
typedef float32x4_t Floats;
typedef int8x16_t Bytes;

INLINE Bytes load_bytes(const void *from) { return vld1q_s8(from); }
INLINE Bytes low_half(Bytes packed) { return vandq_s8(packed, vdupq_n_s8(15)); }
INLINE Bytes high_half(Bytes packed) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(packed), 4)); }

/* Adds the products of four outputs' weights with four values, those of lane `lane`. */
#ifdef __ARM_FEATURE_DOTPROD
#define DOT(sum, weights, values, lane) vdotq_laneq_s32(sum, weights, values, lane)
#else
INLINE Sums dot(Sums sum, Bytes weights, Bytes values) {
  int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(values));
  int16x8_t high = vmull_s8(vget_high_s8(weights), vget_high_s8(values));
  return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}
#define DOT(sum, weights, values, lane) \
  dot(sum, weights, vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(values), lane)))
#endif

INLINE Sums zero_sums(void) { return vdupq_n_s32(0); }
INLINE Floats scales_of(const uint8_t *record, int half) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)record + half * HALF)));
}
INLINE Sums zeros_of(const uint8_t *record, int half) {
  uint16x8_t wide = vmovl_u8(vld1_u8(record + OUTPUTS * 2));
  return vreinterpretq_s32_u32(vmovl_u16(half ? vget_high_u16(wide) : vget_low_u16(wide)));
}
INLINE Sums take_zeros(Sums sum, Sums zeros, int32_t total) { return vmlsq_n_s32(sum, zeros, total); }
INLINE Floats add_block(Floats total, Sums sum, Floats scales, float step) {
  return vfmaq_f32(total, vcvtq_f32_s32(sum), vmulq_n_f32(scales, step));
}
INLINE Floats zero_floats(void) { return vdupq_n_f32(0); }
INLINE void store(float *to, Floats values) { vst1q_f32(to, values); }
#else
typedef int32_t Sums __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16), aligned(4)));
typedef int8_t Bytes __attribute__((vector_size(16)));

INLINE Bytes load_bytes(const void *from) {
  Bytes value;
  memcpy(&value, from, sizeof value);
  return value;
}
INLINE Bytes low_half(Bytes packed) { return packed & 15; }
INLINE Bytes high_half(Bytes packed) { return (packed >> 4) & 15; }
INLINE Sums dot(Sums sum, Bytes weights, Bytes values, int lane) {
  for (int output = 0; output < HALF; ++output)
    for (int i = 0; i < 4; ++i) sum[output] += weights[4 * output + i] * values[4 * lane + i];
  return sum;
}
#define DOT(sum, weights, values, lane) dot(sum, weights, values, lane)
INLINE Sums zero_sums(void) { return (Sums){0}; }
INLINE float float_of(uint16_t half) { /* no subnormal scales: the quantizer makes none */
  uint32_t bits = (uint32_t)(half & 0x8000) << 16 | ((uint32_t)(half & 0x7fff) ? (uint32_t)((half & 0x7fff) + 0x1c000) << 13 : 0);
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
INLINE Floats scales_of(const uint8_t *record, int half) {
  const uint16_t *from = (const uint16_t *)record + half * HALF;
  return (Floats){float_of(from[0]), float_of(from[1]), float_of(from[2]), float_of(from[3])};
}
INLINE Sums zeros_of(const uint8_t *record, int half) {
  const uint8_t *from = record + OUTPUTS * 2 + half * HALF;
  return (Sums){from[0], from[1], from[2], from[3]};
}
INLINE Sums take_zeros(Sums sum, Sums zeros, int32_t total) { return sum - zeros * total; }
INLINE Floats add_block(Floats total, Sums sum, Floats scales, float step) {
  return total + __builtin_convertvector(sum, Floats) * (scales * step);
}
INLINE Floats zero_floats(void) { return (Floats){0}; }
INLINE void store(float *to, Floats values) { memcpy(to, &values, sizeof values); }
#endif

/* One group of outputs of some rows; bits and rows are constants, so that sums stay in registers. */
INLINE void multiply(const Product *it, int bits, int64_t group, int64_t row, int rows) {
  const Form *form = &it->form;
  const uint8_t *record = it->weights + (size_t)(group * form->blocks) * form->record;
  const int64_t padded = form->blocks * form->block;
  Floats total[ROWS][2];
  for (int r = 0; r < rows; ++r) total[r][0] = total[r][1] = zero_floats();
  for (int64_t block = 0; block < form->blocks; ++block, record += form->record) {
    const int8_t *values = it->rounded + row * padded + block * form->block;
    const uint8_t *integers = record + OUTPUTS * 2 + (bits == 4 ? OUTPUTS : 0);
    Sums sum[ROWS][2];
    for (int r = 0; r < rows; ++r) sum[r][0] = sum[r][1] = zero_sums();
    for (int64_t i = 0; i < form->block; i += 16) {
      Bytes own[ROWS];
      for (int r = 0; r < rows; ++r) own[r] = load_bytes(values + r * padded + i);
#define STEP(lane)                                                        \
  {                                                                       \
    Bytes first = load_bytes(integers), second;                           \
    if (bits == 4) {                                                      \
      second = high_half(first), first = low_half(first), integers += 16; \
    } else {                                                              \
      second = load_bytes(integers + 16), integers += 32;                 \
    }                                                                     \
    for (int r = 0; r < rows; ++r) {                                      \
      sum[r][0] = DOT(sum[r][0], first, own[r], lane);                    \
      sum[r][1] = DOT(sum[r][1], second, own[r], lane);                   \
    }                                                                     \
  }
      STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
    }
    for (int half = 0; half < 2; ++half) {
      Floats scales = scales_of(record, half);
      for (int r = 0; r < rows; ++r) {
        const float *steps = it->steps + (row + r) * 2 * form->blocks;
        if (bits == 4) sum[r][half] = take_zeros(sum[r][half], zeros_of(record, half), (int32_t)steps[form->blocks + block]);
        total[r][half] = add_block(total[r][half], sum[r][half], scales, steps[block]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    float last[OUTPUTS], *out = it->out + (row + r) * form->outputs + group * OUTPUTS;
    int is_whole = (group + 1) * OUTPUTS <= form->outputs;
    float *to = is_whole ? out : last;
    store(to, total[r][0]);
    store(to + HALF, total[r][1]);
    if (!is_whole) memcpy(out, last, (size_t)(form->outputs - group * OUTPUTS) * sizeof *out);
  }
}

INLINE void multiply_group(const Product *it, int bits, int64_t group) {
  int64_t row = 0;
  for (; row + ROWS <= it->rows; row += ROWS) multiply(it, bits, group, row, ROWS);
  for (; row < it->rows; ++row) multiply(it, bits, group, row, 1);
}

static int multiply_share(int task, Group *tasks, void *data) {
  const Product *it = data;
  int64_t groups = (it->form.outputs + OUTPUTS - 1) / OUTPUTS;
  int64_t first = groups * task / tasks->num_task, end = groups * (task + 1) / tasks->num_task;
  for (int64_t group = first; group < end; ++group) {
    if (it->form.bits == 4)
      multiply_group(it, 4, group);
    else
      multiply_group(it, 8, group);
  }
  return 0;
}

/* A row block by block, with the sums of its integers. */
static void round_row(const float *values, const Form *form, int8_t *rounded, float *steps) {
  for (int64_t block = 0; block < form->blocks; ++block) {
    int64_t first = block * form->block, count = form->inputs - first < form->block ? form->inputs - first : form->block;
    int8_t *to = rounded + first;
    steps[block] = round_values(values + first, count, to);
    int32_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += to[i];
    memset(to + count, 0, (size_t)(form->block - count));
    steps[form->blocks + block] = (float)total;
  }
}

static void *room_of(void **room, size_t *had, size_t bytes) {
  if (bytes > *had) {
    free(*room);
    *room = aligned_room(*had = bytes);
  }
  return *room;
}

static Form form_of(const TVMFFIAny *value) {
  const int64_t *given = data_of(value);
  Form form = {.bits = given[0], .block = given[1], .outputs = given[2], .inputs = given[3]};
  form.blocks = (form.inputs + form.block - 1) / form.block;
  form.record = record_bytes(form.bits, form.block);
  return form;
}

static int64_t elements(const TVMFFIAny *value) {
  const DLTensor *tensor = tensor_of(value);
  int64_t count = 1;
  for (int i = 0; i < tensor->ndim; ++i) count *= tensor->shape[i];
  return count;
}

static int multiply_blocks(void *self, const TVMFFIAny *given, int32_t count, TVMFFIAny *result) {
  (void)self, (void)count, (void)result;
  static void *rounded, *steps;
  static size_t rounded_room, steps_room;
  Product it = {.form = form_of(&given[2]), .weights = data_of(&given[1]), .out = data_of(&given[3])};
  const Form *form = &it.form;
  it.rows = elements(&given[0]) / form->inputs;
  size_t padded = (size_t)(form->blocks * form->block), each = (size_t)(2 * form->blocks);
  int8_t *integers = room_of(&rounded, &rounded_room, padded * (size_t)it.rows);
  float *scales = room_of(&steps, &steps_room, each * (size_t)it.rows * sizeof *scales);
  const float *values = data_of(&given[0]);
  for (int64_t row = 0; row < it.rows; ++row)
    round_row(values + row * form->inputs, form, integers + (size_t)row * padded, scales + (size_t)row * each);
  it.rounded = integers, it.steps = scales;
  return launch_tasks(multiply_share, &it, 0);
}

/* Integer `input` of output `place` of a record. */
static int integer_of(const uint8_t *integers, int64_t bits, int place, int64_t input) {
  int64_t step = input / 4, byte = (place % HALF) * 4 + input % 4;
  if (bits == 8) return ((const int8_t *)integers)[step * 32 + (place / HALF) * 16 + byte];
  return integers[step * 16 + byte] >> (place / HALF * 4) & 15;
}

static void write_row(const uint8_t *weights, const Form *form, int64_t id, float *out) {
  const uint8_t *record = weights + (size_t)(id / OUTPUTS * form->blocks) * form->record;
  int place = (int)(id % OUTPUTS);
  for (int64_t block = 0; block < form->blocks; ++block, record += form->record) {
    const uint8_t *integers = record + OUTPUTS * 2 + (form->bits == 4 ? OUTPUTS : 0);
    float scale = scales_of(record, place / HALF)[place % HALF];
    int zero = form->bits == 4 ? record[OUTPUTS * 2 + place] : 0;
    int64_t first = block * form->block;
    for (int64_t i = 0; i < form->block && first + i < form->inputs; ++i)
      out[first + i] = scale * (float)(integer_of(integers, form->bits, place, i) - zero);
  }
}

static int look_up(void *self, const TVMFFIAny *given, int32_t count, TVMFFIAny *result) {
  (void)self, (void)count, (void)result;
  Form form = form_of(&given[2]);
  const DLTensor *ids = tensor_of(&given[0]);
  const void *data = data_of(&given[0]);
  for (int64_t i = 0; i < elements(&given[0]); ++i) {
    int64_t id = ids->dtype.bits == 64 ? ((const int64_t *)data)[i] : ((const int32_t *)data)[i];
    if (id < 0 || id >= form.outputs) fail(EXIT_RUNTIME, "a table of %lld rows has no row %lld", (long long)form.outputs, (long long)id);
    write_row(data_of(&given[1]), &form, id, (float *)data_of(&given[3]) + i * form.inputs);
  }
  return 0;
}

void register_blocks(void) {
  add_function("fleetc.block_product", multiply_blocks);
  add_function("fleetc.block_rows", look_up);
}
