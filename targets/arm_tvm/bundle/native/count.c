/* A QEMU user-mode plugin that counts executed guest instructions. To QEMU's log it prints `clock N`, the count so far,
 * each time the program reads the clock, and `instructions N` at exit.
 *
 * Needs no libc and no QEMU headers: the few functions of the plugin interface are declared here.
 * API_VERSION comes from the compiler's command line: QEMU before 8.2 wants 1, later ones at least 2.
 */
#include <stddef.h>
#include <stdint.h>

struct qemu_plugin_tb;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*callback)(uint64_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*callback)(unsigned, void *), int flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(uint64_t id, void (*callback)(uint64_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                                        uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(uint64_t id, void (*callback)(uint64_t, void *), void *data);
void qemu_plugin_outs(const char *text);

enum { NO_REGISTERS = 0, CLOCK_GETTIME = 113 /* of Linux on aarch64 */ };

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = API_VERSION;

static uint64_t executed;

static void on_execute(unsigned cpu, void *instructions) {
  (void)cpu;
  __atomic_fetch_add(&executed, (uintptr_t)instructions, __ATOMIC_RELAXED);
}

static void on_translate(uint64_t id, struct qemu_plugin_tb *block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_cb(block, on_execute, NO_REGISTERS, (void *)qemu_plugin_tb_n_insns(block));
}

static void print_count(const char *what) {
  char text[24];
  char *start = text + sizeof text - 1;
  *start = '\0';
  *--start = '\n';
  for (uint64_t rest = executed; rest || start[0] == '\n'; rest /= 10) *--start = (char)('0' + rest % 10);
  qemu_plugin_outs(what);
  qemu_plugin_outs(start);
}

static void on_syscall(uint64_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                       uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number == CLOCK_GETTIME) print_count("clock ");
}

static void on_exit(uint64_t id, void *unused) {
  (void)id, (void)unused;
  print_count("instructions ");
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
  qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
  qemu_plugin_register_atexit_cb(id, on_exit, NULL);
  return 0;
}
