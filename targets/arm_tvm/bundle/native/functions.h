/* Functions of a bundle's program that compiled code calls by name. */
#ifndef FLEETC_FUNCTIONS_H
#define FLEETC_FUNCTIONS_H

#include <string.h>
#include <tvm/ffi/c_api.h>

#include "tensor.h"

static inline const DLTensor *tensor_of(const TVMFFIAny *value) {
  if (value->type_index == kTVMFFIDLTensorPtr) return value->v_ptr;
  return (const DLTensor *)((const char *)value->v_obj + sizeof(TVMFFIObject));
}

static inline void *data_of(const TVMFFIAny *value) {
  const DLTensor *tensor = tensor_of(value);
  return (char *)tensor->data + tensor->byte_offset;
}

/* Makes a function known under a name. */
static inline void add_function(const char *name, TVMFFISafeCallType call) {
  TVMFFIByteArray key = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  if (TVMFFIFunctionCreate(NULL, call, NULL, &function) != 0 || TVMFFIFunctionSetGlobal(&key, function, 1) != 0)
    fail(EXIT_RUNTIME, "the runtime does not take %s", name);
}

#endif
