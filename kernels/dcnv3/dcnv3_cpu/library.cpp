// SPDX-License-Identifier: MIT
// The library's plain C functions: choice of the instruction set, threads, memory.
#include <stdlib.h>
#include <string.h>

#include "library.h"

// build.py defines HFI_SETS: X(name, condition) for each instruction set compiled, best first.
#define X(name, condition) \
    namespace name { \
    extern const Kernels kernels; \
    }
HFI_SETS
#undef X

static const Kernels* choose(const char* wanted) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
#endif
#define X(name, condition) \
    if ((condition) && (!wanted || !strcmp(wanted, #name))) return &name::kernels;
    HFI_SETS
#undef X
    return nullptr;
}

static const Kernels* chosen = choose(nullptr);

// GOMP_parallel of the OpenMP runtime that the host program has: its threads are the ones that are awake.
typedef void (*run_team)(void (*)(void*), void*, unsigned, unsigned);
static run_team team = nullptr;

struct Team {
    const Work* work;
    const void* job;
    Units units;
    char* memory;
    int64_t per_thread, joined;
};

static void join(void* pointer) {
    Team& t = *(Team*)pointer;
    if (__atomic_load_n(&t.units.taken, __ATOMIC_RELAXED) >= t.units.count) return;  // the others were faster
    int64_t slot = __atomic_fetch_add(&t.joined, 1, __ATOMIC_RELAXED);
    t.work->run(t.job, t.units, t.memory + slot * t.per_thread);
}

// 0, or 1 if there is not enough memory. With `pool`, the threads are those of another program.
static int run(const Work& work, const void* job, int64_t threads, const Pool* pool = nullptr) {
    if (work.units <= 0) return 0;
    int64_t pieces = (work.units + work.grain - 1) / work.grain;
    if (threads > pieces) threads = pieces;
    if (threads < 1 || !(pool || team)) threads = 1;
    Team t = {&work, job, {work.units, work.grain, 0}, nullptr, (work.memory + 127) / 64 * 64, 0};
    char* memory = (char*)malloc((size_t)(threads * t.per_thread + 64));
    if (!memory) return 1;
    t.memory = memory + (64 - (uintptr_t)memory % 64);
    if (threads == 1)
        join(&t);
    else if (pool)
        pool->run(pool->context, join, &t, threads);
    else
        team(join, &t, (unsigned)threads, 0);
    free(memory);
    return 0;
}

HFI_EXPORT int64_t hfi_interface() { return HFI_INTERFACE; }

// Of the sources this was built from; build.py defines it.
HFI_EXPORT const char* hfi_source_hash() { return HFI_SOURCE_HASH; }

HFI_EXPORT const char* hfi_instruction_set() { return chosen->name; }

// Use another instruction set, for tests; 1 if this machine or build lacks it.
HFI_EXPORT int hfi_use_instruction_set(const char* name) {
    const Kernels* found = choose(name);
    if (found) chosen = found;
    return found ? 0 : 1;
}

HFI_EXPORT void hfi_use_team(run_team function) { team = function; }

int dcnv3_forward(
    const hfi_dcnv3& call, const void* value, const void* offset, const void* mask, void* output, int64_t threads,
    const Pool* pool) {
    DCNv3Forward job = {&call, value, offset, mask, output};
    Work work = chosen->dcnv3_forward(job, threads);
    return run(work, &job, threads, pool);
}

HFI_EXPORT int hfi_dcnv3_forward(
    const hfi_dcnv3* call, const void* value, const void* offset, const void* mask, void* output, int64_t threads) {
    return dcnv3_forward(*call, value, offset, mask, output, threads, nullptr);
}

HFI_EXPORT int hfi_dcnv3_backward(
    const hfi_dcnv3* call, const void* grad_output, const void* value, const void* offset, const void* mask,
    void* grad_value, void* grad_offset, void* grad_mask, int64_t threads) {
    DCNv3Backward job = {call, grad_output, value, offset, mask, grad_value, grad_offset, grad_mask, 1, 1};
    Work work = chosen->dcnv3_backward(job, threads);
    return run(work, &job, threads);
}

HFI_EXPORT int hfi_gelu(int64_t dtype, int64_t count, const void* input, void* output, int64_t threads) {
    Gelu job = {dtype, count, input, nullptr, nullptr, output};
    return run(chosen->gelu_forward(job, threads), &job, threads);
}

HFI_EXPORT int hfi_gelu_backward(
    int64_t dtype, int64_t count, const void* grad_output, const void* input, void* grad_input, void* output,
    int64_t threads) {
    Gelu job = {dtype, count, input, grad_output, grad_input, output};
    return run(chosen->gelu_backward(job, threads), &job, threads);
}

HFI_EXPORT int hfi_norm(
    int64_t dtype, int64_t rows, int64_t channels, int64_t activate, double epsilon, const void* input,
    const void* gamma, const void* beta, const void* scale, const void* residual, void* output, int64_t threads) {
    Norm job = {dtype, rows, channels, activate, epsilon, input, gamma, beta, scale, residual, output};
    return run(chosen->norm_forward(job, threads), &job, threads);
}

int depthwise_norm_gelu(
    const hfi_depthwise& shape, const void* input, const void* weight, const void* bias, const void* gamma,
    const void* beta, void* output, int64_t threads, const Pool* pool) {
    DepthwiseNormGelu job = {shape, input, weight, bias, gamma, beta, nullptr, output, nullptr, nullptr, 0};
    return run(chosen->depthwise_norm_gelu_forward(job, threads), &job, threads, pool);
}

HFI_EXPORT int hfi_depthwise_norm_gelu(
    const hfi_depthwise* shape, const void* input, const void* weight, const void* bias, const void* gamma,
    const void* beta, void* output, int64_t threads) {
    return depthwise_norm_gelu(*shape, input, weight, bias, gamma, beta, output, threads, nullptr);
}

// slope (batch, height, width, channels) is working space; for sums and parts see layer.h.
HFI_EXPORT int hfi_depthwise_norm_gelu_backward(
    const hfi_depthwise* shape, const void* grad_output, const void* input, const void* weight, const void* bias,
    const void* gamma, const void* beta, void* grad_input, float* slope, float* sums, int64_t parts, int64_t threads) {
    DepthwiseNormGelu job = {*shape, input, weight, bias, gamma, beta, grad_output, grad_input, slope, sums, parts};
    int failed = run(chosen->depthwise_norm_gelu_backward(job, threads), &job, threads);
    return failed ? failed : run(chosen->depthwise_transposed(job, threads), &job, threads);
}

// Floats in a row of sums: the channels, filled up to whole vectors.
HFI_EXPORT int64_t hfi_row(int64_t channels) { return chosen->row(channels); }
