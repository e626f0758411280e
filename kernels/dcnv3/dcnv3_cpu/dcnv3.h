// SPDX-License-Identifier: MIT
// DCNv3, forward and backward, for one instruction set.
//
// Positions are those of the image with a border of two pixels, as in dcnv3_reference.py: clamped to that border they
// are never negative, every conversion to an integer is defined, and NaN or huge positions fall outside the image.
// A corner outside is read from a line of zeros.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace HFI_ISA {

static const int BORDER = 2;

HFI_INLINE int64_t count_taps(const hfi_dcnv3& c) { return c.kernel_h * c.kernel_w - (c.remove_center ? 1 : 0); }

HFI_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory of one thread; every array has room for whole vectors.
template <class A>
struct Scratch {
    A* grid;        // (groups, taps, 2): place of each tap relative to the kernel's centre, (x, y)
    A* fraction;    // (groups, taps, 2): place within the cell
    int32_t* cell;  // (groups, taps, 2): the cell's upper left corner, in pixels of the bordered image
    A* weight;      // (groups, taps)
    A* zeros;       // (channels); read in place of pixels outside, as whatever type the image has
    A* gradient;    // (channels), backward only, like the rest
    A* product;     // (taps, 4, lanes)
    A* dot;         // (taps, 4)
    A* slope;       // (taps): gradient of the weight
    A* sum;         // (lines, width, groups, channels): gradient of the value
};

// Points `s` into `memory`; returns the bytes needed, also without any memory. `lines` is -1 in the forward pass.
template <class A>
static int64_t lay_out(const hfi_dcnv3& c, int64_t groups, int64_t lines, char* memory, Scratch<A>& s) {
    int64_t taps = count_taps(c), used = 0;
    auto take = [&](int64_t count, int64_t size) {
        char* at = memory ? memory + used : nullptr;
        used += round_up(count * size, 64) + 64;  // 64 bytes: the longest vector
        return at;
    };
    s.grid = (A*)take(groups * taps * 2, sizeof(A));
    s.fraction = (A*)take(groups * taps * 2, sizeof(A));
    s.cell = (int32_t*)take(groups * taps * 2, sizeof(int32_t));
    s.weight = (A*)take(groups * taps, sizeof(A));
    s.zeros = (A*)take(c.channels, sizeof(A));
    if (lines >= 0) {
        s.gradient = (A*)take(c.channels, sizeof(A));
        s.product = (A*)take((taps * 4 + 16) * 16, sizeof(A));
        s.dot = (A*)take(taps * 4 + 16, sizeof(A));
        s.slope = (A*)take(taps, sizeof(A));
        s.sum = (A*)take(lines * c.width * groups * c.channels, sizeof(A));
    }
    return used;
}

template <class A>
static void fill(const hfi_dcnv3& c, int64_t groups, Scratch<A>& s) {
    int64_t centre_w = c.dilation_w * (c.kernel_w - 1) / 2, centre_h = c.dilation_h * (c.kernel_h - 1) / 2;
    A scale = (A)c.offset_scale;
    A* grid = s.grid;
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t i = 0; i < c.kernel_w; ++i)
            for (int64_t j = 0; j < c.kernel_h; ++j) {
                if (c.remove_center && i == c.kernel_w / 2 && j == c.kernel_h / 2) continue;
                *grid++ = (A)(i * c.dilation_w - centre_w) * scale;
                *grid++ = (A)(j * c.dilation_h - centre_h) * scale;
            }
    memset(grid, 0, 64);
    memset(s.zeros, 0, c.channels * sizeof(A));
}

// Where each of `count` taps of the output pixel (h, w) samples: cell and place within it, (x, y).
template <class T, class A, int L>
HFI_ONCE void positions(const hfi_dcnv3& c, const T* offset, int64_t h, int64_t w, int64_t count, Scratch<A>& s) {
    typedef vec_t<A, L> V;
    typedef vec_t<int32_t, L> I;
    typedef vec_t<typename bits_of<A>::type, L> M;
    A x0 = (A)(w * c.stride_w - c.padding_w + c.dilation_w * (c.kernel_w - 1) / 2 + BORDER);
    A y0 = (A)(h * c.stride_h - c.padding_h + c.dilation_h * (c.kernel_h - 1) / 2 + BORDER);
    A x1 = (A)(c.width + BORDER), y1 = (A)(c.height + BORDER), scale = (A)c.offset_scale;
    V start, end;
    for (int i = 0; i < L; ++i) {
        start[i] = i % 2 ? y0 : x0;
        end[i] = i % 2 ? y1 : x1;
    }
    for (int64_t k = 0; k < 2 * count; k += L) {
        V off = 2 * count - k >= L ? load<L>(offset + k) : load_some<L>(offset + k, 2 * count - k);
        V at = (start + load<L>(s.grid + k)) + off * scale;
        at = select((M)(at > (A)0), at, V{});  // NaN, too
        at = select((M)(at < end), at, end);
        I cell = __builtin_convertvector(at, I);
        store<L>(s.fraction + k, at - __builtin_convertvector(cell, V));
        memcpy(s.cell + k, &cell, sizeof cell);
    }
}

// In place, over the taps of each group; TAPS is their number if that is a usual one, else 0.
template <class A, int L, int TAPS>
HFI_INLINE void softmax(A* weight, int64_t groups, int64_t any_taps) {
    const int64_t taps = TAPS ? TAPS : any_taps, count = groups * taps;
    for (int64_t g = 0; g < groups; ++g) {
        A* m = weight + g * taps;
        A top = m[0];
        for (int64_t p = 1; p < taps; ++p) top = m[p] > top ? m[p] : top;
        for (int64_t p = 0; p < taps; ++p) m[p] -= top;
    }
    for (int64_t k = 0; k < count; k += L) store<L>(weight + k, exp<L>(load<L>(weight + k)));
    for (int64_t g = 0; g < groups; ++g) {
        A* m = weight + g * taps;
        A total = 0;
        for (int64_t p = 0; p < taps; ++p) total += m[p];
        const A inverse = 1 / total;
        for (int64_t p = 0; p < taps; ++p) m[p] *= inverse;
    }
}

// The weights of `groups` times `taps` taps: the mask, or its softmax.
template <class T, class A, int L>
HFI_ONCE void weights(const T* mask, int64_t groups, int64_t taps, bool normalise, A* weight) {
    int64_t count = groups * taps, k = 0;
    for (; k + L <= count; k += L) store<L>(weight + k, load<L>(mask + k));
    if (k < count) store<L>(weight + k, load_some<L>(mask + k, count - k));
    if (!normalise) return;
    if (taps == 9)
        softmax<A, L, 9>(weight, groups, taps);
    else
        softmax<A, L, 0>(weight, groups, taps);
}

// Positions and weights of `groups` groups of a pixel, from element `at` of tensors of either dtype: T or A.
template <class T, class A>
HFI_INLINE void read_offsets(
    const hfi_dcnv3& c, const void* offset, int64_t at, int64_t h, int64_t w, int64_t groups, Scratch<A>& s) {
    const int64_t count = groups * count_taps(c);
    if (c.offset.dtype == c.value.dtype)
        positions<T, A, VECTOR / sizeof(A)>(c, (const T*)offset + at, h, w, count, s);
    else
        positions<A, A, VECTOR / sizeof(A)>(c, (const A*)offset + at, h, w, count, s);
}

template <class T, class A>
HFI_INLINE void read_mask(const hfi_dcnv3& c, const void* mask, int64_t at, int64_t groups, Scratch<A>& s) {
    const int64_t taps = count_taps(c);
    if (c.mask.dtype == c.value.dtype)
        weights<T, A, VECTOR / sizeof(A)>((const T*)mask + at, groups, taps, c.softmax, s.weight);
    else
        weights<A, A, VECTOR / sizeof(A)>((const A*)mask + at, groups, taps, c.softmax, s.weight);
}

// The four corners of one tap: upper left, upper right, lower left, lower right.
template <class T, class A>
struct Corners {
    const T* from[4];
    bool inside[4];
    A part[4];  // bilinear weights
    int64_t x, y;  // of the upper left one
};

template <class T, class A>
HFI_INLINE Corners<T, A> corners(
    const hfi_dcnv3& c, const T* image, const T* zeros, const int32_t* cell, const A* fraction) {
    Corners<T, A> out;
    int64_t x = (int64_t)cell[0] - BORDER, y = (int64_t)cell[1] - BORDER;
    A right = fraction[0], below = fraction[1];
    out.x = x;
    out.y = y;
    out.part[3] = right * below;
    out.part[2] = below - out.part[3];
    out.part[1] = right - out.part[3];
    out.part[0] = (1 - below) - out.part[1];
    int64_t sh = c.value.stride_h, sw = c.value.stride_w, at = y * sh + x * sw;
    if (x >= 0 && x + 1 < c.width && y >= 0 && y + 1 < c.height) {
        out.from[0] = image + at;
        out.from[1] = image + (at + sw);
        out.from[2] = image + (at + sh);
        out.from[3] = image + (at + sh + sw);
        out.inside[0] = out.inside[1] = out.inside[2] = out.inside[3] = true;
        return out;
    }
    bool left = (uint64_t)x < (uint64_t)c.width, next = (uint64_t)(x + 1) < (uint64_t)c.width;
    bool upper = (uint64_t)y < (uint64_t)c.height, lower = (uint64_t)(y + 1) < (uint64_t)c.height;
    out.inside[0] = upper && left;
    out.inside[1] = upper && next;
    out.inside[2] = lower && left;
    out.inside[3] = lower && next;
    out.from[0] = out.inside[0] ? image + at : zeros;
    out.from[1] = out.inside[1] ? image + (at + sw) : zeros;
    out.from[2] = out.inside[2] ? image + (at + sh) : zeros;
    out.from[3] = out.inside[3] ? image + (at + sh + sw) : zeros;
    return out;
}

// Output channels [first, first + NV*L) of one group.
template <class T, class A, int L, int NV>
HFI_INLINE void sample(
    const hfi_dcnv3& c, const T* image, const Scratch<A>& s, int64_t tap, int64_t taps, int64_t first, T* out) {
    typedef vec_t<A, L> V;
    // Sums of their own for the corners: additions to a single one would wait for each other.
    constexpr int CHAINS = NV > 2 ? 2 : 4;
    V sum[CHAINS][NV] = {};
    for (int64_t k = tap; k < tap + taps; ++k) {
        Corners<T, A> at = corners<T, A>(c, image, (const T*)s.zeros, s.cell + 2 * k, s.fraction + 2 * k);
        A weight = s.weight[k];
        for (int i = 0; i < 4; ++i) {
            A part = at.part[i] * weight;
            for (int v = 0; v < NV; ++v) sum[i % CHAINS][v] += load<L>(at.from[i] + first + v * L) * part;
        }
    }
    for (int v = 0; v < NV; ++v) {
        V total = sum[0][v] + sum[1][v];
        if (CHAINS == 4) total += sum[CHAINS - 2][v] + sum[CHAINS - 1][v];
        store<L>(out + first + v * L, total);
    }
}

// Output pixels [first, last) of all images, counted through.
template <class T, class A, int L, int NV>
static void forward_pixels(const DCNv3Forward& job, int64_t first, int64_t last, Scratch<A>& s) {
    const hfi_dcnv3& c = *job.call;
    int64_t taps = count_taps(c), per_image = c.out_height * c.out_width;
    int64_t n = first / per_image, h = first % per_image / c.out_width, w = first % c.out_width;
    for (int64_t pixel = first; pixel < last; ++pixel) {
        int64_t at_offset = n * c.offset.stride_n + h * c.offset.stride_h + w * c.offset.stride_w;
        int64_t at_mask = n * c.mask.stride_n + h * c.mask.stride_h + w * c.mask.stride_w;
        read_offsets<T, A>(c, job.offset, at_offset, h, w, c.groups, s);
        read_mask<T, A>(c, job.mask, at_mask, c.groups, s);
        const T* image = (const T*)job.value + n * c.value.stride_n;
        T* to = (T*)job.output + n * c.output.stride_n + h * c.output.stride_h + w * c.output.stride_w;
        for (int64_t g = 0; g < c.groups; ++g, image += c.channels, to += c.channels) {
            if (NV > 0) {
                sample<T, A, L, NV ? NV : 1>(c, image, s, g * taps, taps, 0, to);
                continue;
            }
            int64_t d = 0;
            for (; d + 4 * L <= c.channels; d += 4 * L) sample<T, A, L, 4>(c, image, s, g * taps, taps, d, to);
            for (; d + L <= c.channels; d += L) sample<T, A, L, 1>(c, image, s, g * taps, taps, d, to);
            for (; d < c.channels; ++d) sample<T, A, 1, 1>(c, image, s, g * taps, taps, d, to);
        }
        if (++w == c.out_width) {
            w = 0;
            if (++h == c.out_height) {
                h = 0;
                ++n;
            }
        }
    }
}

// Lines of the highest band of a backward call.
static int64_t band_lines(const DCNv3Backward& job) { return (job.call->height + job.bands - 1) / job.bands; }

static int64_t group_blocks(const DCNv3Backward& job) { return (job.call->groups + job.block - 1) / job.block; }

// The gradients of the offsets and masks of one pixel and group, from <gradient, corner> in s.dot. `tap` is the group's
// first in s, `first` in the results.
template <class T, class A>
HFI_ONCE void tap_gradients(
    const hfi_dcnv3& c, const Scratch<A>& s, int64_t tap, const DCNv3Backward& p, int64_t first) {
    const bool narrow_offset = c.offset.dtype == c.value.dtype, narrow_mask = c.mask.dtype == c.value.dtype;
    const int64_t taps = count_taps(c);
    A scale = (A)c.offset_scale, mean = 0;
    for (int64_t k = 0; k < taps; ++k) {
        const A right = s.fraction[2 * (tap + k)], below = s.fraction[2 * (tap + k) + 1], weight = s.weight[tap + k];
        const A* d = s.dot + 4 * k;
        A upper = d[1] - d[0], lower = d[3] - d[2], left = d[2] - d[0], next = d[3] - d[1];
        A x = (upper + below * (lower - upper)) * weight * scale, y = (left + right * (next - left)) * weight * scale;
        A on_upper = d[0] + right * upper, on_lower = d[2] + right * lower;
        A m = on_upper + below * (on_lower - on_upper);
        s.slope[k] = m;
        mean += m * weight;
        int64_t to = 2 * (first + k);
        if (narrow_offset) {
            put((T*)p.grad_offset + to, x);
            put((T*)p.grad_offset + to + 1, y);
        } else {
            ((A*)p.grad_offset)[to] = x;
            ((A*)p.grad_offset)[to + 1] = y;
        }
    }
    for (int64_t k = 0; k < taps; ++k) {
        const A m = c.softmax ? s.weight[tap + k] * (s.slope[k] - mean) : s.slope[k];
        if (narrow_mask)
            put((T*)p.grad_mask + first + k, m);
        else
            ((A*)p.grad_mask)[first + k] = m;
    }
}

// One image, block of groups and band of lines: all that flows into those lines of grad_value, and the offsets and
// masks of an equal share of output lines. No two units write to the same place, and every sum has an order of its own.
template <class T, class A, int L, int NV>
static void backward_unit(const DCNv3Backward& p, int64_t unit, Scratch<A>& s) {
    typedef vec_t<A, L> V;
    const hfi_dcnv3& c = *p.call;
    const int64_t taps = count_taps(c), bands = p.bands, channels = c.channels, blocks = group_blocks(p);
    const int64_t band = unit % bands, n = unit / bands / blocks, first_group = unit / bands % blocks * p.block;
    const int64_t groups = c.groups - first_group < p.block ? c.groups - first_group : p.block;
    const int64_t count = groups * taps, features = groups * channels, feature = first_group * channels;
    const int64_t top = band * c.height / bands, end = (band + 1) * c.height / bands;
    const int64_t own_top = band * c.out_height / bands, own_end = (band + 1) * c.out_height / bands;
    const int64_t whole = NV ? NV * L : channels / L * L;
    memset(s.sum, 0, (end - top) * c.width * features * sizeof(A));
    for (int64_t h = 0; h < c.out_height; ++h)
        for (int64_t w = 0; w < c.out_width; ++w) {
            const bool own = h >= own_top && h < own_end;
            int64_t at = n * c.offset.stride_n + h * c.offset.stride_h + w * c.offset.stride_w + 2 * first_group * taps;
            read_offsets<T, A>(c, p.offset, at, h, w, groups, s);
            if (!own) {
                bool touches = false;
                for (int64_t k = 0; k < count; ++k) {
                    int64_t y = (int64_t)s.cell[2 * k + 1] - BORDER;
                    touches |= y + 1 >= top && y < end;
                }
                if (!touches) continue;
            }
            at = n * c.mask.stride_n + h * c.mask.stride_h + w * c.mask.stride_w + first_group * taps;
            read_mask<T, A>(c, p.mask, at, groups, s);
            const T* from =
                (const T*)p.output + n * c.output.stride_n + h * c.output.stride_h + w * c.output.stride_w + feature;
            const T* image = (const T*)p.value + n * c.value.stride_n + feature;
            A* sum = s.sum;
            for (int64_t g = 0; g < groups; ++g, from += channels, image += channels, sum += channels) {
                V fixed[NV ? NV : 1];
                if (NV)
                    for (int v = 0; v < NV; ++v) fixed[v] = load<L>(from + v * L);
                else {
                    for (int64_t d = 0; d < whole; d += L) store<L>(s.gradient + d, load<L>(from + d));
                    for (int64_t d = whole; d < channels; ++d) s.gradient[d] = get(from + d);
                }
                for (int64_t k = 0; k < taps; ++k) {
                    const int64_t tap = g * taps + k;
                    const Corners<T, A> corner =
                        corners<T, A>(c, image, (const T*)s.zeros, s.cell + 2 * tap, s.fraction + 2 * tap);
                    const A weight = s.weight[tap];
                    for (int i = 0; i < 4; ++i) {
                        V product{};
                        if (NV)
                            for (int v = 0; v < NV; ++v) product += load<L>(corner.from[i] + v * L) * fixed[v];
                        else {
                            for (int64_t d = 0; d < whole; d += L)
                                product += load<L>(corner.from[i] + d) * load<L>(s.gradient + d);
                            for (int64_t d = whole; d < channels; ++d)
                                product[0] += get(corner.from[i] + d) * s.gradient[d];
                        }
                        store<L>(s.product + (4 * k + i) * L, product);
                        const int64_t y = corner.y + i / 2;
                        if (!corner.inside[i] || y < top || y >= end) continue;
                        A* to = sum + ((y - top) * c.width + corner.x + i % 2) * features;
                        const A part = corner.part[i] * weight;
                        if (NV)
                            for (int v = 0; v < NV; ++v) store<L>(to + v * L, load<L>(to + v * L) + fixed[v] * part);
                        else {
                            for (int64_t d = 0; d < whole; d += L)
                                store<L>(to + d, load<L>(to + d) + load<L>(s.gradient + d) * part);
                            for (int64_t d = whole; d < channels; ++d) to[d] += s.gradient[d] * part;
                        }
                    }
                }
                if (!own) continue;
                for (int64_t k = 0; k < 4 * taps; k += L) {
                    V rows[L];
                    for (int i = 0; i < L; ++i) rows[i] = k + i < 4 * taps ? load<L>(s.product + (k + i) * L) : V{};
                    store<L>(s.dot + k, sums<A, L>(rows));
                }
                const int64_t pixel = ((n * c.out_height + h) * c.out_width + w) * c.groups + first_group + g;
                tap_gradients<T, A>(c, s, g * taps, p, pixel * taps);
            }
        }
    for (int64_t y = top; y < end; ++y)
        for (int64_t x = 0; x < c.width; ++x) {
            const A* sum = s.sum + ((y - top) * c.width + x) * features;
            T* to = (T*)p.grad_value + ((n * c.height + y) * c.width + x) * c.groups * channels + feature;
            int64_t d = 0;
            for (; d + L <= features; d += L) store<L>(to + d, load<L>(sum + d));
            for (; d < features; ++d) put(to + d, sum[d]);
        }
}

}  // namespace HFI_ISA
