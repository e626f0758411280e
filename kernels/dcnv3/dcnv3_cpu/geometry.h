// SPDX-License-Identifier: MIT
// What the kernels take for granted of a call of DCNv3: one check for the operators of PyTorch and of ONNX Runtime.
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "api.h"

static const int64_t LARGEST = 2147483647, LONGEST_SIDE = 1 << 30;  // pixel positions are 32-bit integers

// Completes a call whose numbers from `groups` on, but for `channels`, and whose dtype of the value are given, by the
// sizes of its tensors. False with a text in `why` if they disagree.
static inline bool complete(
    hfi_dcnv3& c, const int64_t* value, const int64_t* offset, const int64_t* mask, char* why, size_t room) {
    auto fail = [=](const char* format, auto... parts) {
        snprintf(why, room, format, parts...);
        return false;
    };
    const int64_t* pairs = &c.kernel_h;
    for (int i = 0; i < 8; ++i) {
        const bool padding = i == 4 || i == 5;
        if (pairs[i] < (padding ? 0 : 1) || pairs[i] > LARGEST)
            return fail("a kernel size, stride, padding or dilation is %lld, expected a positive 32-bit integer",
                        (long long)pairs[i]);
    }
    const double largest = c.value.dtype == HFI_FLOAT64 ? 1.7976931348623157e308 : 3.4028234663852886e38;
    if (!(c.offset_scale <= largest && c.offset_scale >= -largest))
        return fail("offset_scale is %g, expected a finite number", c.offset_scale);
    if (c.groups < 1 || value[3] < 1 || value[3] % c.groups)
        return fail("value has %lld channels, expected a positive multiple of groups=%lld", (long long)value[3],
                    (long long)c.groups);
    c.batch = value[0];
    c.height = value[1];
    c.width = value[2];
    c.channels = value[3] / c.groups;
    if (c.height >= LONGEST_SIDE || c.width >= LONGEST_SIDE)
        return fail("dcnv3: backend 'cpu' takes sides below %lld, got %lldx%lld.", (long long)LONGEST_SIDE,
                    (long long)c.height, (long long)c.width);
    c.out_height = c.height + 2 * c.padding_h - c.dilation_h * (c.kernel_h - 1) - 1;
    c.out_width = c.width + 2 * c.padding_w - c.dilation_w * (c.kernel_w - 1) - 1;
    if (c.out_height < 0 || c.out_width < 0)
        return fail("the kernel is larger than the padded image, expected an output of at least 1x1");
    c.out_height = c.out_height / c.stride_h + 1;
    c.out_width = c.out_width / c.stride_w + 1;
    // A product of two sizes of 31 bits fits, one with the groups may not: as a float it is near enough to refuse.
    const int64_t taps = c.kernel_h * c.kernel_w - (c.remove_center ? 1 : 0);
    if ((double)taps * (double)c.groups > (double)LARGEST * LARGEST)
        return fail("kernel_size and groups make more taps than expected");
    const int64_t sizes[] = {c.batch, c.out_height, c.out_width};
    for (int tensor = 0; tensor < 2; ++tensor)
        for (int d = 0; d < 4; ++d) {
            const int64_t got = (tensor ? mask : offset)[d], features = c.groups * taps * (tensor ? 1 : 2);
            const int64_t expected = d < 3 ? sizes[d] : features;
            if (got != expected)
                return fail("%s has size %lld in dimension %d, expected %lld", tensor ? "mask" : "offset",
                            (long long)got, d, (long long)expected);
        }
    c.output.dtype = c.value.dtype;
    c.output.stride_w = value[3];
    c.output.stride_h = c.output.stride_w * c.out_width;
    c.output.stride_n = c.output.stride_h * c.out_height;
    return true;
}
