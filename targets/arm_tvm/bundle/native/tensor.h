/* The tensors of a model: what payload/io.txt declares, .npy files of exactly that, and the mapped weights. */
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
  Spec *weights; /* in the order in which the model takes them, after its inputs */
  int num_inputs, num_outputs, num_weights;
} Signature;

/* Prints `run: message` to stderr and exits with `code`. */
_Noreturn void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Reads lines `input|output|weight dtype shape name`; the shape is `1,3,32,32`, or `-` for a scalar. */
void read_signature(const char *path, Signature *out);

/* Writes `1x3x32x32`, or `scalar`. */
void format_shape(const int64_t *shape, int rank, char *out, size_t out_bytes);

/* Reads a .npy file that must have the spec's dtype and shape, C order; the buffer is aligned and the caller's. */
void *read_npy(const char *path, const Spec *spec);

/* Maps a file in which the weights stand one after another, each from a multiple of ALIGNMENT_BYTES on, read-only and
 * without a copy: the kernel reads pages when they are first used and may drop them. `data[i]` is set for each. */
void map_weights(const char *path, const Spec *weights, int count, void **data);

void write_npy(const char *path, const Spec *spec, const void *data);

#endif
