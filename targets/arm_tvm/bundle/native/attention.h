/* Attention over a cache of keys and values that is written in place. */
#ifndef FLEETC_ATTENTION_H
#define FLEETC_ATTENTION_H

#include <stdint.h>

/* A cache in 8 bits is a row of integers for each head and token, and behind them the float that they are multiplied by. */
enum { FACTOR_BYTES = 4 };

/* Rounds rows of `size` floats, and makes floats of them again. */
void narrow_rows(const float *from, int64_t rows, int64_t size, int8_t *to);
void widen_rows(const int8_t *from, int64_t rows, int64_t size, float *to);

/* Makes the function `fleetc.attention` known to compiled code, which graph/decoder.py has call it:
 *
 *   queries (1, heads, tokens, size), keys and values (1, groups, tokens, size), cache of keys and of values (1, groups,
 *   context, size), count of tokens before these (1), scale (1)  ->  (1, tokens, heads * size), all but the count float32;
 *   or caches (1, groups, context, size + FACTOR_BYTES) of int8.
 *
 * New keys and values are written behind those of earlier tokens, and a token sees these, itself and new ones before it:
 * what it takes is by the tokens that are there, not by the context. */
void register_attention(void);

#endif
