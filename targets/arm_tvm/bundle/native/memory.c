#include "memory.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#ifndef MEMORY_ROOT
#define MEMORY_ROOT "" /* tests put a folder here that holds proc/ and sys/ */
#endif

enum { KIB = 1024, MAX_LINE = 512 };

/* The number that a file begins with, or that follows `key` at the start of a line; -1 where there is none, as of "max". */
static long long read_number(const char *path, const char *key) {
  char line[MAX_LINE];
  long long value = -1;
  size_t length = strlen(key);
  FILE *file = fopen(path, "r");
  while (file && fgets(line, sizeof line, file))
    if (strncmp(line, key, length) == 0 && sscanf(line + length, " %lld", &value) == 1) break;
  if (file) fclose(file);
  return value;
}

/* What is left in one control group: pages of files that the kernel can drop at once do not count as used. */
static long long left_in(const char *group, const char *limit_name, const char *used_name, const char *droppable_key) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", group, limit_name);
  long long limit = read_number(path, "");
  snprintf(path, sizeof path, "%s/%s", group, used_name);
  long long used = read_number(path, "");
  snprintf(path, sizeof path, "%s/memory.stat", group);
  long long droppable = read_number(path, droppable_key);
  if (limit < 0 || used < 0) return LLONG_MAX;
  used -= droppable > 0 ? droppable : 0;
  return used > limit ? 0 : limit - (used > 0 ? used : 0);
}

/* The least that is left in a group and in all above it. */
static long long left_along(const char *mount, char *path, int version) {
  char group[PATH_MAX];
  long long least = LLONG_MAX;
  for (char *end = path + strlen(path); end; end = strrchr(path, '/')) {
    *end = '\0';
    snprintf(group, sizeof group, "%s%s%s", MEMORY_ROOT, mount, path);
    long long left = version == 2 ? left_in(group, "memory.max", "memory.current", "inactive_file ")
                                  : left_in(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ");
    if (left < least) least = left;
  }
  return least;
}

/* Whether a list like `cpu,memory` has an entry. */
static int has_entry(const char *list, const char *entry) {
  size_t length = strlen(entry);
  for (const char *at = list; (at = strstr(at, entry)); ++at)
    if ((at == list || at[-1] == ',') && (at[length] == ',' || at[length] == '\0')) return 1;
  return 0;
}

long long free_bytes(void) {
  char line[MAX_LINE];
  long long available = read_number(MEMORY_ROOT "/proc/meminfo", "MemAvailable:");
  long long least = available < 0 ? LLONG_MAX : available * KIB;
  FILE *file = fopen(MEMORY_ROOT "/proc/self/cgroup", "r");
  while (file && fgets(line, sizeof line, file)) { /* `0::/path` of version 2, `7:memory:/path` of version 1 */
    char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;
    if (!path) continue;
    *path++ = '\0', ++list;
    path[strcspn(path, "\n")] = '\0';
    long long left = LLONG_MAX;
    if (!*list) left = left_along("/sys/fs/cgroup", path, 2);
    if (has_entry(list, "memory")) left = left_along("/sys/fs/cgroup/memory", path, 1);
    if (left < least) least = left;
  }
  if (file) fclose(file);
  return least;
}

long long process_bytes(pid_t pid) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/proc/%d/smaps_rollup", MEMORY_ROOT, (int)pid);
  long long kib = read_number(path, "Pss:");
  snprintf(path, sizeof path, "%s/proc/%d/status", MEMORY_ROOT, (int)pid);
  if (kib < 0) kib = read_number(path, "VmRSS:"); /* before Linux 4.14 */
  return kib < 0 ? 0 : kib * KIB;
}

long long payload_bytes(const char *weights, const char *model) {
  struct stat facts;
  long long total = 0;
  if (stat(weights, &facts) == 0) total += facts.st_size;
  if (stat(model, &facts) == 0) total += facts.st_size;
  return total;
}
