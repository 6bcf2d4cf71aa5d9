/* Multiply-accumulates a second of one thread by one instruction on registers alone, and the clock meanwhile.
 *
 * x86_peak KIND prints `MACS_PER_S CLOCK_HZ`, both the best of several rounds by the thread's processor time. The clock
 * is that of a chain of multiplications, each of which takes three cycles on every core with these instructions.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 12, LOOPS = 1500000, CHAIN = 16, CYCLES = 3, REGISTERS = 12 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* Twelve sums that do not wait for each other: more than four cycles of latency times two ports need. */
#define ALL(OP, R) \
    OP " %%" R "14,%%" R "15,%%" R "0\n" OP " %%" R "14,%%" R "15,%%" R "1\n" OP " %%" R "14,%%" R "15,%%" R "2\n" \
    OP " %%" R "14,%%" R "15,%%" R "3\n" OP " %%" R "14,%%" R "15,%%" R "4\n" OP " %%" R "14,%%" R "15,%%" R "5\n" \
    OP " %%" R "14,%%" R "15,%%" R "6\n" OP " %%" R "14,%%" R "15,%%" R "7\n" OP " %%" R "14,%%" R "15,%%" R "8\n" \
    OP " %%" R "14,%%" R "15,%%" R "9\n" OP " %%" R "14,%%" R "15,%%" R "10\n" OP " %%" R "14,%%" R "15,%%" R "11\n"

#define KIND(NAME, FEATURES, OP, R) \
    __attribute__((target(FEATURES), noinline)) static void NAME(long loops) { \
        __asm__ volatile("vpxor %%xmm14,%%xmm14,%%xmm14\nvpxor %%xmm15,%%xmm15,%%xmm15\n" \
                         "1:\n" ALL(OP, R) "dec %0\njnz 1b\n" \
                         : "+r"(loops)::"cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
                           "xmm9", "xmm10", "xmm11", "xmm14", "xmm15"); \
    }

KIND(fma, "avx2,fma", "vfmadd231ps", "ymm")
KIND(fma512, "avx512f", "vfmadd231ps", "zmm")
KIND(vnni, "avx2,avxvnni", "%{vex%} vpdpbusd", "ymm")
KIND(vnni512, "avx512f,avx512vnni", "vpdpbusd", "zmm")
KIND(bf16, "avx512f,avx512bf16", "vdpbf16ps", "zmm")

static void chain(long loops) {
    long value = 1;
    for (long i = 0; i < loops; i++)
        for (int j = 0; j < CHAIN; j++)
            __asm__ volatile("imul %0,%0" : "+r"(value));
}

static const struct {
    const char *name;
    void (*run)(long);
    int macs;
} KINDS[] = {{"fma", fma, 8}, {"fma512", fma512, 16}, {"vnni", vnni, 32}, {"vnni512", vnni512, 64}, {"bf16", bf16, 32}};

int main(int count, char **arguments) {
    for (unsigned kind = 0; count == 2 && kind < sizeof KINDS / sizeof *KINDS; kind++) {
        if (strcmp(KINDS[kind].name, arguments[1]))
            continue;
        double macs = 0, clock = 0;
        for (int round = 0; round < ROUNDS; round++) {
            double begin = now();
            KINDS[kind].run(LOOPS);
            double middle = now();
            chain(LOOPS / CHAIN);
            double end = now(), rate = (double)LOOPS * REGISTERS * KINDS[kind].macs / (middle - begin);
            double cycles = (double)LOOPS / CHAIN * CHAIN * CYCLES / (end - middle);
            macs = rate > macs ? rate : macs;
            clock = cycles > clock ? cycles : clock;
        }
        printf("%.0f %.0f\n", macs, clock);
        return 0;
    }
    fprintf(stderr, "usage: x86_peak fma|fma512|vnni|vnni512|bf16\n");
    return 2;
}
