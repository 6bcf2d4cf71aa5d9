/* A decoder language model: what payload/decoder.txt says of it, and its steps over a cache that stays in place. */
#ifndef FLEETC_DECODER_H
#define FLEETC_DECODER_H

#include "tensor.h"

typedef enum { IDS, MASK, POSITIONS, CACHE, VALUES, LOGITS } TensorKind;

/* An input or output of the model as it was exported. */
typedef struct {
  TensorKind kind;
  int place; /* of compiled code's inputs, and of its outputs where these are values */
  Spec spec; /* at the smallest built size */
  int is_narrow; /* a cache in 8 bits, whose spec is of the floats that it stands for */
} Border;

typedef struct {
  int64_t context, prefill, vocabulary;
  int ids, positions, start; /* inputs of compiled code; -1: there is none */
  Border inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  int num_inputs, num_outputs;
} Decoder;

/* Reads the lines of payload/decoder.txt into zeros. */
void read_decoder(const char *path, const Signature *signature, Decoder *out);

/* Gets the cache and the other inputs of compiled code, whose weights are bound. */
void begin_decoder(const Decoder *decoder, const Signature *signature);

/* Reads tokens behind those in the cache, in built sizes. After each of those `each` may look at outputs. */
void read_ids(const int64_t *ids, int64_t count, void (*each)(int64_t first, int64_t count));

/* Values of all tokens that are read next, for an input that has some for each. */
void give_values(int input, const char *values);

/* Tokens in the cache. */
int64_t tokens_read(void);
void set_tokens_read(int64_t count);

/* The cache of one input: (1, heads, context, size). */
char *cache_of(int input);

/* Logits of one hidden vector, of the last one that was read where it is NULL. */
const float *logits_of(char *hidden);

#endif
