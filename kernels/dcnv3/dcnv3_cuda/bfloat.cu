// SPDX-License-Identifier: MIT
#include "instances.cuh"

hfi::Kernel hfi::find_bfloat(Pass pass, const Call& call, bool float_offsets) {
    return float_offsets ? find<bfloat_t, float>(pass, call) : find<bfloat_t, bfloat_t>(pass, call);
}
