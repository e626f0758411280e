// SPDX-License-Identifier: MIT
// Short vectors of any number of lanes, conversions between storage and compute types, exp and erf.
//
// Everything lies in namespace HFI_ISA: the file is compiled once for each instruction set, and the linker must never
// take one set's inline function for another's. For the same reason no functions of the standard library are used.
#pragma once

#include <stdint.h>
#include <string.h>

#include <utility>

#define HFI_INLINE static inline __attribute__((always_inline))
#define HFI_ONCE static __attribute__((noinline))  // large, and called from many places

namespace HFI_ISA {

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

// The type sums are made in.
template <class T>
struct compute {
    typedef float type;
};
template <>
struct compute<double> {
    typedef double type;
};

template <class T, int L>
struct vec {
    typedef T type __attribute__((vector_size(sizeof(T) * L)));
};
template <class T, int L>
using vec_t = typename vec<T, L>::type;

template <class A>
struct bits_of;
template <>
struct bits_of<float> {
    typedef int32_t type;
};
template <>
struct bits_of<double> {
    typedef int64_t type;
};

template <class V, class A>
HFI_INLINE V splat(A x) {
    return x - V{};  // a scalar is broadcast; x - 0 is x, also for -0
}

template <class V, class T>
HFI_INLINE V load_raw(const T* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <int L>
HFI_INLINE vec_t<float, L> from_fp16(vec_t<uint32_t, L> h) {
    typedef vec_t<float, L> F;
    typedef vec_t<uint32_t, L> U;
    U magnitude = h & 0x7fffu;
    F scaled = (F)(magnitude << 13) * 0x1p112f;  // also right for subnormal numbers
    U special = (U)(magnitude >= 0x7c00u) & 0x7f800000u;
    return (F)((U)scaled | special | ((h & 0x8000u) << 16));
}

template <int L>
HFI_INLINE vec_t<uint32_t, L> to_fp16(vec_t<float, L> x) {
    typedef vec_t<float, L> F;
    typedef vec_t<uint32_t, L> U;
    typedef vec_t<int32_t, L> I;
    U bits = (U)x, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    // Normal results: drop 13 bits, rounding half to even. 65520 and more carry into infinity.
    U normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    // Subnormal results: adding 0.5 lets the addition round at the last bit of an fp16 subnormal number.
    U small = (U)((F)magnitude + 0.5f) - 0x3f000000u;
    U is_small = (U)((I)magnitude < 0x38800000), is_big = (U)((I)magnitude >= 0x477ff000);
    U is_nan = (U)((I)magnitude > 0x7f800000);
    U result = (small & is_small) | (normal & ~is_small);
    result = (0x7c00u & is_big) | (result & ~is_big);
    return (result | (0x200u & is_nan)) | sign;
}

template <int L>
HFI_INLINE vec_t<uint32_t, L> to_bf16(vec_t<float, L> x) {
    typedef vec_t<uint32_t, L> U;
    typedef vec_t<int32_t, L> I;
    U bits = (U)x;
    U is_nan = (U)((I)(bits & 0x7fffffffu) > 0x7f800000);
    U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (rounded & ~is_nan) | ((bits >> 16 | 0x40u) & is_nan);
}

// L stored numbers as numbers to compute with.
template <int L>
HFI_INLINE vec_t<float, L> load(const float* p) {
    return load_raw<vec_t<float, L>>(p);
}
template <int L>
HFI_INLINE vec_t<double, L> load(const double* p) {
    return load_raw<vec_t<double, L>>(p);
}
template <int L>
HFI_INLINE vec_t<float, L> load(const bf16* p) {
    typedef vec_t<uint32_t, L> U;
    return (vec_t<float, L>)(__builtin_convertvector((load_raw<vec_t<uint16_t, L>>(p)), U) << 16);
}
template <int L>
HFI_INLINE vec_t<float, L> load(const fp16* p) {
    typedef vec_t<uint32_t, L> U;
    return from_fp16<L>(__builtin_convertvector((load_raw<vec_t<uint16_t, L>>(p)), U));
}

template <int L>
HFI_INLINE void store(float* p, vec_t<float, L> v) {
    memcpy(p, &v, sizeof v);
}
template <int L>
HFI_INLINE void store(double* p, vec_t<double, L> v) {
    memcpy(p, &v, sizeof v);
}
template <int L>
HFI_INLINE void store(bf16* p, vec_t<float, L> v) {
    typedef vec_t<uint16_t, L> H;
    H h = __builtin_convertvector((to_bf16<L>(v)), H);
    memcpy(p, &h, sizeof h);
}
template <int L>
HFI_INLINE void store(fp16* p, vec_t<float, L> v) {
    typedef vec_t<uint16_t, L> H;
    H h = __builtin_convertvector((to_fp16<L>(v)), H);
    memcpy(p, &h, sizeof h);
}

// Fewer than L numbers, without touching what lies behind them.
template <int L, class T>
HFI_INLINE vec_t<typename compute<T>::type, L> load_some(const T* p, int64_t count) {
    T all[L] = {};
    for (int64_t i = 0; i < count; ++i) all[i] = p[i];
    return load<L>(all);
}
template <int L, class T, class V>
HFI_INLINE void store_some(T* p, V v, int64_t count) {
    T all[L];
    store<L>(all, v);
    for (int64_t i = 0; i < count; ++i) p[i] = all[i];
}

// One number.
template <class T>
HFI_INLINE typename compute<T>::type get(const T* p) {
    return load<1>(p)[0];
}
template <class T>
HFI_INLINE void put(T* p, typename compute<T>::type x) {
    store<1>(p, vec_t<typename compute<T>::type, 1>{x});
}

template <class V, class M>
HFI_INLINE V select(M condition, V yes, V no) {
    return (V)((condition & (M)yes) | (~condition & (M)no));
}

// The sums over the lanes of v[0] to v[L-1] in one vector: pairs of vectors are added while their number halves.
// In the step of distance BLOCK, lane i takes from the second vector of a pair if the bit BLOCK of i is set.
template <int L, int BLOCK, bool UPPER>
constexpr int fold_lane(int i) {
    return ((i & BLOCK) ? L : 0) + (UPPER ? i | BLOCK : i & ~BLOCK);
}
template <class V, int L, int BLOCK, int... I>
HFI_INLINE V fold_pair(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, fold_lane<L, BLOCK, false>(I)...) +
           __builtin_shufflevector(a, b, fold_lane<L, BLOCK, true>(I)...);
#else
    typedef vec_t<typename bits_of<decltype(a[0] + a[0])>::type, L> M;
    return __builtin_shuffle(a, b, M{fold_lane<L, BLOCK, false>(I)...}) +
           __builtin_shuffle(a, b, M{fold_lane<L, BLOCK, true>(I)...});
#endif
}
template <class A, int L, int COUNT>
struct fold {
    HFI_INLINE vec_t<A, L> run(vec_t<A, L>* v) {
        constexpr int BLOCK = COUNT / 2;
        for (int i = 0; i < BLOCK; ++i)
            v[i] = fold_pair<vec_t<A, L>, L, BLOCK>(v[i], v[i + BLOCK], std::make_integer_sequence<int, L>());
        return fold<A, L, BLOCK>::run(v);
    }
};
template <class A, int L>
struct fold<A, L, 1> {
    HFI_INLINE vec_t<A, L> run(vec_t<A, L>* v) { return v[0]; }
};
template <class A, int L>
HFI_INLINE vec_t<A, L> sums(vec_t<A, L>* v) {
    return fold<A, L, L>::run(v);
}

template <class A, int L>
HFI_INLINE A sum(vec_t<A, L> v) {
    A total = 0;
    A lanes[L];
    memcpy(lanes, &v, sizeof v);
    for (int step = L / 2; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    return total + lanes[0];
}

// e^x for x <= 0, to about 1 unit in the last place; 0 where that is below 3e-38 (1e-307 for double); NaN stays NaN.
template <int L>
HFI_INLINE vec_t<float, L> exp(vec_t<float, L> x) {
    typedef vec_t<float, L> F;
    typedef vec_t<int32_t, L> I;
    F shifted = x * 1.44269504f + 0x1.8p23f;  // the nearest integer to x / ln 2 lies in the low bits
    F n = shifted - 0x1.8p23f;
    F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    F p = r * (1.0f / 720) + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    I exponent = (I)(((vec_t<uint32_t, L>)shifted << 23) + (127u << 23));
    return select(x < -86.5f, F{}, p * (F)exponent);
}
template <int L>
HFI_INLINE vec_t<double, L> exp(vec_t<double, L> x) {
    typedef vec_t<double, L> F;
    typedef vec_t<int64_t, L> I;
    F shifted = x * 1.4426950408889634 + 0x1.8p52;
    F n = shifted - 0x1.8p52;
    F r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    F p = r * (1.0 / 6227020800.0) + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    I exponent = (I)(((vec_t<uint64_t, L>)shifted << 52) + ((uint64_t)1023 << 52));
    return select(x < -706.0, F{}, p * (F)exponent);
}

// P(X <= x) for a standard normal X, and its density. For t = |x| the upper tail is exp(-t^2/2) times a polynomial in
// 1 / (1 + 0.3 t), fitted to erfcx(t / sqrt 2) / 2 with a relative error of 1.5e-7.
template <int L>
HFI_INLINE void normal(vec_t<float, L> x, vec_t<float, L>& below, vec_t<float, L>& density) {
    typedef vec_t<float, L> F;
    F t = (F)((vec_t<int32_t, L>)x & 0x7fffffff);
    F u = 1.0f / (t * 0.3f + 1.0f);
    F p = u * 0.0356750451028347f + -0.15720412135124207f;
    p = p * u + 0.20635516941547394f;
    p = p * u + -0.05368505045771599f;
    p = p * u + 0.1285623162984848f;
    p = p * u + 0.09991329908370972f;
    p = p * u + 0.12075398117303848f;
    p = p * u + 0.11962929368019104f;
    F bell = exp<L>(x * x * -0.5f);
    F tail = bell * (p * u);
    below = select(x > 0.0f, 1.0f - tail, tail);
    density = bell * 0.3989422804014327f;
}

// GELU(x) = x P(X <= x), and its derivative.
template <int L>
HFI_INLINE vec_t<float, L> gelu(vec_t<float, L> x) {
    vec_t<float, L> below, density;
    normal<L>(x, below, density);
    return x * below;
}
template <int L>
HFI_INLINE vec_t<float, L> gelu_slope(vec_t<float, L> x) {
    vec_t<float, L> below, density;
    normal<L>(x, below, density);
    return below + x * density;
}
template <int L>
HFI_INLINE void gelu_with_slope(vec_t<float, L> x, vec_t<float, L>& y, vec_t<float, L>& slope) {
    vec_t<float, L> below, density;
    normal<L>(x, below, density);
    y = x * below;
    slope = below + x * density;
}

}  // namespace HFI_ISA
