// SPDX-License-Identifier: MIT
// As much of CUDA as the kernels of DCNv3 use, for a C++ compiler: their unchanged sources run on the CPU.
//
// fake_driver.c runs the threads; here are the numbers of thread and block, and CUDA's functions. Loads, stores of
// vectors and reductions must be aligned as on a GPU. No headers, for they take most of the time of a compile.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

// What fake_driver.c and a kernel know of each other.
struct hfi_index {
    unsigned x, y, z;
};
struct hfi_emulator {
    struct hfi_index thread, block, threads, blocks;
    // Gives `size` bytes to lane `lane ^ mask` of the warp and takes that lane's. All lanes must come.
    void (*exchange)(void* bytes, unsigned size, unsigned mask);
    void (*fail)(const char* why);  // ends the launch, does not return
};

#ifdef __cplusplus
}

#define HFI_EMULATED 1
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __forceinline__ inline __attribute__((always_inline))
#define threadIdx (hfi_emulated->thread)
#define blockIdx (hfi_emulated->block)
#define blockDim (hfi_emulated->threads)
#define gridDim (hfi_emulated->blocks)

extern "C" double exp(double) noexcept;
extern "C" double floor(double) noexcept;
static const hfi_emulator* hfi_emulated;

// The kernel behind a pointer to its argument, for the driver.
template <class A>
inline void hfi_start(void (*kernel)(A), const void* argument) {
    kernel(*(const A*)argument);
}
inline void hfi_start(void (*kernel)(), const void*) { kernel(); }
#define HFI_ENTRY(kernel)                                                                        \
    extern "C" void hfi_enter_##kernel(const struct hfi_emulator* emulator, const void* argument) { \
        hfi_emulated = emulator;                                                                 \
        hfi_start(kernel, argument);                                                             \
    }

inline void hfi_check_alignment(const void* pointer, unsigned bytes) {
    asm volatile("" : "+r"(pointer));  // or the compiler would take the pointer's type for a promise
    if ((__UINTPTR_TYPE__)pointer % bytes) hfi_emulated->fail("misaligned address");
}

struct alignas(8) uint2 {
    unsigned x, y;
    uint2& operator=(const uint2& other) {
        hfi_check_alignment(this, 8);
        x = other.x, y = other.y;
        return *this;
    }
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
    uint4& operator=(const uint4& other) {
        hfi_check_alignment(this, 16);
        x = other.x, y = other.y, z = other.z, w = other.w;
        return *this;
    }
};

template <class T>
inline T __ldg(const T* from) {
    hfi_check_alignment(from, sizeof(T));
    return *from;
}

template <class T>
inline T __shfl_xor_sync(unsigned lanes, T number, int mask) {
    if (lanes != 0xffffffff) hfi_emulated->fail("a shuffle among some lanes, which the emulation does not know");
    hfi_emulated->exchange(&number, sizeof(T), (unsigned)mask);
    return number;
}

template <class To, class From>
inline To hfi_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
}
inline unsigned __float_as_uint(float number) { return hfi_bits<unsigned>(number); }
inline float __uint_as_float(unsigned bits) { return hfi_bits<float>(bits); }
inline int __double2loint(double number) { return (int)hfi_bits<unsigned long long>(number); }
inline int __double2hiint(double number) { return (int)(hfi_bits<unsigned long long>(number) >> 32); }
inline double __hiloint2double(int high, int low) {
    return hfi_bits<double>((unsigned long long)(unsigned)high << 32 | (unsigned)low);
}
inline long long __double2ll_rn(double number) {
    if (number != number) return (long long)(1ull << 63);
    if (number >= 0x1p63) return 0x7fffffffffffffff;
    if (number < -0x1p63) return (long long)(1ull << 63);
    return __builtin_llrint(number);
}

// The greater and the lesser, of a number and NaN the number.
inline float max(float a, float b) { return a != a || a < b ? b : a; }
inline float min(float a, float b) { return a != a || b < a ? b : a; }
inline double max(double a, double b) { return a != a || a < b ? b : a; }
inline double min(double a, double b) { return a != a || b < a ? b : a; }
inline float floor(float number) { return (float)floor((double)number); }

namespace hfi {

inline float half_to_float(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
    if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float small = (float)fraction * 0x1p-24f;
    return sign ? -small : small;
}

inline unsigned short float_to_half(float number) {
    const unsigned bits = __float_as_uint(number), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7fff;
    if (size >= 0x477ff000) return (unsigned short)(sign | 0x7c00);  // 65520 and more
    if (size < 0x38800000) {                                         // 2**-14: multiples of 2**-24
        const float steps = __uint_as_float(size) * 0x1p24f + 0x1p23f;   // rounds to nearest, ties to even
        return (unsigned short)(sign | (__float_as_uint(steps) - 0x4b000000));
    }
    return (unsigned short)(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}

// ex2.approx.ftz and rcp.approx.ftz, off by as much as they may be. Subnormal numbers are zeros.
inline float power_of_two(float x) {
    const float power = __builtin_exp2f(x) * (1 + 0x1p-22f);
    return power < 0x1p-126f ? 0 : power;
}

inline float reciprocal(float x) { return 1 / x * (1 + 0x1p-23f); }

template <class W>
inline void send(void* to, const W& from) {
    *(W*)to = from;
}
template <class W>
inline void fetch(W& to, const void* from, bool there) {
    to = there ? __ldg((const W*)from) : W();
}
template <class P>
inline P* opaque(P* pointer) {
    return pointer;
}

template <class A>
inline void reduce(A* to, A a, bool on) {
    if (!on) return;
    hfi_check_alignment(to, sizeof(A));
    *to += a;
}
inline void reduce(long long* to, long long a, bool on) {
    if (!on) return;
    hfi_check_alignment(to, 8);
    *to = (long long)((unsigned long long)*to + (unsigned long long)a);
}
inline void reduce(float* to, float a, float b, float c, float d, bool on) {
    if (!on) return;
    hfi_check_alignment(to, 16);
    to[0] += a, to[1] += b, to[2] += c, to[3] += d;
}

}  // namespace hfi
#endif
