// SPDX-License-Identifier: MIT
#include "instances.cuh"

hfi::Kernel hfi::find_float(Pass pass, const Call& call) { return find<float, float>(pass, call); }
