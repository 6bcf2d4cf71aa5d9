/* A QEMU user-mode plugin: which translated blocks execute the most instructions, with their code.
 *
 * Prints at exit, hottest first, lines `block EXECUTIONS INSTRUCTIONS HEX`, HEX being the code as it stands in memory.
 * Needs no libc and no QEMU headers. API_VERSION comes from the compiler's command line: 1 or 2.
 */
#include <stddef.h>
#include <stdint.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*callback)(uint64_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*callback)(unsigned, void *), int flags, void *data);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*callback)(uint64_t, void *), void *data);
void qemu_plugin_outs(const char *text);

enum { NO_REGISTERS = 0, MAX_BLOCKS = 1 << 16, MAX_LENGTH = 512, PRINTED = 16 };

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = API_VERSION;

static struct {
  uint64_t executed;
  size_t length;
  uint32_t code[MAX_LENGTH];
} blocks[MAX_BLOCKS];
static uint32_t count;

static void on_execute(unsigned cpu, void *block) {
  (void)cpu;
  __atomic_fetch_add(&blocks[(uintptr_t)block].executed, 1, __ATOMIC_RELAXED);
}

static void on_translate(uint64_t id, struct qemu_plugin_tb *block) {
  (void)id;
  uint32_t index = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
  if (index >= MAX_BLOCKS) return;
  size_t length = qemu_plugin_tb_n_insns(block);
  blocks[index].length = length < MAX_LENGTH ? length : MAX_LENGTH;
  for (size_t i = 0; i < blocks[index].length; ++i)
    __builtin_memcpy(&blocks[index].code[i], qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), 4);
  qemu_plugin_register_vcpu_tb_exec_cb(block, on_execute, NO_REGISTERS, (void *)(uintptr_t)index);
}

static void print_number(uint64_t value) {
  char text[24], *start = text + sizeof text - 1;
  *start = '\0';
  *--start = ' ';
  do *--start = (char)('0' + value % 10); while (value /= 10);
  qemu_plugin_outs(start);
}

static void print_block(uint32_t index) {
  static char hex[MAX_LENGTH * 8 + 2];
  char *end = hex;
  for (size_t i = 0; i < blocks[index].length; ++i)
    for (int byte = 0; byte < 4; ++byte) {
      uint8_t value = (uint8_t)(blocks[index].code[i] >> (8 * byte));
      *end++ = "0123456789abcdef"[value >> 4];
      *end++ = "0123456789abcdef"[value & 15];
    }
  *end++ = '\n';
  *end = '\0';
  qemu_plugin_outs("block ");
  print_number(blocks[index].executed);
  print_number(blocks[index].length);
  qemu_plugin_outs(hex);
}

static void on_exit(uint64_t id, void *unused) {
  (void)id, (void)unused;
  uint32_t known = count < MAX_BLOCKS ? count : MAX_BLOCKS;
  for (int printed = 0; printed < PRINTED; ++printed) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < known; ++i)
      if (blocks[i].executed * blocks[i].length > blocks[best].executed * blocks[best].length) best = i;
    if (blocks[best].executed == 0) return;
    print_block(best);
    blocks[best].executed = 0;
  }
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
  qemu_plugin_register_atexit_cb(id, on_exit, NULL);
  return 0;
}
