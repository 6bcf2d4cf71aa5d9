/* AMX: Linux gives the memory of its tiles only to processes that ask for it, and to those that they start afterwards. */
#ifndef FLEETC_TILES_H
#define FLEETC_TILES_H

#include <sys/syscall.h>
#include <unistd.h>

/* Asks for it, for all threads of this process; 0 where Linux refuses, or the processor has none. */
static inline int request_tiles(void) {
#ifdef __x86_64__
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return 0;
#endif
}

#endif
