/* Floats rounded to 8 bits by one factor, as the model says it (compress/weight_only/round_activations.py). */
#ifndef FLEETC_ROUNDING_H
#define FLEETC_ROUNDING_H

#include <math.h>
#include <stdint.h>

#define LEAST_STEP 0x1p-100f /* of a block of zeros; round_activations.py says the same */

/* x ~ step * integer, with the largest at +-127; ties to even, 0 where all are 0. Returns the step. */
static inline float round_values(const float *values, int64_t count, int8_t *to) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = fabsf(values[i]) > most ? fabsf(values[i]) : most;
  float step = most * (1.0f / 127.0f);
  step = step < LEAST_STEP ? LEAST_STEP : step;
  for (int64_t i = 0; i < count; ++i) to[i] = (int8_t)(int32_t)rintf(values[i] / step);
  return step;
}

#endif
