// SPDX-License-Identifier: MIT
// The CPU library in a process of its own, which may be one for another processor under an emulator. Built twice: with
// -DHFI_SERVER and that processor's library, as the program that runs the kernels; without, together with
// operators.cpp, as a library that PyTorch takes for the CPU library, and that sends each call to the program.
//
// A call is the number of the function and all arguments as blocks of memory; those with results come back.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>
#include <utility>

#include "library.h"

#define HFI_FUNCTIONS \
    X(hfi_dcnv3_forward) \
    X(hfi_dcnv3_backward) \
    X(hfi_gelu) \
    X(hfi_gelu_backward) \
    X(hfi_norm) \
    X(hfi_depthwise_norm_gelu) \
    X(hfi_depthwise_norm_gelu_backward) \
    X(hfi_row)

#define X(name) number_of_##name,
enum { HFI_FUNCTIONS };
#undef X

struct Block {
    int64_t bytes, result;
    void* memory;
};

static FILE *from, *to;

static bool receive(void* memory, int64_t bytes) { return fread(memory, 1, bytes, from) == (size_t)bytes; }

static void check(bool there) {
    if (there) return;
    fprintf(stderr, "remote.cpp: the other process has ended\n");
    abort();
}

static void send(const void* memory, int64_t bytes) { check(fwrite(memory, 1, bytes, to) == (size_t)bytes); }

#ifdef HFI_SERVER

template <class T>
static T argument(const Block& block) {
    if constexpr (std::is_pointer_v<T>)
        return (T)block.memory;
    else
        return *(T*)block.memory;
}

template <class R, class... A, size_t... I>
static int64_t run(R (*function)(A...), const Block* blocks, std::index_sequence<I...>) {
    return function(argument<A>(blocks[I])...);
}

template <class R, class... A>
static int64_t run(R (*function)(A...), const Block* blocks) {
    return run(function, blocks, std::index_sequence_for<A...>());
}

int main() {
    from = stdin;
    to = stdout;
    int64_t header[2];  // function, number of blocks
    while (receive(header, sizeof header)) {
        Block blocks[16];
        for (int64_t i = 0; i < header[1]; ++i) {
            Block& b = blocks[i];
            if (!receive(&b, sizeof b)) return 1;
            b.memory = b.bytes ? malloc(b.bytes) : nullptr;
            if (!receive(b.memory, b.bytes)) return 1;
        }
        int64_t status = 1;
#define X(name) \
    if (header[0] == number_of_##name) status = run(name, blocks);
        HFI_FUNCTIONS
#undef X
        send(&status, sizeof status);
        for (int64_t i = 0; i < header[1]; ++i) {
            if (blocks[i].result) send(blocks[i].memory, blocks[i].bytes);
            free(blocks[i].memory);
        }
        fflush(to);
    }
}

#else

static int64_t call(int64_t function, std::initializer_list<Block> blocks) {
    const int64_t header[2] = {function, (int64_t)blocks.size()};
    send(header, sizeof header);
    for (const Block& b : blocks) {
        send(&b, sizeof b);
        send(b.memory, b.bytes);
    }
    fflush(to);
    int64_t status;
    check(receive(&status, sizeof status));
    for (const Block& b : blocks)
        if (b.result) check(receive(b.memory, b.bytes));
    return status;
}

static Block out(void* memory, int64_t bytes) { return {memory ? bytes : 0, 1, memory}; }
static Block in(const void* memory, int64_t bytes) { return {memory ? bytes : 0, 0, (void*)memory}; }
template <class T>
static Block in(const T& number) {
    return in(&number, sizeof number);
}

static int64_t item(int64_t dtype) { return dtype == HFI_FLOAT64 ? 8 : dtype == HFI_FLOAT32 ? 4 : 2; }

// From the first to the last element, with the gaps between.
static int64_t extent(int64_t dtype, const int64_t* strides, int64_t n, int64_t h, int64_t w, int64_t features) {
    if (!(n * h * w * features)) return 0;
    return ((n - 1) * strides[0] + (h - 1) * strides[1] + (w - 1) * strides[2] + features) * item(dtype);
}

struct Sizes {
    int64_t value, offset, mask, output, dense_value, dense_offset, dense_mask;
    explicit Sizes(const hfi_dcnv3& c) {
        const int64_t pixels = c.batch * c.out_height * c.out_width;
        const int64_t taps = c.groups * (c.kernel_h * c.kernel_w - (c.remove_center ? 1 : 0));
        auto at_output = [&](const hfi_tensor& t, int64_t features) {
            return extent(t.dtype, &t.stride_n, c.batch, c.out_height, c.out_width, features);
        };
        value = extent(c.value.dtype, &c.value.stride_n, c.batch, c.height, c.width, c.groups * c.channels);
        offset = at_output(c.offset, 2 * taps);
        mask = at_output(c.mask, taps);
        output = at_output(c.output, c.groups * c.channels);
        dense_value = c.batch * c.height * c.width * c.groups * c.channels * item(c.value.dtype);
        dense_offset = pixels * 2 * taps * item(c.offset.dtype);
        dense_mask = pixels * taps * item(c.mask.dtype);
    }
};

int hfi_dcnv3_forward(
    const hfi_dcnv3* c, const void* value, const void* offset, const void* mask, void* output, int64_t threads) {
    const Sizes size(*c);
    return call(number_of_hfi_dcnv3_forward, {in(*c), in(value, size.value), in(offset, size.offset),
                                              in(mask, size.mask), out(output, size.output), in(threads)});
}

int hfi_dcnv3_backward(
    const hfi_dcnv3* c, const void* grad_output, const void* value, const void* offset, const void* mask,
    void* grad_value, void* grad_offset, void* grad_mask, int64_t threads) {
    const Sizes size(*c);
    return call(number_of_hfi_dcnv3_backward,
                {in(*c), in(grad_output, size.output), in(value, size.value), in(offset, size.offset),
                 in(mask, size.mask), out(grad_value, size.dense_value), out(grad_offset, size.dense_offset),
                 out(grad_mask, size.dense_mask), in(threads)});
}

int hfi_gelu(int64_t dtype, int64_t count, const void* input, void* output, int64_t threads) {
    const int64_t bytes = count * item(dtype);
    return call(number_of_hfi_gelu, {in(dtype), in(count), in(input, bytes), out(output, bytes), in(threads)});
}

int hfi_gelu_backward(
    int64_t dtype, int64_t count, const void* grad_output, const void* input, void* grad_input, void* output,
    int64_t threads) {
    const int64_t bytes = count * item(dtype);
    return call(number_of_hfi_gelu_backward, {in(dtype), in(count), in(grad_output, bytes), in(input, bytes),
                                              out(grad_input, bytes), out(output, bytes), in(threads)});
}

int hfi_norm(
    int64_t dtype, int64_t rows, int64_t channels, int64_t activate, double epsilon, const void* input,
    const void* gamma, const void* beta, const void* scale, const void* residual, void* output, int64_t threads) {
    const int64_t row = channels * item(dtype), all = rows * row;
    return call(number_of_hfi_norm,
                {in(dtype), in(rows), in(channels), in(activate), in(epsilon), in(input, all), in(gamma, row),
                 in(beta, row), in(scale, row), in(residual, all), out(output, all), in(threads)});
}

int hfi_depthwise_norm_gelu(
    const hfi_depthwise* s, const void* input, const void* weight, const void* bias, const void* gamma,
    const void* beta, void* output, int64_t threads) {
    const int64_t row = s->channels * item(s->dtype), all = s->batch * s->height * s->width * row;
    const int64_t bytes = extent(s->dtype, &s->stride_n, s->batch, s->height, s->width, s->channels);
    return call(number_of_hfi_depthwise_norm_gelu,
                {in(*s), in(input, bytes), in(weight, s->kernel * s->kernel * row), in(bias, row), in(gamma, row),
                 in(beta, row), out(output, all), in(threads)});
}

int hfi_depthwise_norm_gelu_backward(
    const hfi_depthwise* s, const void* grad_output, const void* input, const void* weight, const void* bias,
    const void* gamma, const void* beta, void* grad_input, float* slope, float* sums, int64_t parts, int64_t threads) {
    const int64_t row = s->channels * item(s->dtype), pixels = s->batch * s->height * s->width;
    const int64_t bytes = extent(s->dtype, &s->stride_n, s->batch, s->height, s->width, s->channels);
    const int64_t sums_bytes = parts * (s->kernel * s->kernel + 3) * hfi_row(s->channels) * 4;
    return call(number_of_hfi_depthwise_norm_gelu_backward,
                {in(*s), in(grad_output, pixels * row), in(input, bytes), in(weight, s->kernel * s->kernel * row),
                 in(bias, row), in(gamma, row), in(beta, row), out(grad_input, pixels * row),
                 out(slope, pixels * s->channels * 4), out(sums, sums_bytes), in(parts), in(threads)});
}

int64_t hfi_row(int64_t channels) { return call(number_of_hfi_row, {in(channels)}); }

// What native.py asks the library, and the tests.
HFI_EXPORT int64_t hfi_interface() { return HFI_INTERFACE; }
HFI_EXPORT const char* hfi_source_hash() { return ""; }
HFI_EXPORT const char* hfi_instruction_set() { return "baseline"; }
HFI_EXPORT int hfi_use_instruction_set(const char* name) { return strcmp(name, "baseline") != 0; }
HFI_EXPORT void hfi_use_team(void*) {}

HFI_EXPORT void connect_pipes(int write_to, int read_from) {
    to = fdopen(write_to, "wb");
    from = fdopen(read_from, "rb");
}

#endif
