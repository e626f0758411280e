// SPDX-License-Identifier: MIT
// What library.cpp and the instruction sets' kernels know of each other.
#pragma once

#include "api.h"

// Pieces of work handed out to threads: [first, last) until `next` says that nothing is left.
struct Units {
    int64_t count, grain, taken;
    bool next(int64_t& first, int64_t& last) {
        first = __atomic_fetch_add(&taken, grain, __ATOMIC_RELAXED);
        last = first + grain < count ? first + grain : count;
        return first < count;
    }
};

// How a job is cut: `run` is called by every thread with `memory` bytes of its own.
struct Work {
    int64_t units, grain, memory;
    void (*run)(const void* job, Units& units, char* memory);
};

struct DCNv3Forward {
    const hfi_dcnv3* call;
    const void *value, *offset, *mask;
    void* output;
};

// `output` is the gradient of the output; the three results lie without gaps.
struct DCNv3Backward {
    const hfi_dcnv3* call;
    const void *output, *value, *offset, *mask;
    void *grad_value, *grad_offset, *grad_mask;
    int64_t block, bands;  // groups and bands of lines that make a unit of work
};

// GELU of `count` numbers without gaps, and the gradient of the input; output may be input or grad_output.
struct Gelu {
    int64_t dtype, count;
    const void *input, *grad_output;
    void *grad_input, *output;  // the first, and its partner grad_output, in the backward pass only
};

// residual + scale * LayerNorm(input), or GELU(LayerNorm(input)) if `activate`; rows without gaps. scale and residual
// may be null, output may be input or residual.
struct Norm {
    int64_t dtype, rows, channels, activate;
    double epsilon;
    const void *input, *gamma, *beta, *scale, *residual;
    void* output;
};

// GELU(LayerNorm(depth-wise convolution)) with a square kernel of odd side, stride 1 and "same" padding.
// input (batch, height, width, channels) with the strides given, output without gaps; see layer.h for the backward pass.
struct DepthwiseNormGelu : hfi_depthwise {
    const void *input, *weight, *bias, *gamma, *beta, *grad_output;
    void* output;
    float *slope, *sums;
    int64_t parts;
};

struct Kernels {
    const char* name;
    int64_t (*row)(int64_t channels);
    Work (*gelu_forward)(Gelu& job, int64_t threads);
    Work (*gelu_backward)(Gelu& job, int64_t threads);
    Work (*norm_forward)(Norm& job, int64_t threads);
    Work (*depthwise_norm_gelu_forward)(DepthwiseNormGelu& job, int64_t threads);
    Work (*depthwise_norm_gelu_backward)(DepthwiseNormGelu& job, int64_t threads);
    Work (*depthwise_transposed)(DepthwiseNormGelu& job, int64_t threads);
    Work (*dcnv3_forward)(DCNv3Forward& job, int64_t threads);
    Work (*dcnv3_backward)(DCNv3Backward& job, int64_t threads);
};
