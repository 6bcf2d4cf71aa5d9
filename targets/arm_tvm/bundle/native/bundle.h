/* One bundle on disk: where its files stand, and how its model is loaded. */
#ifndef FLEETC_BUNDLE_H
#define FLEETC_BUNDLE_H

#include <limits.h>

#include "cores.h"
#include "tensor.h"

typedef struct {
  char model[PATH_MAX], signature[PATH_MAX], extra[PATH_MAX], weights[PATH_MAX], cores[PATH_MAX], processor[PATH_MAX];
  char sizes[PATH_MAX], decoder[PATH_MAX];
} Places;

/* The files of the bundle in a folder; of the folder that holds this program where it is NULL. */
Places find_places(const char *folder);

/* Reads what the model takes and gives, and at which sizes. */
void read_border(const Places *places, Signature *out);

/* Loads the model into this process and binds its weights; the inputs are the caller's to bind. */
Cores load_bundle(const Places *places, const Signature *signature);

#endif
