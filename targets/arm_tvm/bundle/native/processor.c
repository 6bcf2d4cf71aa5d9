#include "processor.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor.h"
#include "tiles.h"

#ifndef CPU_INFO
#define CPU_INFO "/proc/cpuinfo"
#endif

enum { MAX_FLAG = 64, MAX_MISSING = 1024 };

/* The flags of the first processor, between spaces; NULL where the kernel lists none. */
static char *read_flags(void) {
  FILE *file = fopen(CPU_INFO, "r");
  if (!file) return NULL;
  char *line = NULL, *flags = NULL;
  size_t room = 0;
  while (!flags && getline(&line, &room, file) > 0) {
    char *colon = strchr(line, ':');
    if (strncmp(line, "flags", 5) != 0 || !colon) continue;
    size_t length = strlen(colon);
    flags = malloc(length + 2);
    if (!flags) fail(EXIT_RUNTIME, "out of memory");
    memcpy(flags, colon, length + 1);
    flags[0] = ' ';
    flags[length - 1] = ' '; /* the end of the line */
  }
  free(line);
  fclose(file);
  return flags;
}

void require_processor(const char *path) {
  FILE *file = fopen(path, "r");
  if (!file && errno == ENOENT) return;
  if (!file) fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
  char *flags = read_flags();
  char flag[MAX_FLAG], word[MAX_FLAG + 2], missing[MAX_MISSING] = "";
  int has_tiles = 0;
  while (flags && fscanf(file, "%63s", flag) == 1) {
    has_tiles |= strcmp(flag, "amx_tile") == 0;
    snprintf(word, sizeof word, " %s ", flag);
    size_t used = strlen(missing);
    if (!strstr(flags, word)) snprintf(missing + used, sizeof missing - used, "%s%s", used ? ", " : "", flag);
  }
  fclose(file);
  free(flags);
  if (*missing) fail(EXIT_RUNTIME, "this processor lacks %s, which the model is compiled for", missing);
  if (has_tiles && !request_tiles()) fail(EXIT_RUNTIME, "Linux refuses AMX to this program: %s", strerror(errno));
}
