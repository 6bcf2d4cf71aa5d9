#include "model.h"

#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

enum { POOLED_ALLOCATOR = 2 };

static TVMFFIObjectHandle main_function;
static TVMFFIAny *arguments;
static int num_arguments;
static TVMFFIAny result;

static _Noreturn void fail_raised(const char *doing) {
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (!error) fail(EXIT_RUNTIME, "%s: TVM gives no reason", doing);
  const TVMFFIErrorCell *cell = (const TVMFFIErrorCell *)((const char *)error + sizeof(TVMFFIObject));
  fail(EXIT_RUNTIME, "%s: %.*s", doing, (int)cell->message.size, cell->message.data);
}

static TVMFFIAny call(TVMFFIObjectHandle function, TVMFFIAny *given, int count, const char *doing) {
  TVMFFIAny returned = {.type_index = kTVMFFINone};
  if (TVMFFIFunctionCall(function, given, count, &returned) != 0) fail_raised(doing);
  return returned;
}

static TVMFFIObjectHandle global_function(const char *name) {
  TVMFFIByteArray key = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  if (TVMFFIFunctionGetGlobal(&key, &function) != 0 || !function)
    fail(EXIT_RUNTIME, "the libraries in runtime/ have no function %s", name);
  return function;
}

static TVMFFIAny integer(int64_t value) { return (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value}; }

static TVMFFIAny text(const char *value) { return (TVMFFIAny){.type_index = kTVMFFIRawStr, .v_c_str = value}; }

static TVMFFIObjectHandle module_function(TVMFFIAny module, const char *name) {
  TVMFFIAny given[] = {module, text(name), {.type_index = kTVMFFIBool, .v_int64 = 1}};
  TVMFFIAny function = call(global_function("ffi.ModuleGetFunction"), given, 3, name);
  if (function.type_index != kTVMFFIFunction) fail(EXIT_RUNTIME, "the model has no function %s", name);
  return function.v_obj;
}

void load_model(const char *path) {
  TVMFFIAny argument = text(path);
  TVMFFIAny library = call(global_function("ffi.ModuleLoadFromFile"), &argument, 1, path);
  TVMFFIAny machine = call(module_function(library, "vm_load_executable"), NULL, 0, path);
  TVMFFIAny device[] = {integer(kDLCPU), integer(0), integer(POOLED_ALLOCATOR)};
  call(module_function(machine, "vm_initialization"), device, 3, path);
  main_function = module_function(machine, "main");
}

void bind_argument(int index, const Spec *spec, void *data) {
  if (index >= num_arguments) {
    arguments = realloc(arguments, sizeof *arguments * (size_t)(index + 1));
    num_arguments = index + 1;
    if (!arguments) fail(EXIT_RUNTIME, "out of memory");
  }
  DLManagedTensor *managed = calloc(1, sizeof *managed);
  int64_t *shape = calloc(MAX_RANK, sizeof *shape);
  if (!managed || !shape) fail(EXIT_RUNTIME, "out of memory");
  memcpy(shape, spec->shape, sizeof spec->shape);
  managed->dl_tensor = (DLTensor){.data = data,
                                  .device = {kDLCPU, 0},
                                  .ndim = spec->rank,
                                  .dtype = {spec->code, spec->bits, 1},
                                  .shape = shape};
  TVMFFIObjectHandle tensor = NULL;
  if (TVMFFITensorFromDLPack(managed, ALIGNMENT_BYTES, 1, &tensor) != 0) fail_raised(spec->name);
  arguments[index] = (TVMFFIAny){.type_index = kTVMFFITensor, .v_obj = tensor};
}

void run_model(void) {
  if (result.type_index >= kTVMFFIStaticObjectBegin) TVMFFIObjectDecRef(result.v_obj);
  result = call(main_function, arguments, num_arguments, "the model failed");
}

static const DLTensor *tensor_of(TVMFFIAny value, const Spec *spec) {
  if (value.type_index != kTVMFFITensor) fail(EXIT_RUNTIME, "output '%s' is not a tensor", spec->name);
  return (const DLTensor *)((const char *)value.v_obj + sizeof(TVMFFIObject));
}

const void *output_data(int index, int num_outputs, const Spec *spec) {
  TVMFFIAny value = result;
  if (value.type_index == kTVMFFIArray) {
    const TVMFFISeqCell *items = (const TVMFFISeqCell *)((const char *)value.v_obj + sizeof(TVMFFIObject));
    if (items->size != num_outputs) fail(EXIT_RUNTIME, "the model gives %lld outputs", (long long)items->size);
    value = ((const TVMFFIAny *)items->data)[index];
  }
  const DLTensor *tensor = tensor_of(value, spec);
  if (tensor->ndim != spec->rank || tensor->dtype.code != spec->code || tensor->dtype.bits != spec->bits ||
      memcmp(tensor->shape, spec->shape, sizeof(int64_t) * (size_t)spec->rank) != 0)
    fail(EXIT_RUNTIME, "output '%s' is not what payload/io.txt declares", spec->name);
  return (const char *)tensor->data + tensor->byte_offset;
}
