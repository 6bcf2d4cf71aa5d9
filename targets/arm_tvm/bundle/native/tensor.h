/* The tensors of a model: what payload/io.txt declares, .npy files of exactly that, and the mapped weights. */
#ifndef FLEETC_TENSOR_H
#define FLEETC_TENSOR_H

#include <stddef.h>
#include <stdint.h>

enum { MAX_RANK = 16, MAX_TENSORS = 1024, MAX_NAME = 512, MAX_SIZES = 64, ALIGNMENT_BYTES = 64 };
enum { EXIT_RUNTIME = 1, EXIT_USAGE = 2 };

typedef struct {
  char name[MAX_NAME];
  char dtype[16];   /* numpy's name: float32 */
  char descr[4];    /* how .npy spells it: <f4 */
  uint8_t code;     /* DLPack type code */
  uint8_t bits;
  int rank;
  int64_t shape[MAX_RANK];    /* at the first of the built sizes */
  int64_t *extents[MAX_RANK]; /* of an axis that depends on the size: at each built one; else NULL */
  size_t bytes;
} Spec;

/* The sizes of the one dimension that may have several; sizes.h has what is done with them. */
typedef struct {
  char dimension[MAX_NAME]; /* empty where all sizes are fixed */
  int64_t least, most;
  int64_t built[MAX_SIZES]; /* ascending */
  int count, divides;
} Sizes;

typedef struct {
  Sizes sizes;
  Spec inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  Spec *weights; /* in the order in which the model takes them, after its inputs */
  int num_inputs, num_outputs, num_weights;
} Signature;

/* Prints the program's name and a message to stderr and exits with `code`. */
_Noreturn void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Reads lines `input|output|weight dtype shape name`; the shape is `1,3,32,32`, or `-` for a scalar, and has an extent
 * for each built size where it depends on it: `1|2|8,3,32,32`. `out` has the sizes already. */
void read_signature(const char *path, Signature *out);

/* Writes `1x3x32x32`, or `scalar`. */
void format_shape(const int64_t *shape, int rank, char *out, size_t out_bytes);

/* Reads the shape of a .npy file, and gives its rank. */
int read_npy_shape(const char *path, int64_t *shape);

/* Reads a .npy file that must have the spec's dtype and shape, C order; the buffer is aligned and the caller's. */
void *read_npy(const char *path, const Spec *spec);

/* Memory at a multiple of ALIGNMENT_BYTES; exits where there is none. */
void *aligned_room(size_t bytes);

/* Maps a file in which the weights stand one after another, each from a multiple of ALIGNMENT_BYTES on, read-only and
 * without a copy: the kernel reads pages when they are first used and may drop them. `data[i]` is set for each. */
void map_weights(const char *path, const Spec *weights, int count, void **data);

void write_npy(const char *path, const Spec *spec, const void *data);

#endif
