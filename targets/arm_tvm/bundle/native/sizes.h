/* A range of sizes of one dimension, as payload/sizes.txt declares it: which are built, and how others are made of them. */
#ifndef FLEETC_SIZES_H
#define FLEETC_SIZES_H

#include <stddef.h>
#include <stdint.h>

#include "tensor.h"

/* Reads lines `least N`, `most N`, `divides 0|1`, `size N` for each built one, `dimension NAME`; where the file is not
 * there, all sizes are fixed, which is one size without a name. */
void read_sizes(const char *path, Sizes *out);

/* The tensor at a size that the bundle takes. */
Spec spec_at(const Sizes *sizes, const Spec *spec, int64_t size);

/* The axis that depends on the dimension, where a size is divided; -1 where none does. */
int open_axis(const Spec *spec);

/* The size at which a tensor has a shape, or so many bytes; 0 where it has them at none. */
int64_t size_of_shape(const Sizes *sizes, const Spec *spec, const int64_t *shape, int rank);
int64_t size_of_bytes(const Sizes *sizes, const Spec *spec, uint64_t bytes);

/* Writes `batch is 40; this bundle takes 1 to 32`, of a size that it does not take; nothing of one that it takes. */
int is_taken(const Sizes *sizes, int64_t size, char *why, size_t room);

/* Place of the built size that is computed next of so many that are left. */
int next_part(const Sizes *sizes, int64_t left);

/* Copies places `first` to `first + count - 1` of a tensor of a size out of it, or into it. */
void copy_places(const Sizes *sizes, const Spec *spec, int64_t size, int64_t first, int64_t count, char *whole, char *part,
                 int into_whole);

#endif
