// SPDX-License-Identifier: MIT
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

// value (N, H, W, G*D), offset (N, Ho, Wo, G*P*2), mask (N, Ho, Wo, G*P) -> (N, Ho, Wo, G*D), with
// P = kernel_h * kernel_w - remove_center. Throws std::runtime_error for what does not fit together.
torch::stable::Tensor dcnv3_forward(const torch::stable::Tensor& value, const torch::stable::Tensor& offset,
                                    const torch::stable::Tensor& mask, int64_t groups, int64_t kernel_h,
                                    int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t padding_h,
                                    int64_t padding_w, int64_t dilation_h, int64_t dilation_w, double offset_scale,
                                    bool remove_center, bool softmax);

// The gradients of value, offset and mask. With `fixed_point` (float64, one element, on the device) that of value comes
// as int64 sums in which a 1 counts that much: their bits do not depend on the order of the additions.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> dcnv3_backward(
    const torch::stable::Tensor& grad_output, const torch::stable::Tensor& value, const torch::stable::Tensor& offset,
    const torch::stable::Tensor& mask, int64_t groups, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
    int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w,
    double offset_scale, bool remove_center, bool softmax, std::optional<torch::stable::Tensor> fixed_point);
