// SPDX-License-Identifier: MIT
// Number types, loads and stores of several numbers at once, and sums in memory.
//
// Compiled by NVRTC and nvcc, and by a C++ compiler with the tests' emulation of CUDA: no headers, and what differs
// between those is behind HFI_EMULATED.
#pragma once

#define HFI_DEVICE __device__ __forceinline__

namespace hfi {

typedef long long i64;

struct half_t {
    unsigned short bits;
};
struct bfloat_t {
    unsigned short bits;
};

// The type that T is computed in.
template <class T>
struct wide {
    typedef float type;
};
template <>
struct wide<double> {
    typedef double type;
};

#ifndef HFI_EMULATED
HFI_DEVICE float half_to_float(unsigned short bits) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
    return out;
}
HFI_DEVICE unsigned short float_to_half(float number) {
    unsigned short out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(number));
    return out;
}
HFI_DEVICE float power_of_two(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
HFI_DEVICE float reciprocal(float x) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));  // exact division would call a function
    return out;
}
// A store in one piece: where the compiler takes a structure apart, it does not always put it together again. But such
// a store keeps its place among the sums in memory, which costs registers.
HFI_DEVICE void send(void* to, const uint4& from) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(from.x), "r"(from.y), "r"(from.z),
                 "r"(from.w));
}
template <class W>
HFI_DEVICE void send(void* to, const W& from) {
    *(W*)to = from;
}
// Loads of read-only memory; zeros where not `there`. Predicated, for branches would keep loads from overlapping.
HFI_DEVICE void fetch(uint4& to, const void* from, bool there) {
    asm("{.reg .pred p; setp.ne.u32 p, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0; "
        "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];}"
        : "=&r"(to.x), "=&r"(to.y), "=&r"(to.z), "=&r"(to.w)
        : "l"(from), "r"((unsigned)there));
}
HFI_DEVICE void fetch(uint2& to, const void* from, bool there) {
    asm("{.reg .pred p; setp.ne.u32 p, %3, 0; mov.u32 %0, 0; mov.u32 %1, 0; @p ld.global.nc.v2.u32 {%0, %1}, [%2];}"
        : "=&r"(to.x), "=&r"(to.y)
        : "l"(from), "r"((unsigned)there));
}
HFI_DEVICE void fetch(unsigned& to, const void* from, bool there) {
    asm("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0; @p ld.global.nc.u32 %0, [%1];}"
        : "=&r"(to)
        : "l"(from), "r"((unsigned)there));
}
HFI_DEVICE void fetch(unsigned short& to, const void* from, bool there) {
    asm("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u16 %0, 0; @p ld.global.nc.u16 %0, [%1];}"
        : "=&h"(to)
        : "l"(from), "r"((unsigned)there));
}
// The same pointer, but of unknown origin: else places relative to it are computed from its parts, in 64 bits each.
template <class P>
HFI_DEVICE P* opaque(P* pointer) {
    asm("" : "+l"(pointer));
    return pointer;
}
// Atomic additions to memory that only such additions touch, where `on`; predicated, for branches would cost more.
HFI_DEVICE void reduce(float* to, float a, bool on) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p red.global.add.f32 [%0], %1;}"
                 :
                 : "l"(to), "f"(a), "r"((unsigned)on));
}
HFI_DEVICE void reduce(double* to, double a, bool on) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p red.global.add.f64 [%0], %1;}"
                 :
                 : "l"(to), "d"(a), "r"((unsigned)on));
}
HFI_DEVICE void reduce(i64* to, i64 a, bool on) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p red.global.add.u64 [%0], %1;}"
                 :
                 : "l"(to), "l"(a), "r"((unsigned)on));
}
HFI_DEVICE void reduce(float* to, float a, float b, float c, float d, bool on) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p red.global.add.v4.f32 [%0], {%1, %2, %3, %4};}"
                 :
                 : "l"(to), "f"(a), "f"(b), "f"(c), "f"(d), "r"((unsigned)on));
#else
    reduce(to, a, on);
    reduce(to + 1, b, on);
    reduce(to + 2, c, on);
    reduce(to + 3, d, on);
#endif
}
#endif

HFI_DEVICE unsigned short float_to_bfloat(float number) {
    unsigned bits = __float_as_uint(number);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;         // NaN stays NaN
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
}

HFI_DEVICE float get(const float* from) { return __ldg(from); }
HFI_DEVICE double get(const double* from) { return __ldg(from); }
HFI_DEVICE float get(const half_t* from) { return half_to_float(__ldg(&from->bits)); }
HFI_DEVICE float get(const bfloat_t* from) { return __uint_as_float((unsigned)__ldg(&from->bits) << 16); }

HFI_DEVICE void put(float* to, float number) { *to = number; }
HFI_DEVICE void put(double* to, double number) { *to = number; }
HFI_DEVICE void put(half_t* to, float number) { to->bits = float_to_half(number); }
HFI_DEVICE void put(bfloat_t* to, float number) { to->bits = float_to_bfloat(number); }

// Memory words of BYTES bytes, moved by one instruction.
template <int BYTES>
struct Words;
template <>
struct Words<16> {
    uint4 raw = {0, 0, 0, 0};
    HFI_DEVICE unsigned word(int i) const { return i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w; }
    HFI_DEVICE void set(int i, unsigned word) { (i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w) = word; }
    HFI_DEVICE void store(void* to) const { *(uint4*)to = raw; }
};
template <>
struct Words<8> {
    uint2 raw = {0, 0};
    HFI_DEVICE unsigned word(int i) const { return i == 0 ? raw.x : raw.y; }
    HFI_DEVICE void set(int i, unsigned word) { (i == 0 ? raw.x : raw.y) = word; }
    HFI_DEVICE void store(void* to) const { *(uint2*)to = raw; }
};
template <>
struct Words<4> {
    unsigned raw = 0;
    HFI_DEVICE unsigned word(int) const { return raw; }
    HFI_DEVICE void set(int, unsigned word) { raw = word; }
    HFI_DEVICE void store(void* to) const { *(unsigned*)to = raw; }
};
template <>
struct Words<2> {
    unsigned short raw = 0;
    HFI_DEVICE unsigned word(int) const { return raw; }
    HFI_DEVICE void set(int, unsigned word) { raw = (unsigned short)word; }
    HFI_DEVICE void store(void* to) const { *(unsigned short*)to = raw; }
};

// Element i of words that hold numbers of type T.
template <class T>
struct Element;
template <>
struct Element<float> {
    template <class W>
    HFI_DEVICE static float get(const W& words, int i) {
        return __uint_as_float(words.word(i));
    }
    template <class W>
    HFI_DEVICE static void set(W& words, int i, float number) {
        words.set(i, __float_as_uint(number));
    }
};
template <>
struct Element<double> {
    template <class W>
    HFI_DEVICE static double get(const W& words, int i) {
        return __hiloint2double((int)words.word(2 * i + 1), (int)words.word(2 * i));
    }
    template <class W>
    HFI_DEVICE static void set(W& words, int i, double number) {
        words.set(2 * i, (unsigned)__double2loint(number));
        words.set(2 * i + 1, (unsigned)__double2hiint(number));
    }
};
template <>
struct Element<half_t> {
    template <class W>
    HFI_DEVICE static float get(const W& words, int i) {
        return half_to_float((unsigned short)(i % 2 ? words.word(i / 2) >> 16 : words.word(i / 2)));
    }
    template <class W>
    HFI_DEVICE static void set(W& words, int i, float number) {
        unsigned bits = float_to_half(number);
        words.set(i / 2, i % 2 ? (words.word(i / 2) & 0xffff) | bits << 16 : bits);
    }
};
template <>
struct Element<bfloat_t> {
    template <class W>
    HFI_DEVICE static float get(const W& words, int i) {
        return __uint_as_float(i % 2 ? words.word(i / 2) & 0xffff0000 : words.word(i / 2) << 16);
    }
    template <class W>
    HFI_DEVICE static void set(W& words, int i, float number) {
        unsigned bits = float_to_bfloat(number);
        words.set(i / 2, i % 2 ? (words.word(i / 2) & 0xffff) | bits << 16 : bits);
    }
};

// V numbers as they lie in memory; zeros, without touching it, if they are not `there`.
template <int V, class T>
HFI_DEVICE Words<V * sizeof(T)> fetch(const T* from, bool there) {
    Words<V * sizeof(T)> words;
    fetch(words.raw, from, there);
    return words;
}

template <int V, class T, class A>
HFI_DEVICE void load(const T* from, bool there, A (&out)[V]) {
    const auto words = fetch<V>(from, there);
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = Element<T>::get(words, i);
}

template <int V, class T, class A>
HFI_DEVICE void store(T* to, const A (&numbers)[V], bool at_once = false) {
    Words<V * sizeof(T)> words;
#pragma unroll
    for (int i = 0; i < V; ++i) Element<T>::set(words, i, numbers[i]);
    if (at_once)
        send(to, words.raw);
    else
        words.store(to);
}

// Adds factor * numbers to memory that other threads add to as well, where `on`.
template <int V, class A>
HFI_DEVICE void add(A* to, A factor, const A (&numbers)[V], double, bool on) {
    if constexpr (V == 4) {
        reduce(to, factor * numbers[0], factor * numbers[1], factor * numbers[2], factor * numbers[3], on);
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i) reduce(to + i, factor * numbers[i], on);
    }
}
// The same in fixed point, where a 1 counts `scale`: sums of integers do not depend on their order.
template <int V, class A>
HFI_DEVICE void add(i64* to, A factor, const A (&numbers)[V], double scale, bool on) {
#pragma unroll
    for (int i = 0; i < V; ++i) reduce(to + i, __double2ll_rn((double)factor * (double)numbers[i] * scale), on);
}

HFI_DEVICE float power_of_e(float x) { return power_of_two(x * 1.44269504f); }
HFI_DEVICE double power_of_e(double x) { return exp(x); }
HFI_DEVICE double reciprocal(double x) { return 1 / x; }

}  // namespace hfi
