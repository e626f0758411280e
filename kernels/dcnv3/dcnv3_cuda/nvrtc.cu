// SPDX-License-Identifier: MIT
// One kernel for one kind of call, as hf_internimage/ops/backends/dcnv3_cuda.py asks NVRTC for it:
// HFI_FORWARD or HFI_BACKWARD; types HFI_VALUE, HFI_OFFSET, HFI_SUM (backward) and HFI_INDEX; numbers HFI_D, HFI_KH,
// HFI_KW, HFI_REMOVE and HFI_THREADS.
#include "dcnv3.cuh"

#ifdef HFI_FORWARD
extern "C" __global__ void __launch_bounds__(HFI_THREADS) dcnv3_forward(const __grid_constant__ hfi::Call call) {
    hfi::forward<HFI_VALUE, HFI_OFFSET, HFI_D, HFI_KH, HFI_KW, HFI_REMOVE, HFI_INDEX>(call);
}
#else
extern "C" __global__ void __launch_bounds__(HFI_THREADS) dcnv3_backward(const __grid_constant__ hfi::Call call) {
    hfi::backward<HFI_VALUE, HFI_OFFSET, HFI_SUM, HFI_D, HFI_KH, HFI_KW, HFI_REMOVE, HFI_INDEX>(call);
}
#endif
