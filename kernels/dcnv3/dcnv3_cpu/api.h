// SPDX-License-Identifier: MIT
// The plain C interface of the library; hf_internimage/ops/native.py declares the same in ctypes.
#pragma once

#include <stdint.h>

// Raised whenever a function or structure that Python uses changes; native.py has the same number.
#define HFI_INTERFACE 3

enum hfi_dtype { HFI_FLOAT32 = 0, HFI_FLOAT64 = 1, HFI_BFLOAT16 = 2, HFI_FLOAT16 = 3 };

// A (N, height, width, features) tensor whose features lie side by side; strides in elements.
struct hfi_tensor {
    int64_t dtype, stride_n, stride_h, stride_w;
};

// Everything about a DCNv3 call but its pointers. offset and mask have the dtype of value, or float32.
struct hfi_dcnv3 {
    int64_t batch, height, width, out_height, out_width, groups, channels;  // channels of one group
    int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    int64_t remove_center, softmax;
    double offset_scale;
    hfi_tensor value, offset, mask, output;
};

// A depth-wise convolution with LayerNorm and GELU: square kernel of odd side, stride 1, output as large as the input.
struct hfi_depthwise {
    int64_t dtype, batch, height, width, channels, kernel, stride_n, stride_h, stride_w;
    double epsilon;
};
