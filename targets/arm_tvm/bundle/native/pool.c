#include "pool.h"

#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tensor.h"

enum {
  IDLE_NS = 50000, /* longer than what lies between two kernels of a model that are spread over threads */
  LATE_NS = 20000, /* by so much tasks of one size differ; a thread that takes longer waits for a processor */
  LOOKS = 64,      /* between two readings of the clock */
};

static int num_threads = 1, num_started = 0;
/* Number of the round (32 bits), how many tasks it has (16), number of its next task (16): who claims a task must see
 * all three as they were at one moment. */
static _Atomic uint64_t next;
static _Atomic uint32_t round_number; /* by itself, for the kernel to compare */
static atomic_int unfinished, failed, num_asleep;
static Task task;
static void *task_data;
static Group group;
static _Thread_local int is_inside;

static void pause_processor(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Does tasks of a round until none is left. A claim that succeeds keeps the round from ending. */
static void do_tasks(uint32_t round) {
  uint64_t seen = atomic_load_explicit(&next, memory_order_acquire);
  while (seen >> 32 == round && (seen & 0xffff) < (seen >> 16 & 0xffff)) {
    if (!atomic_compare_exchange_weak(&next, &seen, seen + 1)) continue;
    is_inside = 1;
    if (task((int)(seen & 0xffff), &group, task_data) != 0) atomic_store(&failed, 1);
    is_inside = 0;
    atomic_fetch_sub_explicit(&unfinished, 1, memory_order_acq_rel);
    seen = atomic_load_explicit(&next, memory_order_acquire);
  }
}

/* The number of a round that is another than `seen`, when there is one. */
static uint32_t wait_for_round(uint32_t seen) {
  uint32_t round;
  int64_t end = now_ns() + IDLE_NS;
  do {
    for (int look = 0; look < LOOKS; ++look) {
      if ((round = atomic_load_explicit(&round_number, memory_order_acquire)) != seen) return round;
      pause_processor();
    }
  } while (now_ns() < end);
  /* Whoever begins a round reads num_asleep after it, and the kernel compares before it puts to sleep. */
  atomic_fetch_add(&num_asleep, 1);
  while ((round = atomic_load(&round_number)) == seen)
    syscall(SYS_futex, &round_number, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
  atomic_fetch_sub(&num_asleep, 1);
  return round;
}

static void *work(void *unused) {
  (void)unused;
  for (uint32_t round = 0;;) {
    round = wait_for_round(round);
    do_tasks(round);
  }
  return NULL;
}

static void start_threads(void) {
  for (; num_started < num_threads - 1; ++num_started) {
    pthread_t thread;
    int error = pthread_create(&thread, NULL, work, NULL);
    if (error) fail(EXIT_RUNTIME, "cannot start thread %d of %d: %s", num_started + 2, num_threads, strerror(error));
    pthread_detach(thread);
  }
}

/* Also TVMBackendParallelLaunch. */
int launch_tasks(Task function, void *data, int count) {
  if (num_threads == 1 || count == 1 || is_inside) {
    Group alone = {NULL, 1};
    return function(0, &alone, data);
  }
  if (num_started == 0) start_threads();
  uint32_t round = atomic_load(&round_number) + 1;
  /* Nobody reads these without a task, and all those of the round before are done. */
  task = function;
  task_data = data;
  group = (Group){NULL, count == 0 || count > num_threads ? num_threads : count};
  atomic_store(&failed, 0);
  atomic_store(&unfinished, group.num_task);
  atomic_store(&next, (uint64_t)round << 32 | (uint64_t)group.num_task << 16);
  atomic_store(&round_number, round);
  if (atomic_load(&num_asleep) > 0) syscall(SYS_futex, &round_number, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
  do_tasks(round);
  for (int64_t end = now_ns() + LATE_NS; atomic_load_explicit(&unfinished, memory_order_acquire) > 0;) {
    pause_processor();
    if (now_ns() > end) sched_yield();
  }
  return atomic_load(&failed) ? -1 : 0;
}

int pool_threads(void) { return num_threads; }

void use_pool(const char *path, int threads) {
  num_threads = threads < MAX_THREADS ? threads : MAX_THREADS;
  void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  /* A model without a kernel that is spread has no such pointer; tasks that wait for each other need a thread each. */
  void **pointer = library ? dlsym(library, "__TVMBackendParallelLaunch") : NULL;
  if (pointer && !dlsym(library, "__TVMBackendParallelBarrier")) *pointer = (void *)launch_tasks;
}
