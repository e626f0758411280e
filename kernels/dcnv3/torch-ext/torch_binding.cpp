// SPDX-License-Identifier: MIT
// Registers the operators with PyTorch, through its stable interface: one binary for every version from 2.9 on.
#include "torch_binding.h"

#include <torch/csrc/stable/library.h>

#include "registration.h"

#define HFI_GEOMETRY                                                                                            \
    "int groups, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, "        \
    "int dilation_h, int dilation_w, float offset_scale, bool remove_center, bool softmax"

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
    ops.def("dcnv3_forward(Tensor value, Tensor offset, Tensor mask, " HFI_GEOMETRY ") -> Tensor");
    ops.def("dcnv3_backward(Tensor grad_output, Tensor value, Tensor offset, Tensor mask, " HFI_GEOMETRY
            ", Tensor? fixed_point=None) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
    ops.impl("dcnv3_forward", TORCH_BOX(&dcnv3_forward));
    ops.impl("dcnv3_backward", TORCH_BOX(&dcnv3_backward));
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
