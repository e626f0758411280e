// SPDX-License-Identifier: MIT
// The plain C interface of the library; hf_internimage/ops/native.py declares the same in ctypes.
#pragma once

#include <stdint.h>

// Raised whenever a function or structure that Python uses changes; native.py has the same number.
#define HFI_INTERFACE 5

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

// Functions of PyTorch's stable C interface (its shim.h), and its numbers for dtypes and the CPU. Errors are not 0.
struct hfi_torch {
    int32_t (*library_init_impl)(const char* space, const char* key, const char* file, uint32_t line, void** library);
    int32_t (*library_impl)(void* library, const char* name, void (*run)(uint64_t*, uint64_t, uint64_t));
    int32_t (*delete_tensor)(void* tensor);
    int32_t (*get_dim)(void* tensor, int64_t* dims);
    int32_t (*get_sizes)(void* tensor, int64_t** sizes);
    int32_t (*get_strides)(void* tensor, int64_t** strides);
    int32_t (*get_dtype)(void* tensor, int32_t* dtype);
    int32_t (*get_device)(void* tensor, int32_t* type);
    int32_t (*get_data)(void* tensor, void** data);
    int32_t (*get_storage_size)(void* tensor, int64_t* bytes);
    int32_t (*get_storage_offset)(void* tensor, int64_t* elements);
    int32_t (*empty_strided)(
        int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device, int32_t index,
        void** tensor);
    int32_t (*copy)(void* to, void* from, int32_t non_blocking);
    void (*check)(bool condition, const char* function, const char* file, uint32_t line, const char* message);
    int32_t (*num_threads)(uint32_t* count);  // null before PyTorch 2.10
    int (*max_threads)();  // of OpenMP, null without it
    int32_t dtypes[4];  // by hfi_dtype
    int32_t cpu;
};
