/* Attention over a cache of keys and values that is written in place. */
#ifndef FLEETC_ATTENTION_H
#define FLEETC_ATTENTION_H

/* Makes the function `fleetc.attention` known to compiled code, which graph/decoder.py has call it:
 *
 *   queries (1, heads, tokens, size), keys and values (1, groups, tokens, size), cache of keys and of values (1, groups,
 *   context, size), count of tokens before these (1), scale (1)  ->  (1, tokens, heads * size), all but the count float32.
 *
 * New keys and values are written behind those of earlier tokens, and a token sees these, itself and new ones before it:
 * what it takes is by the tokens that are there, not by the context. */
void register_attention(void);

#endif
