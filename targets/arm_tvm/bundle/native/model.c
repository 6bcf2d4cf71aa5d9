#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#include "sizes.h"

enum { POOLED_ALLOCATOR = 2 };

/* A built size that a run computes: all of the inputs, or some places of them. */
typedef struct {
  int function;
  int64_t first, size;
  TVMFFIAny *arguments; /* inputs, then weights */
  char **copies;        /* of an input that does not lie as the model takes it: where it is copied; else NULL */
} Part;

static TVMFFIObjectHandle functions[MAX_SIZES], head;
static TVMFFIAny machine, head_result;
static TVMFFIAny *weights;
static int num_weights;
static const Signature *signature;
static char **inputs;
static int64_t bound_size;
static Part *parts;
static int num_parts;
static char *joined[MAX_TENSORS]; /* outputs of several parts, one after the other */
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

void load_model(const char *path, const Sizes *sizes) {
  TVMFFIAny argument = text(path);
  TVMFFIAny library = call(global_function("ffi.ModuleLoadFromFile"), &argument, 1, path);
  machine = call(module_function(library, "vm_load_executable"), NULL, 0, path);
  TVMFFIAny device[] = {integer(kDLCPU), integer(0), integer(POOLED_ALLOCATOR)};
  call(module_function(machine, "vm_initialization"), device, 3, path);
  for (int i = 0; i < sizes->count; ++i) {
    char name[32] = "main";
    /* graph/lower.py names them so */
    if (*sizes->dimension) snprintf(name, sizeof name, "main_%lld", (long long)sizes->built[i]);
    functions[i] = module_function(machine, name);
  }
}

static void free_managed(DLManagedTensor *managed) {
  free(managed->dl_tensor.shape);
  free(managed);
}

static TVMFFIAny tensor_at(const Spec *spec, void *data) {
  DLManagedTensor *managed = calloc(1, sizeof *managed);
  int64_t *shape = calloc(MAX_RANK, sizeof *shape);
  if (!managed || !shape) fail(EXIT_RUNTIME, "out of memory");
  memcpy(shape, spec->shape, sizeof spec->shape);
  managed->dl_tensor = (DLTensor){.data = data,
                                  .device = {kDLCPU, 0},
                                  .ndim = spec->rank,
                                  .dtype = {spec->code, spec->bits, 1},
                                  .shape = shape};
  managed->deleter = free_managed;
  TVMFFIObjectHandle tensor = NULL;
  if (TVMFFITensorFromDLPack(managed, ALIGNMENT_BYTES, 1, &tensor) != 0) fail_raised(spec->name);
  return (TVMFFIAny){.type_index = kTVMFFITensor, .v_obj = tensor};
}

static void *room_for(void *array, int count, size_t item_bytes) {
  array = realloc(array, item_bytes * (size_t)(count ? count : 1));
  if (!array) fail(EXIT_RUNTIME, "out of memory");
  return array;
}

void bind_weight(int index, const Spec *spec, void *data) {
  if (index >= num_weights) weights = room_for(weights, num_weights = index + 1, sizeof *weights);
  weights[index] = tensor_at(spec, data);
}

static void free_parts(void) {
  for (; num_parts > 0; --num_parts) {
    Part *part = &parts[num_parts - 1];
    for (int i = 0; i < signature->num_inputs; ++i) {
      TVMFFIObjectDecRef(part->arguments[i].v_obj);
      free(part->copies[i]);
    }
    free(part->arguments);
    free(part->copies);
  }
}

/* Where an input of a part begins: in the caller's buffer, or in a copy where a place of it stands at an address that
 * compiled code does not take, or other axes come first. */
static char *input_of(const Part *part, int index, const Spec *spec) {
  int axis = open_axis(&signature->inputs[index]);
  if (axis < 0 || part->size == bound_size) return inputs[index];
  size_t offset = spec->bytes / (size_t)part->size * (size_t)part->first;
  int is_first = 1;
  for (int i = 0; i < axis; ++i) is_first &= spec->shape[i] == 1;
  if (is_first && offset % ALIGNMENT_BYTES == 0) return inputs[index] + offset;
  return part->copies[index] = aligned_room(spec->bytes);
}

static void add_part(int64_t first) {
  parts = room_for(parts, num_parts + 1, sizeof *parts);
  Part *part = &parts[num_parts++];
  int function = next_part(&signature->sizes, bound_size - first), count = signature->num_inputs + num_weights;
  *part = (Part){.function = function, .first = first, .size = signature->sizes.built[function]};
  part->arguments = room_for(NULL, count, sizeof *part->arguments);
  part->copies = calloc((size_t)signature->num_inputs + 1, sizeof *part->copies);
  if (!part->copies) fail(EXIT_RUNTIME, "out of memory");
  for (int i = 0; i < signature->num_inputs; ++i) {
    Spec spec = spec_at(&signature->sizes, &signature->inputs[i], part->size);
    part->arguments[i] = tensor_at(&spec, input_of(part, i, &spec));
  }
  memcpy(part->arguments + signature->num_inputs, weights, sizeof *weights * (size_t)num_weights);
}

void bind_inputs(const Signature *bound, int64_t size, char *const *data) {
  if (signature) free_parts();
  signature = bound, bound_size = size;
  inputs = room_for(inputs, bound->num_inputs, sizeof *inputs);
  memcpy(inputs, data, sizeof *inputs * (size_t)bound->num_inputs);
  for (int64_t first = 0; first < size; first += parts[num_parts - 1].size) add_part(first);
  for (int i = 0; i < bound->num_outputs; ++i) {
    free(joined[i]);
    joined[i] = num_parts > 1 ? aligned_room(spec_at(&bound->sizes, &bound->outputs[i], size).bytes) : NULL;
  }
}

void load_head(void) { head = module_function(machine, "head"); }

static const DLTensor *tensor_of(TVMFFIAny value, const Spec *spec) {
  if (value.type_index != kTVMFFITensor) fail(EXIT_RUNTIME, "output '%s' is not a tensor", spec->name);
  return (const DLTensor *)((const char *)value.v_obj + sizeof(TVMFFIObject));
}

/* Data of output `index` of the part that ran last. */
static const char *part_output(int index, const Part *part) {
  TVMFFIAny value = result;
  Spec spec = spec_at(&signature->sizes, &signature->outputs[index], part->size);
  if (value.type_index == kTVMFFIArray) {
    const TVMFFISeqCell *items = (const TVMFFISeqCell *)((const char *)value.v_obj + sizeof(TVMFFIObject));
    if (items->size != signature->num_outputs) fail(EXIT_RUNTIME, "the model gives %lld outputs", (long long)items->size);
    value = ((const TVMFFIAny *)items->data)[index];
  }
  const DLTensor *tensor = tensor_of(value, &spec);
  if (tensor->ndim != spec.rank || tensor->dtype.code != spec.code || tensor->dtype.bits != spec.bits ||
      memcmp(tensor->shape, spec.shape, sizeof(int64_t) * (size_t)spec.rank) != 0)
    fail(EXIT_RUNTIME, "output '%s' is not what payload/io.txt declares", spec.name);
  return (const char *)tensor->data + tensor->byte_offset;
}

static void run_part(const Part *part) {
  for (int i = 0; i < signature->num_inputs; ++i)
    if (part->copies[i])
      copy_places(&signature->sizes, &signature->inputs[i], bound_size, part->first, part->size, inputs[i], part->copies[i], 0);
  if (result.type_index >= kTVMFFIStaticObjectBegin) TVMFFIObjectDecRef(result.v_obj);
  int count = signature->num_inputs + num_weights;
  result = call(functions[part->function], part->arguments, count, "the model failed");
}

static void join_outputs(const Part *part) {
  for (int i = 0; i < signature->num_outputs; ++i) {
    const Spec *spec = &signature->outputs[i];
    char *own = (char *)part_output(i, part);
    if (open_axis(spec) >= 0)
      copy_places(&signature->sizes, spec, bound_size, part->first, part->size, joined[i], own, 1);
    else if (part->first == 0)
      memcpy(joined[i], own, spec->bytes);
  }
}

void run_model(void) {
  for (int i = 0; i < num_parts; ++i) {
    run_part(&parts[i]);
    if (num_parts > 1) join_outputs(&parts[i]);
  }
}

const void *output_data(int index) { return joined[index] ? joined[index] : part_output(index, &parts[0]); }

const float *run_head(const Spec *spec, const Spec *logits, void *hidden) {
  static TVMFFIAny *given;
  given = room_for(given, num_weights + 1, sizeof *given);
  given[0] = tensor_at(spec, hidden);
  memcpy(given + 1, weights, sizeof *weights * (size_t)num_weights);
  if (head_result.type_index >= kTVMFFIStaticObjectBegin) TVMFFIObjectDecRef(head_result.v_obj);
  head_result = call(head, given, num_weights + 1, "the model's head failed");
  TVMFFIObjectDecRef(given[0].v_obj);
  const DLTensor *tensor = tensor_of(head_result, logits);
  return (const float *)((const char *)tensor->data + tensor->byte_offset);
}
