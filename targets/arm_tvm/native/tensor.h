/* The tensors a model takes and gives: what payload/io.txt declares, and .npy files of exactly that. */
#ifndef FLEETC_TENSOR_H
#define FLEETC_TENSOR_H

#include <stddef.h>
#include <stdint.h>

enum { MAX_RANK = 16, MAX_TENSORS = 256, MAX_NAME = 512, ALIGNMENT_BYTES = 64 };
enum { EXIT_RUNTIME = 1, EXIT_USAGE = 2 };

typedef struct {
  char name[MAX_NAME];
  char dtype[16];   /* numpy's name: float32 */
  char descr[4];    /* how .npy spells it: <f4 */
  uint8_t code;     /* DLPack type code */
  uint8_t bits;
  int rank;
  int64_t shape[MAX_RANK];
  size_t bytes;
} Spec;

typedef struct {
  Spec inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  int num_inputs, num_outputs;
} Signature;

/* Prints `run: message` to stderr and exits with `code`. */
_Noreturn void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Reads lines `input|output dtype shape name`; the shape is `1,3,32,32`, or `-` for a scalar. */
void read_signature(const char *path, Signature *out);

/* Writes `1x3x32x32`, or `scalar`. */
void format_shape(const int64_t *shape, int rank, char *out, size_t out_bytes);

/* Reads a .npy file that must have the spec's dtype and shape, C order; the buffer is aligned and the caller's. */
void *read_npy(const char *path, const Spec *spec);

void write_npy(const char *path, const Spec *spec, const void *data);

#endif
