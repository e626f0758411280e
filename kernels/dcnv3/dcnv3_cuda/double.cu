// SPDX-License-Identifier: MIT
#include "instances.cuh"

hfi::Kernel hfi::find_double(Pass pass, const Call& call) { return find<double, double>(pass, call); }
