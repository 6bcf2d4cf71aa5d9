/* One compiled model in TVM's virtual machine, reached through tvm-ffi's C interface. */
#ifndef FLEETC_MODEL_H
#define FLEETC_MODEL_H

#include "tensor.h"

/* Loads the library at `path` onto the CPU: one function for each built size. Exits with a message if it cannot. */
void load_model(const char *path, const Sizes *sizes);

/* Binds weight `index` to a buffer, which must outlive the calls. */
void bind_weight(int index, const Spec *spec, void *data);

/* Binds the inputs to buffers at one size; they and the signature must outlive the runs. A size that is not built is
 * divided into built ones. */
void bind_inputs(const Signature *signature, int64_t size, char *const *data);

/* Runs the model once on what is bound. */
void run_model(void);

/* Data of output `index` of the last run, at the size that is bound; valid until the next run. */
const void *output_data(int index);

/* Of a decoder: also loads the function that makes logits of a token's hidden vector, after `load_model`. */
void load_head(void);

/* The logits of a hidden vector; valid until the next call. */
const float *run_head(const Spec *spec, const Spec *logits, void *hidden);

#endif
