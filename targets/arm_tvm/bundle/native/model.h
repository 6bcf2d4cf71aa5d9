/* One compiled model in TVM's virtual machine, reached through tvm-ffi's C interface. */
#ifndef FLEETC_MODEL_H
#define FLEETC_MODEL_H

#include "tensor.h"

/* Loads the library at `path` onto the CPU. Exits with a message if it cannot. */
void load_model(const char *path);

/* Binds argument `index` (inputs first, then weights) to a buffer, which must outlive the calls. */
void bind_argument(int index, const Spec *spec, void *data);

/* Runs the model once on the bound arguments. */
void run_model(void);

/* Data of output `index` of the last run, checked against the spec; valid until the next run. */
const void *output_data(int index, int num_outputs, const Spec *spec);

#endif
