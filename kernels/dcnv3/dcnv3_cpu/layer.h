// SPDX-License-Identifier: MIT
// What surrounds DCNv3 in InternImage's layer, in one pass each: GELU, LayerNorm with what follows it, and
// the depth-wise convolution with its LayerNorm and GELU. Storage types float, bf16 and fp16; everything is computed in float.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace HFI_ISA {

static const int LANES = VECTOR / 4;
static const int BLOCK = 4;  // pixels of a line that a convolution works on at once

static int64_t padded(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }

// `count` stored numbers as floats, and zeros up to a whole vector.
template <class T>
HFI_ONCE void widen(const T* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store<LANES>(to + i, load<LANES>(from + i));
    if (i < count) store<LANES>(to + i, load_some<LANES>(from + i, count - i));
}

template <class T>
static void gelu_forward(const void* pointer, Units& units, char*) {
    const Gelu& job = *(const Gelu*)pointer;
    const T* in = (const T*)job.input;
    T* out = (T*)job.output;
    int64_t i, last;
    while (units.next(i, last)) {
        for (; i + LANES <= last; i += LANES) store<LANES>(out + i, gelu<LANES>(load<LANES>(in + i)));
        for (; i < last; ++i) store<1>(out + i, gelu<1>(load<1>(in + i)));
    }
}

template <class T, int L>
HFI_INLINE void gelu_backward_lanes(const Gelu& job, int64_t i) {
    vec_t<float, L> y, slope;
    gelu_with_slope<L>(load<L>((const T*)job.input + i), y, slope);
    store<L>((T*)job.grad_input + i, load<L>((const T*)job.grad_output + i) * slope);
    store<L>((T*)job.output + i, y);
}

template <class T>
static void gelu_backward(const void* pointer, Units& units, char*) {
    const Gelu& job = *(const Gelu*)pointer;
    int64_t i, last;
    while (units.next(i, last)) {
        for (; i + LANES <= last; i += LANES) gelu_backward_lanes<T, LANES>(job, i);
        for (; i < last; ++i) gelu_backward_lanes<T, 1>(job, i);
    }
}

// Memory of one thread for the convolution; rows have `padded(channels)` floats.
struct ConvScratch {
    float *weight;  // (kernel * kernel) rows
    float *bias, *gamma, *beta;
    float* zeros;   // a pixel outside
    float* sum;     // (BLOCK) rows: result of the convolution
    float* slope;   // (BLOCK) rows, backward only
    const void** pixel;  // (kernel, kernel + BLOCK - 1)
};

static int64_t lay_out(const DepthwiseNormGelu& job, char* memory, ConvScratch& s) {
    int64_t row = padded(job.channels) * 4, used = 0;
    auto take = [&](int64_t bytes) {
        char* at = memory ? memory + used : nullptr;
        used += (bytes + 63) / 64 * 64;
        return at;
    };
    s.weight = (float*)take(job.kernel * job.kernel * row);
    s.bias = (float*)take(row);
    s.gamma = (float*)take(row);
    s.beta = (float*)take(row);
    s.zeros = (float*)take(row);
    s.sum = (float*)take(BLOCK * row);
    s.slope = (float*)take(BLOCK * row);
    s.pixel = (const void**)take(job.kernel * (job.kernel + BLOCK - 1) * sizeof(void*));
    return used;
}

template <class T>
static void fill(const DepthwiseNormGelu& job, bool transposed, ConvScratch& s) {
    int64_t taps = job.kernel * job.kernel, row = padded(job.channels);
    memset(s.weight, 0, taps * row * sizeof(float));
    for (int64_t c = 0; c < job.channels; ++c)
        for (int64_t k = 0; k < taps; ++k)
            s.weight[(transposed ? taps - 1 - k : k) * row + c] = get((const T*)job.weight + c * taps + k);
    widen((const T*)job.bias, job.channels, s.bias);
    widen((const T*)job.gamma, job.channels, s.gamma);
    widen((const T*)job.beta, job.channels, s.beta);
    if (transposed) memset(s.bias, 0, row * sizeof(float));
    memset(s.zeros, 0, row * sizeof(float));
}

// The pixels around those of line h from w on, in image n; a line of zeros stands for those outside.
template <class T>
HFI_ONCE void gather(const DepthwiseNormGelu& job, const T* image, int64_t h, int64_t w, ConvScratch& s) {
    const int64_t kernel = job.kernel, reach = kernel / 2, across = kernel + BLOCK - 1;
    for (int64_t i = 0; i < kernel; ++i)
        for (int64_t j = 0; j < across; ++j) {
            int64_t y = h + i - reach, x = w + j - reach;
            bool inside = y >= 0 && y < job.height && x >= 0 && x < job.width;
            s.pixel[i * across + j] = inside ? image + y * job.stride_h + x * job.stride_w : (const T*)s.zeros;
        }
}

template <class T, int L, int KERNEL>
HFI_INLINE void convolve_lanes(const ConvScratch& s, int64_t kernel_, int64_t row, int64_t c) {
    typedef vec_t<float, L> V;
    const int64_t kernel = KERNEL ? KERNEL : kernel_, across = kernel + BLOCK - 1;
    V start = load<L>(s.bias + c), sum[BLOCK];
    for (int b = 0; b < BLOCK; ++b) sum[b] = start;
    for (int64_t i = 0; i < kernel; ++i) {
        if (KERNEL) {
            V in[(KERNEL ? KERNEL : 1) + BLOCK - 1];
            for (int64_t j = 0; j < across; ++j) in[j] = load<L>((const T*)s.pixel[i * across + j] + c);
            for (int64_t j = 0; j < kernel; ++j) {
                V weight = load<L>(s.weight + (i * kernel + j) * row + c);
                for (int b = 0; b < BLOCK; ++b) sum[b] += in[j + b] * weight;
            }
        } else {
            for (int64_t j = 0; j < kernel; ++j) {
                V weight = load<L>(s.weight + (i * kernel + j) * row + c);
                for (int b = 0; b < BLOCK; ++b) sum[b] += load<L>((const T*)s.pixel[i * across + j + b] + c) * weight;
            }
        }
    }
    for (int b = 0; b < BLOCK; ++b) store<L>(s.sum + b * row + c, sum[b]);
}

// s.sum = the convolution of the BLOCK pixels gathered.
template <class T>
HFI_ONCE void convolve(const DepthwiseNormGelu& job, const ConvScratch& s) {
    const int64_t row = padded(job.channels);
    int64_t c = 0;
    if (job.kernel == 3)
        for (; c + LANES <= job.channels; c += LANES) convolve_lanes<T, LANES, 3>(s, 3, row, c);
    else
        for (; c + LANES <= job.channels; c += LANES) convolve_lanes<T, LANES, 0>(s, job.kernel, row, c);
    for (; c < job.channels; ++c) convolve_lanes<T, 1, 0>(s, job.kernel, row, c);
}

// Mean and reciprocal standard deviation of `channels` numbers in a row padded to whole vectors.
HFI_ONCE void moments(const float* x, int64_t channels, float epsilon, float& mean, float& scale) {
    typedef vec_t<float, LANES> V;
    V total{}, squares{};
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) total += load<LANES>(x + c);
    mean = sum<float, LANES>(total);
    for (; c < channels; ++c) mean += x[c];
    mean /= channels;
    for (c = 0; c + LANES <= channels; c += LANES) {
        V d = load<LANES>(x + c) - mean;
        squares += d * d;
    }
    float variance = sum<float, LANES>(squares);
    for (; c < channels; ++c) variance += (x[c] - mean) * (x[c] - mean);
    scale = 1.0f / __builtin_sqrtf(variance / channels + epsilon);
}

// LANES rows at once, from `row` on, of whole vectors: their sums over lanes are made together. Rows behind `last` are
// taken for the last one, so that a row's result does not depend on its neighbours.
template <class T, bool ACTIVATE>
HFI_INLINE void norm_rows(const Norm& job, int64_t row, int64_t last, const float* gamma, const float* beta) {
    typedef vec_t<float, LANES> V;
    const int64_t channels = job.channels;
    const T* in[LANES];
    V total[LANES], squares[LANES];
    for (int r = 0; r < LANES; ++r) {
        in[r] = (const T*)job.input + (row + r < last ? row + r : last - 1) * channels;
        V even{}, odd{};
        int64_t c = 0;
        for (; c + 2 * LANES <= channels; c += 2 * LANES) {
            even += load<LANES>(in[r] + c);
            odd += load<LANES>(in[r] + c + LANES);
        }
        if (c < channels) even += load<LANES>(in[r] + c);
        total[r] = even + odd;
    }
    const V mean = sums<float, LANES>(total) / (float)channels;
    for (int r = 0; r < LANES; ++r) {
        V even{}, odd{};
        int64_t c = 0;
        for (; c + 2 * LANES <= channels; c += 2 * LANES) {
            const V a = load<LANES>(in[r] + c) - mean[r], b = load<LANES>(in[r] + c + LANES) - mean[r];
            even += a * a;
            odd += b * b;
        }
        if (c < channels) {
            const V a = load<LANES>(in[r] + c) - mean[r];
            even += a * a;
        }
        squares[r] = even + odd;
    }
    V scale = sums<float, LANES>(squares) / (float)channels + (float)job.epsilon;
    for (int r = 0; r < LANES; ++r) scale[r] = __builtin_sqrtf(scale[r]);
    scale = 1.0f / scale;
    for (int r = 0; r < LANES && row + r < last; ++r) {
        const T* residual = job.residual ? (const T*)job.residual + (row + r) * channels : nullptr;
        T* out = (T*)job.output + (row + r) * channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            V y = (load<LANES>(in[r] + c) - mean[r]) * scale[r] * load<LANES>(gamma + c) + load<LANES>(beta + c);
            if (ACTIVATE) y = gelu<LANES>(y);
            if (residual) y += load<LANES>(residual + c);
            store<LANES>(out + c, y);
        }
    }
}

template <class T>
static void norm_forward(const void* pointer, Units& units, char* memory) {
    typedef vec_t<float, LANES> V;
    const Norm& job = *(const Norm*)pointer;
    const int64_t channels = job.channels, padding = padded(channels);
    float *gamma = (float*)memory, *beta = gamma + padding, *x = beta + padding;
    widen((const T*)job.gamma, channels, gamma);
    widen((const T*)job.beta, channels, beta);
    if (job.scale)
        for (int64_t c = 0; c < channels; ++c) {
            const float scale = get((const T*)job.scale + c);
            gamma[c] *= scale;
            beta[c] *= scale;
        }
    int64_t first, last;
    if (channels % LANES == 0) {
        while (units.next(first, last))
            for (int64_t row = first; row < last; row += LANES)
                if (job.activate)
                    norm_rows<T, true>(job, row, last, gamma, beta);
                else
                    norm_rows<T, false>(job, row, last, gamma, beta);
        return;
    }
    while (units.next(first, last))
        for (int64_t row = first; row < last; ++row) {
            const T* residual = job.residual ? (const T*)job.residual + row * channels : nullptr;
            T* out = (T*)job.output + row * channels;
            float mean, scale;
            widen((const T*)job.input + row * channels, channels, x);
            moments(x, channels, job.epsilon, mean, scale);
            for (int64_t c = 0; c < channels; c += LANES) {
                const bool whole = c + LANES <= channels;
                V y = (load<LANES>(x + c) - mean) * scale * load<LANES>(gamma + c) + load<LANES>(beta + c);
                if (job.activate) y = gelu<LANES>(y);
                if (residual) y += whole ? load<LANES>(residual + c) : load_some<LANES>(residual + c, channels - c);
                if (whole)
                    store<LANES>(out + c, y);
                else
                    store_some<LANES>(out + c, y, channels - c);
            }
        }
}

template <class T>
static void depthwise_norm_gelu_forward(const void* pointer, Units& units, char* memory) {
    typedef vec_t<float, LANES> V;
    const DepthwiseNormGelu& job = *(const DepthwiseNormGelu*)pointer;
    const int64_t blocks = (job.width + BLOCK - 1) / BLOCK, row = padded(job.channels);
    ConvScratch s;
    lay_out(job, memory, s);
    fill<T>(job, false, s);
    int64_t first, last;
    while (units.next(first, last))
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t w = unit % blocks * BLOCK, h = unit / blocks % job.height, n = unit / blocks / job.height;
            gather(job, (const T*)job.input + n * job.stride_n, h, w, s);
            convolve<T>(job, s);
            for (int64_t b = 0; b < BLOCK && w + b < job.width; ++b) {
                const float* x = s.sum + b * row;
                T* out = (T*)job.output + ((n * job.height + h) * job.width + w + b) * job.channels;
                float mean, scale;
                moments(x, job.channels, job.epsilon, mean, scale);
                int64_t c = 0;
                for (; c + LANES <= job.channels; c += LANES) {
                    V z = (load<LANES>(x + c) - mean) * scale * load<LANES>(s.gamma + c) + load<LANES>(s.beta + c);
                    store<LANES>(out + c, gelu<LANES>(z));
                }
                for (; c < job.channels; ++c) {
                    vec_t<float, 1> z = {(x[c] - mean) * scale * s.gamma[c] + s.beta[c]};
                    store<1>(out + c, gelu<1>(z));
                }
            }
        }
}

// job.slope = the gradient of the convolution's result, and job.sums, for each of job.parts parts of the lines, rows of
// sums: gradients of the weight (kernel * kernel), the bias, gamma and beta.
template <class T>
static void depthwise_norm_gelu_backward(const void* pointer, Units& units, char* memory) {
    typedef vec_t<float, LANES> V;
    const DepthwiseNormGelu& job = *(const DepthwiseNormGelu*)pointer;
    const int64_t channels = job.channels, row = padded(channels), taps = job.kernel * job.kernel;
    const int64_t lines = job.batch * job.height, across = job.kernel + BLOCK - 1;
    ConvScratch s;
    lay_out(job, memory, s);
    fill<T>(job, false, s);
    int64_t part, unused;
    while (units.next(part, unused)) {
        float* sums = job.sums + part * (taps + 3) * row;
        float *sum_bias = sums + taps * row, *sum_gamma = sum_bias + row, *sum_beta = sum_gamma + row;
        memset(sums, 0, (taps + 3) * row * sizeof(float));
        for (int64_t line = part * lines / job.parts; line < (part + 1) * lines / job.parts; ++line) {
            const int64_t n = line / job.height, h = line % job.height;
            for (int64_t w = 0; w < job.width; w += BLOCK) {
                const int64_t count = job.width - w < BLOCK ? job.width - w : BLOCK;
                gather(job, (const T*)job.input + n * job.stride_n, h, w, s);
                convolve<T>(job, s);
                for (int64_t b = 0; b < count; ++b) {
                    float *x = s.sum + b * row, *d = s.slope + b * row, mean, scale;
                    memset(x + channels, 0, (row - channels) * sizeof(float));  // no NaN may come from there
                    const int64_t at = (line * job.width + w + b) * channels;
                    const T* grad = (const T*)job.grad_output + at;
                    moments(x, channels, job.epsilon, mean, scale);
                    V total{}, projected{};
                    for (int64_t c = 0; c < channels; c += LANES) {
                        V g = c + LANES <= channels ? load<LANES>(grad + c)
                                                    : load_some<LANES>(grad + c, channels - c);
                        V gamma = load<LANES>(s.gamma + c);  // zero behind the last channel, as g is
                        V normed = (load<LANES>(x + c) - mean) * scale;
                        V dz = g * gelu_slope<LANES>(normed * gamma + load<LANES>(s.beta + c));
                        store<LANES>(sum_gamma + c, load<LANES>(sum_gamma + c) + dz * normed);
                        store<LANES>(sum_beta + c, load<LANES>(sum_beta + c) + dz);
                        V t = dz * gamma;
                        total += t;
                        projected += t * normed;
                        store<LANES>(x + c, normed);
                        store<LANES>(d + c, t);
                    }
                    float a = sum<float, LANES>(total) / channels, p = sum<float, LANES>(projected) / channels;
                    for (int64_t c = 0; c < channels; c += LANES) {
                        V t = (load<LANES>(d + c) - a - load<LANES>(x + c) * p) * scale;
                        store<LANES>(d + c, t);
                        store<LANES>(sum_bias + c, load<LANES>(sum_bias + c) + t);
                        if (c + LANES <= channels)
                            store<LANES>(job.slope + at + c, t);
                        else
                            store_some<LANES>(job.slope + at + c, t, channels - c);
                    }
                }
                for (int64_t b = count; b < BLOCK; ++b) memset(s.slope + b * row, 0, row * sizeof(float));
                for (int64_t c = 0; c < channels; c += LANES) {
                    const bool whole = c + LANES <= channels;
                    V d[BLOCK];
                    for (int b = 0; b < BLOCK; ++b) d[b] = load<LANES>(s.slope + b * row + c);
                    for (int64_t i = 0; i < job.kernel; ++i)
                        for (int64_t j = 0; j < job.kernel; ++j) {
                            float* to = sums + (i * job.kernel + j) * row + c;
                            V t = load<LANES>(to);
                            for (int b = 0; b < BLOCK; ++b) {
                                const T* from = (const T*)s.pixel[i * across + j + b] + c;
                                t += d[b] * (whole ? load<LANES>(from) : load_some<LANES>(from, channels - c));
                            }
                            store<LANES>(to, t);
                        }
                }
            }
        }
    }
}

// The gradient of the convolution's input: job.slope convolved with the turned weight.
template <class T>
static void depthwise_transposed(const void* pointer, Units& units, char* memory) {
    const DepthwiseNormGelu& job = *(const DepthwiseNormGelu*)pointer;
    const int64_t blocks = (job.width + BLOCK - 1) / BLOCK, row = padded(job.channels);
    DepthwiseNormGelu turned = job;
    turned.stride_w = job.channels;
    turned.stride_h = job.width * job.channels;
    turned.stride_n = job.height * turned.stride_h;
    ConvScratch s;
    lay_out(turned, memory, s);
    fill<T>(job, true, s);
    int64_t first, last;
    while (units.next(first, last))
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t w = unit % blocks * BLOCK, h = unit / blocks % job.height, n = unit / blocks / job.height;
            gather(turned, (const float*)job.slope + n * turned.stride_n, h, w, s);
            convolve<float>(turned, s);
            for (int64_t b = 0; b < BLOCK && w + b < job.width; ++b) {
                T* out = (T*)job.output + ((n * job.height + h) * job.width + w + b) * job.channels;
                int64_t c = 0;
                for (; c + LANES <= job.channels; c += LANES)
                    store<LANES>(out + c, load<LANES>(s.sum + b * row + c));
                for (; c < job.channels; ++c) put(out + c, s.sum[b * row + c]);
            }
        }
}

}  // namespace HFI_ISA
