// SPDX-License-Identifier: MIT
// DCNv3 on the GPU, forward and backward.
//
// A few neighbouring threads ("lanes") share one output pixel and group, each with one or more vectors of its channels.
// Positions are clamped to a border of two pixels around the image: NaN, infinite and huge ones fall outside, where
// nothing is read or written. Pixels, groups and line strides count in 32 bits, memory in 64, and places within an
// image in Index: int where that suffices.
//
// D: channels of a group; KH, KW: kernel size; REMOVE: without the central tap. D = 0 or KH = 0: not before run time.
#pragma once

#include "types.cuh"

namespace hfi {

// (N, height, width, features); features lie side by side. Strides in elements.
struct View {
    void* data;
    i64 stride_n, stride_h, stride_w;
};

struct Call {
    i64 batch, height, width, out_height, out_width, groups, channels;
    i64 kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    i64 remove_center, softmax;
    double offset_scale;
    View value, offset, mask;
    View output;  // the backward pass reads its gradient there
    // Backward only. Contiguous; grad_value is zeros of `Sum` at first.
    void *grad_value, *grad_offset, *grad_mask;
    double* fixed_point;  // what a 1 counts in grad_value, if that holds integers; made NaN if a weight is
};

// How the channels of a group are dealt to lanes: LANES * COUNT vectors of V.
template <int D, int MOST>
struct Deal {
    HFI_DEVICE static constexpr int largest(int n, int limit) {
        int power = 1;
        while (2 * power <= limit && n % (2 * power) == 0) power *= 2;
        return power;
    }
    static constexpr int V = D ? largest(D, MOST) : 1;
    static constexpr int MANY = D / V > 64 ? 32 : D / V / 2;
    static constexpr int LANES = D ? largest(D / V, D / V > 8 ? MANY : 4) : 8;
    static constexpr int COUNT = D ? D / V / LANES : 1;
};

template <class A>
struct Place {
    int cell;  // may be any in [-2, size]
    A fraction;
};

template <class A>
HFI_DEVICE Place<A> place(A at, int size) {
    at = min(max(at, (A)-2), (A)size);  // max(NaN, -2) is -2
    int cell = (int)floor(at);
    return {cell, at - (A)cell};
}

// What all taps of one output pixel and group have in common.
template <class T, class O, int KH, int KW, int REMOVE>
struct Pixel {
    typedef typename wide<T>::type A;
    static constexpr int TAPS = KH ? KH * KW - REMOVE : 1;
    const O *offset, *mask;
    A start_x, start_y, scale;
    A kept[TAPS];  // the weights, where their number is known
    A top;         // the greatest logit
    A inverse;     // one over the sum of exp(logit - top)
    int height, width, kernel_h, kernel_w, dilation_h, dilation_w, centre_h, centre_w;
    bool softmax, remove;

    HFI_DEVICE Pixel(const Call& c)
        : scale((A)c.offset_scale),
          top(0),
          inverse(1),
          height((int)c.height),
          width((int)c.width),
          kernel_h(KH ? KH : (int)c.kernel_h),
          kernel_w(KW ? KW : (int)c.kernel_w),
          dilation_h((int)c.dilation_h),
          dilation_w((int)c.dilation_w),
          centre_h(dilation_h * (kernel_h - 1) / 2),
          centre_w(dilation_w * (kernel_w - 1) / 2),
          softmax(c.softmax),
          remove(KH ? REMOVE : c.remove_center) {}

    HFI_DEVICE int taps() const { return KH ? TAPS : kernel_h * kernel_w - (remove ? 1 : 0); }

    HFI_DEVICE void move_to(const Call& c, i64 n, int h, int w, int g) {
        offset = (const O*)c.offset.data + n * c.offset.stride_n + h * c.offset.stride_h + w * c.offset.stride_w +
                 (i64)g * taps() * 2;
        mask = (const O*)c.mask.data + n * c.mask.stride_n + h * c.mask.stride_h + w * c.mask.stride_w +
               (i64)g * taps();
        start_x = (A)(w * (int)c.stride_w - (int)c.padding_w + centre_w);
        start_y = (A)(h * (int)c.stride_h - (int)c.padding_h + centre_h);
        if (KH) {
#pragma unroll
            for (int k = 0; k < TAPS; ++k) kept[k] = get(mask + k);
        }
        if (!softmax || taps() == 0) return;
        top = logit(0);
#pragma unroll(TAPS)
        for (int k = 1; k < taps(); ++k) top = max(top, logit(k));
        A total = 0;
#pragma unroll(TAPS)
        for (int k = 0; k < taps(); ++k) {
            const A power = power_of_e(logit(k) - top);
            total += power;
            if (KH) kept[k % TAPS] = power;
        }
        inverse = reciprocal(total);
    }

    HFI_DEVICE A weight(int k) const {
        const A m = logit(k);
        return !softmax ? m : (KH ? m : power_of_e(m - top)) * inverse;
    }

    // visit(tap, x, y) for every tap in the order of the mask; tap is a constant where KH is one.
    template <class F>
    HFI_DEVICE void each_tap(F visit) const {
        int k = 0;
#pragma unroll(KW ? KW : 1)
        for (int i = 0; i < kernel_w; ++i)
#pragma unroll(KH ? KH : 1)
            for (int j = 0; j < kernel_h; ++j) {
                if (remove && i == kernel_w / 2 && j == kernel_h / 2) continue;
                A off[2];
                load<2>(offset + 2 * k, true, off);
                A x = start_x + ((A)(i * dilation_w - centre_w) + off[0]) * scale;
                A y = start_y + ((A)(j * dilation_h - centre_h) + off[1]) * scale;
                visit(k, place(x, width), place(y, height));
                ++k;
            }
    }

private:
    HFI_DEVICE A logit(int k) const { return KH ? kept[k % TAPS] : (A)get(mask + k); }
};

// The four corners of a sample: upper left, upper right, lower left, lower right.
template <class A>
struct Corners {
    bool inside[4];
    A part[4];  // bilinear weights times the tap's

    HFI_DEVICE Corners(Place<A> x, Place<A> y, A weight, int height, int width) {
        bool left = (unsigned)x.cell < (unsigned)width, right = (unsigned)(x.cell + 1) < (unsigned)width;
        bool upper = (unsigned)y.cell < (unsigned)height, lower = (unsigned)(y.cell + 1) < (unsigned)height;
        inside[0] = upper && left;
        inside[1] = upper && right;
        inside[2] = lower && left;
        inside[3] = lower && right;
        A below = weight * y.fraction, above = weight - below;
        part[3] = below * x.fraction;
        part[2] = below - part[3];
        part[1] = above * x.fraction;
        part[0] = above - part[1];
    }
};

// Where a thread works: lane `lane` of a pair of output pixel and group, in every gridDim.y-th image.
struct Work {
    int h, w, g, lane;
    bool active;

    HFI_DEVICE Work(const Call& c, int lanes) {
        unsigned groups = (unsigned)c.groups, width = (unsigned)c.out_width;
        unsigned pairs = (unsigned)c.out_height * width * groups;
        unsigned pair = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
        lane = (int)(threadIdx.x % lanes);
        active = pair < pairs;
        if (!active) pair = 0;
        unsigned pixel = pair / groups;
        g = (int)(pair - pixel * groups);
        h = (int)(pixel / width);
        w = (int)(pixel - h * width);
    }
};

template <class T, class O, int D, int KH, int KW, int REMOVE, class Index = i64>
HFI_DEVICE void forward(const Call& c) {
    typedef typename wide<T>::type A;
    typedef Deal<D, 16 / sizeof(T)> Lanes;
    constexpr int V = Lanes::V, COUNT = Lanes::COUNT;
    const int channels = D ? D : (int)c.channels;
    const int value_h = (int)c.value.stride_h, value_w = (int)c.value.stride_w;
    const Work at(c, Lanes::LANES);
    if (!at.active) return;
    Pixel<T, O, KH, KW, REMOVE> pixel(c);
    for (i64 n = blockIdx.y; n < c.batch; n += gridDim.y) {
        pixel.move_to(c, n, at.h, at.w, at.g);
        // One round where D is known, else one for every LANES channels.
        for (int first = at.lane * V; first < channels; first += Lanes::LANES * V * COUNT) {
            const T* image = opaque((const T*)c.value.data + n * c.value.stride_n + (i64)at.g * channels + first);
            A sum[COUNT][V] = {};
            pixel.each_tap([&](int k, Place<A> x, Place<A> y) {
                const Corners<A> corner(x, y, pixel.weight(k), pixel.height, pixel.width);
                const Index cell = (Index)y.cell * value_h + (Index)x.cell * value_w;
                Words<V * sizeof(T)> words[4][COUNT];  // all on their way before the first is needed
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const T* from = image + (cell + (i / 2 ? value_h : 0) + (i % 2 ? value_w : 0));
#pragma unroll
                    for (int v = 0; v < COUNT; ++v)
                        words[i][v] = fetch<V>(from + v * Lanes::LANES * V, corner.inside[i]);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int v = 0; v < COUNT; ++v)
#pragma unroll
                        for (int d = 0; d < V; ++d) sum[v][d] += corner.part[i] * Element<T>::get(words[i][v], d);
            });
            T* to = (T*)c.output.data + n * c.output.stride_n + at.h * c.output.stride_h + at.w * c.output.stride_w +
                    (i64)at.g * channels + first;
#pragma unroll
            for (int v = 0; v < COUNT; ++v) store<V>(to + v * Lanes::LANES * V, sum[v], true);
        }
    }
}

// The sum over the lanes of a pair, in each of them.
template <int LANES, class A>
HFI_DEVICE A over_lanes(A number) {
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) number += __shfl_xor_sync(0xffffffff, number, step);
    return number;
}

// Sum: what grad_value is added up in; float (double for double), or i64 for sums in fixed point.
template <class T, class O, class Sum, int D, int KH, int KW, int REMOVE, class Index = i64>
HFI_DEVICE void backward(const Call& c) {
    typedef typename wide<T>::type A;
    typedef Deal<D, 16 / sizeof(A)> Lanes;
    constexpr int V = Lanes::V, COUNT = Lanes::COUNT, LANES = Lanes::LANES;
    constexpr int TAPS = Pixel<T, O, KH, KW, REMOVE>::TAPS;
    const int channels = D ? D : (int)c.channels;
    const Work at(c, LANES);  // lanes without work stay: the others' sums need them
    const int value_h = (int)c.value.stride_h, value_w = (int)c.value.stride_w;
    const int sum_w = (int)c.groups * channels, sum_h = sum_w * (int)c.width;
    const double fixed_point = c.fixed_point ? *c.fixed_point : 1;
    Pixel<T, O, KH, KW, REMOVE> pixel(c);
    for (i64 n = blockIdx.y; n < c.batch; n += gridDim.y) {
        pixel.move_to(c, n, at.h, at.w, at.g);
        if (c.fixed_point && !(pixel.inverse == pixel.inverse)) *c.fixed_point = pixel.inverse;  // no integer is NaN
        const int first = at.lane * V;
        const i64 feature = (i64)at.g * channels + first;
        const T* image = opaque((const T*)c.value.data + n * c.value.stride_n + feature);
        const T* output = (const T*)c.output.data + n * c.output.stride_n + at.h * c.output.stride_h +
                          at.w * c.output.stride_w + feature;
        Sum* sum = opaque((Sum*)c.grad_value + n * c.height * sum_h + feature);
        const i64 pair = ((n * c.out_height + at.h) * c.out_width + at.w) * c.groups + at.g;
        O* grad_offset = (O*)c.grad_offset + pair * pixel.taps() * 2;
        O* grad_mask = (O*)c.grad_mask + pair * pixel.taps();
        A gradient[COUNT][V];
        if (D) {
#pragma unroll
            for (int v = 0; v < COUNT; ++v) load<V>(output + v * LANES * V, at.active, gradient[v]);
        }
        // <gradient, corner> of the lane's own channels. Adds what flows into each corner to `sum`, if `adding`.
        auto dots = [&](const Corners<A>& corner, Place<A> x, Place<A> y, bool adding, A(&dot)[4]) {
            const Index cell = (Index)y.cell * value_h + (Index)x.cell * value_w;
            const Index sum_cell = (Index)y.cell * sum_h + (Index)x.cell * sum_w;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const T* from = image + (cell + (i / 2 ? value_h : 0) + (i % 2 ? value_w : 0));
                Sum* to = sum + (sum_cell + (i / 2 ? sum_h : 0) + (i % 2 ? sum_w : 0));
                const bool there = corner.inside[i] && at.active;
                dot[i] = 0;
                for (int d = 0; first + d < channels; d += LANES * V * COUNT) {
                    if (!D) load<V>(output + d, at.active, gradient[0]);
#pragma unroll
                    for (int v = 0; v < COUNT; ++v) {
                        A numbers[V];
                        load<V>(from + d + v * LANES * V, there, numbers);
#pragma unroll
                        for (int e = 0; e < V; ++e) dot[i] += gradient[v][e] * numbers[e];
                        if (adding)
                            add(to + d + v * LANES * V, corner.part[i], gradient[v], fixed_point, there);
                    }
                }
            }
        };
        // Mean of the taps' samples times the gradient, for the softmax; slope: those of each tap.
        A mean = 0, slope[TAPS];
        if (!KH && pixel.softmax) {
            pixel.each_tap([&](int k, Place<A> x, Place<A> y) {
                const Corners<A> corner(x, y, pixel.weight(k), pixel.height, pixel.width);
                A dot[4];
                dots(corner, x, y, false, dot);
#pragma unroll
                for (int i = 0; i < 4; ++i) mean += corner.part[i] * dot[i];
            });
            mean = over_lanes<LANES>(mean);
        }
        pixel.each_tap([&](int k, Place<A> x, Place<A> y) {
            const A weight = pixel.weight(k);
            const Corners<A> corner(x, y, weight, pixel.height, pixel.width);
            A dot[4];
            dots(corner, x, y, true, dot);
            const A upper = dot[1] - dot[0], lower = dot[3] - dot[2], left = dot[2] - dot[0], right = dot[3] - dot[1];
            A along[2] = {upper + y.fraction * (lower - upper), left + x.fraction * (right - left)};
            const A above = dot[0] + x.fraction * upper, below = dot[2] + x.fraction * lower;
            const A sample = over_lanes<LANES>(above + y.fraction * (below - above));
#pragma unroll
            for (int i = 0; i < 2; ++i) along[i] = over_lanes<LANES>(along[i]) * weight * pixel.scale;
            if (at.active && at.lane == k % LANES) store<2>(grad_offset + 2 * k, along);
            if (KH) {
                slope[k % TAPS] = sample;
                mean += weight * sample;
            } else if (at.active && at.lane == k % LANES) {
                put(grad_mask + k, pixel.softmax ? weight * (sample - mean) : sample);
            }
        });
        if (!KH) continue;
#pragma unroll
        for (int k = 0; k < TAPS; ++k) {
            const A weight = pixel.weight(k);
            if (at.active && at.lane == k % LANES)
                put(grad_mask + k, pixel.softmax ? weight * (slope[k] - mean) : slope[k]);
        }
    }
}

}  // namespace hfi
