// SPDX-License-Identifier: MIT
// All kernels for one instruction set: build.py compiles this file once for each, with HFI_ISA its name and VECTOR the
// bytes of its vectors.
#include "kernels.h"

#include "dcnv3.h"
#include "layer.h"

#define HFI_TEXT(x) #x
#define HFI_NAME(x) HFI_TEXT(x)

namespace HFI_ISA {

static const int64_t CACHE = 1 << 20;  // bytes; a usual second level

// Calls run(L, NV) with the most lanes that the channels fill. NV is the number of such vectors if that is a usual one
// and WHOLE says that code for each is worth its place, else 0.
template <int L, bool WHOLE, class Run>
static void with_lanes(int64_t channels, Run run) {
    using std::integral_constant;
    if constexpr (WHOLE) {
        if (channels == L) return run(integral_constant<int, L>(), integral_constant<int, 1>());
        if (channels == 2 * L) return run(integral_constant<int, L>(), integral_constant<int, 2>());
        if constexpr (L <= 8)
            if (channels == 4 * L) return run(integral_constant<int, L>(), integral_constant<int, 4>());
    }
    if (channels >= L) return run(integral_constant<int, L>(), integral_constant<int, 0>());
    if constexpr (L > 4)
        with_lanes<L / 2, false>(channels, run);
    else if constexpr (L > 1)
        with_lanes<1, false>(channels, run);
}

template <class T>
static void forward(const void* pointer, Units& units, char* memory) {
    typedef typename compute<T>::type A;
    const DCNv3Forward& job = *(const DCNv3Forward*)pointer;
    Scratch<A> s;
    lay_out<A>(*job.call, job.call->groups, -1, memory, s);
    fill<A>(*job.call, job.call->groups, s);
    with_lanes<VECTOR / sizeof(A), sizeof(T) != 8>(job.call->channels, [&](auto lanes, auto vectors) {
        int64_t first, last;
        while (units.next(first, last)) forward_pixels<T, A, lanes.value, vectors.value>(job, first, last, s);
    });
}

template <class T>
static void backward(const void* pointer, Units& units, char* memory) {
    typedef typename compute<T>::type A;
    const DCNv3Backward& job = *(const DCNv3Backward*)pointer;
    Scratch<A> s;
    lay_out<A>(*job.call, job.block, band_lines(job), memory, s);
    fill<A>(*job.call, job.block, s);
    with_lanes<VECTOR / sizeof(A), sizeof(T) == 4>(job.call->channels, [&](auto lanes, auto vectors) {
        int64_t first, last;
        while (units.next(first, last)) backward_unit<T, A, lanes.value, vectors.value>(job, first, s);
    });
}

template <class F>
static auto with_dtype(int64_t dtype, F f) {
    switch (dtype) {
        case HFI_FLOAT64:
            return f(double());
        case HFI_BFLOAT16:
            return f(bf16());
        case HFI_FLOAT16:
            return f(fp16());
        default:
            return f(float());
    }
}

static Work dcnv3_forward(DCNv3Forward& job, int64_t threads) {
    const hfi_dcnv3& c = *job.call;
    int64_t pixels = c.batch * c.out_height * c.out_width, grain = pixels / (threads * 4);
    return with_dtype(c.value.dtype, [&](auto type) {
        Scratch<typename compute<decltype(type)>::type> s;
        return Work{pixels, grain < 1 ? 1 : grain > 64 ? 64 : grain, lay_out(c, c.groups, -1, nullptr, s),
                    forward<decltype(type)>};
    });
}

static Work dcnv3_backward(DCNv3Backward& job, int64_t threads) {
    const hfi_dcnv3& c = *job.call;
    // As many groups at once as a cache holds sums for, if that leaves two units for each thread.
    const int64_t bytes = c.height * c.width * c.channels * 4;
    job.block = CACHE / (bytes + 1);
    if (job.block > c.batch * c.groups / (2 * threads)) job.block = c.batch * c.groups / (2 * threads);
    if (job.block > c.groups) job.block = c.groups;
    if (job.block < 1) job.block = 1;
    const int64_t parts = c.batch * group_blocks(job);
    job.bands = 1;
    if (parts && parts < threads) {
        job.bands = (threads + parts - 1) / parts;
        if (job.bands > c.height) job.bands = c.height;
        if (job.bands < 1) job.bands = 1;
    }
    return with_dtype(c.value.dtype, [&](auto type) {
        Scratch<typename compute<decltype(type)>::type> s;
        return Work{parts * job.bands, 1, lay_out(c, job.block, band_lines(job), nullptr, s), backward<decltype(type)>};
    });
}

// The layer's kernels compute in float, so double is not among their types.
template <class F>
static auto with_float_dtype(int64_t dtype, F f) {
    return dtype == HFI_BFLOAT16 ? f(bf16()) : dtype == HFI_FLOAT16 ? f(fp16()) : f(float());
}

// Pieces of about `size` bytes, but enough of them for all threads.
static int64_t grain(int64_t units, int64_t bytes, int64_t size, int64_t threads) {
    int64_t by_size = size / (bytes + 1), by_threads = units / (threads * 4);
    int64_t least = by_size < by_threads ? by_size : by_threads;
    return least < 1 ? 1 : least;
}

static Work gelu_forward_work(Gelu& job, int64_t threads) {
    return with_float_dtype(job.dtype, [&](auto type) {
        return Work{job.count, grain(job.count, 4, 65536, threads), 0, gelu_forward<decltype(type)>};
    });
}

static Work gelu_backward_work(Gelu& job, int64_t threads) {
    return with_float_dtype(job.dtype, [&](auto type) {
        return Work{job.count, grain(job.count, 4, 65536, threads), 0, gelu_backward<decltype(type)>};
    });
}

static Work norm_forward_work(Norm& job, int64_t threads) {
    return with_float_dtype(job.dtype, [&](auto type) {
        return Work{job.rows, grain(job.rows, job.channels * 4, 65536, threads), 3 * padded(job.channels) * 4,
                    norm_forward<decltype(type)>};
    });
}

static Work blocks_work(
    DepthwiseNormGelu& job, int64_t threads, void (*run)(const void* job, Units& units, char* memory)) {
    ConvScratch s;
    int64_t units = job.batch * job.height * ((job.width + BLOCK - 1) / BLOCK);
    return {units, grain(units, BLOCK * job.channels * 4, 65536, threads), lay_out(job, nullptr, s), run};
}

static Work depthwise_forward_work(DepthwiseNormGelu& job, int64_t threads) {
    return with_float_dtype(job.dtype, [&](auto type) {
        return blocks_work(job, threads, depthwise_norm_gelu_forward<decltype(type)>);
    });
}

static Work depthwise_backward_work(DepthwiseNormGelu& job, int64_t) {
    ConvScratch s;
    return with_float_dtype(job.dtype, [&](auto type) {
        return Work{job.parts, 1, lay_out(job, nullptr, s), depthwise_norm_gelu_backward<decltype(type)>};
    });
}

static Work depthwise_transposed_work(DepthwiseNormGelu& job, int64_t threads) {
    return with_float_dtype(job.dtype, [&](auto type) {
        return blocks_work(job, threads, depthwise_transposed<decltype(type)>);
    });
}

extern const Kernels kernels = {
    HFI_NAME(HFI_ISA),      padded,
    gelu_forward_work,      gelu_backward_work,
    norm_forward_work,      depthwise_forward_work,
    depthwise_backward_work, depthwise_transposed_work,
    dcnv3_forward,          dcnv3_backward,
};

}  // namespace HFI_ISA
