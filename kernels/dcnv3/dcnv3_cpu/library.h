// SPDX-License-Identifier: MIT
// The library's plain C functions. Those that return int return 1 without enough memory, else 0.
#pragma once

#include "kernels.h"

#if defined(_WIN32)
#define HFI_EXPORT extern "C" __declspec(dllexport)
#else
#define HFI_EXPORT extern "C" __attribute__((visibility("default")))
#endif

HFI_EXPORT int hfi_dcnv3_forward(
    const hfi_dcnv3* call, const void* value, const void* offset, const void* mask, void* output, int64_t threads);
HFI_EXPORT int hfi_dcnv3_backward(
    const hfi_dcnv3* call, const void* grad_output, const void* value, const void* offset, const void* mask,
    void* grad_value, void* grad_offset, void* grad_mask, int64_t threads);
HFI_EXPORT int hfi_gelu(int64_t dtype, int64_t count, const void* input, void* output, int64_t threads);
HFI_EXPORT int hfi_gelu_backward(
    int64_t dtype, int64_t count, const void* grad_output, const void* input, void* grad_input, void* output,
    int64_t threads);
HFI_EXPORT int hfi_norm(
    int64_t dtype, int64_t rows, int64_t channels, int64_t activate, double epsilon, const void* input,
    const void* gamma, const void* beta, const void* scale, const void* residual, void* output, int64_t threads);
HFI_EXPORT int hfi_depthwise_norm_gelu(
    const hfi_depthwise* shape, const void* input, const void* weight, const void* bias, const void* gamma,
    const void* beta, void* output, int64_t threads);
HFI_EXPORT int hfi_depthwise_norm_gelu_backward(
    const hfi_depthwise* shape, const void* grad_output, const void* input, const void* weight, const void* bias,
    const void* gamma, const void* beta, void* grad_input, float* slope, float* sums, int64_t parts, int64_t threads);
HFI_EXPORT int64_t hfi_row(int64_t channels);

// Threads of another program: run(context, join, team, count) calls join(team) `count` times.
struct Pool {
    void (*run)(void* context, void (*join)(void* team), void* team, int64_t count);
    void* context;
};

// The functions of these names on the threads of `pool`, if that is not null.
int dcnv3_forward(
    const hfi_dcnv3& call, const void* value, const void* offset, const void* mask, void* output, int64_t threads,
    const Pool* pool);
int depthwise_norm_gelu(
    const hfi_depthwise& shape, const void* input, const void* weight, const void* bias, const void* gamma,
    const void* beta, void* output, int64_t threads, const Pool* pool);
