// SPDX-License-Identifier: MIT
#include "instances.cuh"

hfi::Kernel hfi::find_half(Pass pass, const Call& call, bool float_offsets) {
    return float_offsets ? find<half_t, float>(pass, call) : find<half_t, half_t>(pass, call);
}
