// SPDX-License-Identifier: MIT
// The part of NVIDIA's driver that ops/cuda_driver.py calls, for two GPUs that are not there: an image is the text
// "emulated:" and the path of a shared library, and a launch runs its kernel on the CPU before it returns.
//
// The threads of a warp are fibers, each with a stack of its own, and change places where they exchange values. A warp
// whose lanes do not all come to the same exchanges ends the launch with an error, as does a misaligned address.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "cuda_emulation.h"

#define LANES 32
#define STACK (256 * 1024)
#define DEVICES 2
#define DEEPEST 16
// Jumps between stacks must not be taken for leaving functions.
#define FIBER __attribute__((noinline, no_sanitize("address")))

enum { INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201 };
enum { NOT_FOUND = 500, FAILED = 719 };

typedef void (*entry)(const struct hfi_emulator*, const void* argument);
struct context {
    int device;
};
struct function {
    entry enter;
    struct context* context;
};

// What tests see and set.
struct {
    long long retained, pushed, popped, loaded, launched, threads;
    unsigned grid_x, grid_y, block_x;
    int device;          // of the last launch
    void* stream;        // of the last launch
    unsigned long long shuffled;  // 0: blocks and lanes in order; 1: backwards; else a seed for another order
} fake_log;

static struct context contexts[DEVICES] = {{0}, {1}};
static __thread struct context* stack[DEEPEST];
static __thread int depth;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct lane {
    ucontext_t made;
    void* place[5];
    struct hfi_index thread;
    int begun, done;
    unsigned size, mask;  // of the exchange it waits for
    unsigned char bytes[16];
} lanes[LANES];
static int current;
static void* scheduler[5];
static struct hfi_emulator emulator;
static entry enter;
static const void* argument;
static char failure[200];

// Both sides of a change of stacks. A function must not jump to itself, hence two.
FIBER static void jump(void** place) { __builtin_longjmp(place, 1); }

FIBER static void yield(struct lane* lane) {
    if (!__builtin_setjmp(lane->place)) jump(scheduler);
}

FIBER static void live(void) {
    for (;;) {
        struct lane* lane = &lanes[current];
        enter(&emulator, argument);
        lane->done = 1;
        yield(lane);
    }
}

FIBER static void resume(int number) {
    struct lane* lane = &lanes[number];
    current = number;
    emulator.thread = lane->thread;
    if (__builtin_setjmp(scheduler)) return;
    if (lane->begun) jump(lane->place);
    lane->begun = 1;
    setcontext(&lane->made);
}

static void fail(const char* why) {
    struct hfi_index b = emulator.block, t = emulator.thread;
    snprintf(failure, sizeof(failure), "%s (block %u, %u, thread %u)", why, b.x, b.y, t.x);
    jump(scheduler);
}

static void exchange(void* bytes, unsigned size, unsigned mask) {
    struct lane* lane = &lanes[current];
    lane->size = size, lane->mask = mask;
    memcpy(lane->bytes, bytes, size);
    yield(lane);
    memcpy(bytes, lane->bytes, size);
}

static void make_lanes(void) {
    static char* memory;
    if (!memory)
        memory = mmap(NULL, (size_t)LANES * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) abort();
    for (int i = 0; i < LANES; ++i) {
        getcontext(&lanes[i].made);
        lanes[i].made.uc_stack.ss_sp = memory + (size_t)i * STACK;
        lanes[i].made.uc_stack.ss_size = STACK;
        makecontext(&lanes[i].made, live, 0);
        lanes[i].begun = 0;
    }
}

// The numbers below `count`, each once, in the order that tests ask for.
static unsigned permuted(unsigned index, unsigned count) {
    if (fake_log.shuffled == 0) return index;
    if (fake_log.shuffled == 1) return count - 1 - index;
    unsigned step = (unsigned)(fake_log.shuffled % count) | 1, a = step, b = count;
    while (b) {
        unsigned rest = a % b;
        a = b, b = rest;
    }
    if (a != 1) step = 1;  // only what has no divisor in common with the count visits all
    return (unsigned)(((unsigned long long)index * step + fake_log.shuffled) % count);
}

static int run_warp(unsigned first, unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
        lanes[i].thread = (struct hfi_index){first + i, 0, 0};
        lanes[i].done = 0;
    }
    for (;;) {
        unsigned done = 0;
        for (unsigned i = 0; i < count; ++i) {
            resume((int)permuted(i, count));
            if (failure[0]) return FAILED;
        }
        for (unsigned i = 0; i < count; ++i) done += (unsigned)lanes[i].done;
        if (done == count) return 0;
        for (unsigned i = 0; i < count; ++i) {
            current = (int)i, emulator.thread = lanes[i].thread;
            const char* why = lanes[i].done                         ? "a lane ended where others exchange values"
                              : lanes[i].mask != lanes[0].mask      ? "lanes exchange values with different partners"
                              : lanes[i].size != lanes[0].size      ? "lanes exchange values of different sizes"
                              : (i ^ lanes[i].mask) >= count        ? "a lane exchanges values with none"
                                                                    : NULL;
            if (!why) continue;
            snprintf(failure, sizeof(failure), "%s (block %u, %u, thread %u)", why, emulator.block.x, emulator.block.y,
                     first + i);
            return FAILED;
        }
        for (unsigned i = 0; i < count; ++i) {
            const unsigned other = i ^ lanes[i].mask;
            if (other <= i) continue;
            unsigned char bytes[16];
            memcpy(bytes, lanes[i].bytes, 16);
            memcpy(lanes[i].bytes, lanes[other].bytes, 16);
            memcpy(lanes[other].bytes, bytes, 16);
        }
    }
}

static int run(const struct function* function, void* passed, struct hfi_index blocks, unsigned threads) {
    failure[0] = 0;
    enter = function->enter, argument = passed;
    emulator = (struct hfi_emulator){.threads = {threads, 1, 1}, .blocks = blocks, .exchange = exchange, .fail = fail};
    make_lanes();
    const unsigned warps = (threads + LANES - 1) / LANES;
    for (unsigned i = 0; i < blocks.x * blocks.y; ++i) {
        const unsigned block = permuted(i, blocks.x * blocks.y);
        emulator.block = (struct hfi_index){block % blocks.x, block / blocks.x, 0};
        for (unsigned j = 0; j < warps; ++j) {
            const unsigned first = permuted(j, warps) * LANES;
            const int status = run_warp(first, threads - first < LANES ? threads - first : LANES);
            if (status) return status;
        }
    }
    return 0;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : 0; }

int cuDeviceGet(int* device, int index) {
    if (index < 0 || index >= DEVICES) return INVALID_DEVICE;
    *device = index;
    return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
    if (device < 0 || device >= DEVICES) return INVALID_DEVICE;
    ++fake_log.retained;
    *context = &contexts[device];
    return 0;
}

int cuCtxPushCurrent_v2(void* context) {
    if ((context != &contexts[0] && context != &contexts[1]) || depth == DEEPEST) return INVALID_CONTEXT;
    __atomic_add_fetch(&fake_log.pushed, 1, __ATOMIC_RELAXED);
    stack[depth++] = context;
    return 0;
}

int cuCtxPopCurrent_v2(void** context) {
    if (!depth) return INVALID_CONTEXT;
    __atomic_add_fetch(&fake_log.popped, 1, __ATOMIC_RELAXED);
    *context = stack[--depth];
    return 0;
}

int cuModuleLoadData(void** module, const char* image) {
    if (!depth) return INVALID_CONTEXT;
    if (strncmp(image, "emulated:", 9)) return INVALID_IMAGE;
    struct module {
        void* library;
        struct context* context;
    }* loaded = malloc(sizeof(*loaded));
    loaded->library = dlopen(image + 9, RTLD_NOW | RTLD_LOCAL);
    loaded->context = stack[depth - 1];
    if (!loaded->library) {
        fprintf(stderr, "%s\n", dlerror());
        return INVALID_IMAGE;
    }
    ++fake_log.loaded;
    *module = loaded;
    return 0;
}

int cuModuleGetFunction(void** function, void** module, const char* name) {
    if (!depth || module[1] != stack[depth - 1]) return INVALID_CONTEXT;
    char symbol[200];
    snprintf(symbol, sizeof(symbol), "hfi_enter_%s", name);
    struct function* found = malloc(sizeof(*found));
    found->enter = (entry)dlsym(module[0], symbol);
    found->context = module[1];
    if (!found->enter) return NOT_FOUND;
    *function = found;
    return 0;
}

int cuLaunchKernel(const struct function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra) {
    if (!depth || function->context != stack[depth - 1]) return INVALID_CONTEXT;
    if (!grid_x || !grid_y || grid_x > 0x7fffffff || grid_y > 65535) return INVALID_VALUE;
    if (!block_x || block_x > 1024 || block_y != 1 || block_z != 1) return INVALID_VALUE;
    if (grid_z != 1 || shared || extra) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    ++fake_log.launched;
    fake_log.threads += (long long)grid_x * grid_y * block_x;
    fake_log.grid_x = grid_x, fake_log.grid_y = grid_y, fake_log.block_x = block_x;
    fake_log.device = function->context->device;
    fake_log.stream = stream;
    const int status = run(function, arguments[0], (struct hfi_index){grid_x, grid_y, 1}, block_x);
    pthread_mutex_unlock(&lock);
    return status;
}

int cuGetErrorString(int status, const char** text) {
    switch (status) {
        case INVALID_VALUE: *text = "invalid argument"; return 0;
        case INVALID_DEVICE: *text = "invalid device ordinal"; return 0;
        case INVALID_IMAGE: *text = "device kernel image is invalid"; return 0;
        case INVALID_CONTEXT: *text = "invalid device context"; return 0;
        case NOT_FOUND: *text = "named symbol not found"; return 0;
        case FAILED: *text = failure; return 0;
    }
    *text = NULL;
    return INVALID_VALUE;
}
