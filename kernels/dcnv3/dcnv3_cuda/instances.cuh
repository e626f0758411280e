// SPDX-License-Identifier: MIT
// The kernels of one value type: 3x3 taps with the usual numbers of channels in a group, and one for everything else,
// which counts places within an image in 64 bits.
#pragma once

#include "dispatch.cuh"

namespace hfi {

template <int D>
struct Counted {
    typedef int type;
};
template <>
struct Counted<0> {
    typedef i64 type;
};

template <class T, class O, int D, int K>
__global__ void __launch_bounds__(THREADS) forward_kernel(const __grid_constant__ Call call) {
    forward<T, O, D, K, K, 0, typename Counted<D>::type>(call);
}

template <class T, class O, class Sum, int D, int K>
__global__ void __launch_bounds__(THREADS) backward_kernel(const __grid_constant__ Call call) {
    backward<T, O, Sum, D, K, K, 0, typename Counted<D>::type>(call);
}

template <class T, class O, int D, int K>
Kernel instance(Pass pass) {
    typedef typename wide<T>::type A;
    typedef Deal<D, 16 / sizeof(T)> Values;
    typedef Deal<D, 16 / sizeof(A)> Sums;
    switch (pass) {
        case Pass::forward:
            return {(const void*)forward_kernel<T, O, D, K>, Values::LANES, Values::V};
        case Pass::backward:
            return {(const void*)backward_kernel<T, O, A, D, K>, Sums::LANES, Sums::V};
        default:
            return {(const void*)backward_kernel<T, O, i64, D, K>, Sums::LANES, Sums::V};
    }
}

inline i64 greater(i64 a, i64 b) { return a < b ? b : a; }

// Whether 32 bits count the elements of an image; places may lie two pixels outside before they are found to.
inline bool is_near(const Call& call) {
    const i64 features = call.groups * call.channels;
    const i64 farthest = (call.height + 4) * greater(call.value.stride_h, call.width * features) +
                         (call.width + 4) * greater(call.value.stride_w, features);
    return farthest + features < (i64)1 << 31;
}

template <class T, class O>
Kernel find(Pass pass, const Call& call) {
    const bool usual = call.kernel_h == 3 && call.kernel_w == 3 && !call.remove_center && is_near(call);
    switch (usual ? call.channels : 0) {
        case 4:
            return instance<T, O, 4, 3>(pass);
        case 8:
            return instance<T, O, 8, 3>(pass);
        case 16:
            return instance<T, O, 16, 3>(pass);
        case 32:
            return instance<T, O, 32, 3>(pass);
        case 64:
            return instance<T, O, 64, 3>(pass);
        default:
            return instance<T, O, 0, 0>(pass);
    }
}

}  // namespace hfi
