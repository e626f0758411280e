// SPDX-License-Identifier: MIT
// Kernels that are compiled ahead of time, found by the kind of call. (The NVRTC route compiles each on demand.)
#pragma once

#include "dcnv3.cuh"

namespace hfi {

constexpr int THREADS = 128;

enum class Pass { forward, backward, backward_in_fixed_point };

// A kernel, and what a launch must know of it.
struct Kernel {
    const void* function;
    int lanes;   // threads that share an output pixel and group
    int vector;  // values read at once, aligned to that
};

// For values of the type named; offsets and masks have it, too, or else are float (`float_offsets`). The call holds
// everything but data, and of the tensors the strides of value.
Kernel find_float(Pass pass, const Call& call);
Kernel find_double(Pass pass, const Call& call);
Kernel find_half(Pass pass, const Call& call, bool float_offsets);
Kernel find_bfloat(Pass pass, const Call& call, bool float_offsets);

}  // namespace hfi
