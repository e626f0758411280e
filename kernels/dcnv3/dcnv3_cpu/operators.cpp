// SPDX-License-Identifier: MIT
// The library's operators for PyTorch, registered by its stable C interface: they see every tensor last, and check what
// the kernels take for granted. Python declares their schemas (hf_internimage/ops/dcnv3.py and fused_cpu.py).
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "geometry.h"
#include "library.h"

namespace {

hfi_torch host;

// A call of an operator: arguments and results on PyTorch's stack, and the tensors to give back at its end.
struct Call {
    uint64_t* stack;
    void* handles[24];
    int count = 0;

    // The first `tensors` arguments are tensors.
    Call(uint64_t* stack, int tensors) : stack(stack) {
        for (int i = 0; i < tensors; ++i) own(handle(i));
    }
    void* handle(int i) const {
        void* found;
        memcpy(&found, stack + i, sizeof found);
        return found;
    }
    void* own(void* handle) {
        handles[count++] = handle;
        return handle;
    }
    void end() {
        for (int i = 0; i < count; ++i) host.delete_tensor(handles[i]);
        count = 0;
    }
    // Ends the call with an exception of PyTorch.
    [[noreturn]] void fail(const char* format, ...) {
        char text[512];
        va_list rest;
        va_start(rest, format);
        vsnprintf(text, sizeof text, format, rest);
        va_end(rest);
        end();
        host.check(false, "hf_internimage", "operators.cpp", 0, text);
        __builtin_trap();  // not reached
    }
    void done(int status) {
        if (status) fail("PyTorch could not make or read a tensor for an operator of hf_internimage: is there enough memory?");
    }
    int64_t integer(int i) const { return (int64_t)stack[i]; }
    bool flag(int i) const { return stack[i] & 0xff; }
    double number(int i) const {
        double x;
        memcpy(&x, stack + i, sizeof x);
        return x;
    }
    // Ends the call with these tensors as its results.
    void give(void* const* results, int number) {
        for (int i = 0; i < count; ++i) {
            bool kept = false;
            for (int r = 0; r < number; ++r) kept |= handles[i] == results[r];
            if (!kept) host.delete_tensor(handles[i]);
        }
        for (int r = 0; r < number; ++r) memcpy(stack + r, results + r, sizeof(void*));
    }
};

struct Tensor {
    void* handle;
    const int64_t *sizes, *strides;
    int64_t dims, dtype, elements;  // dtype is an hfi_dtype, or -1
    void* data;

    hfi_tensor layout() const { return {dtype, strides[0], strides[1], strides[2]}; }
    bool dense_features() const { return strides[dims - 1] == 1 || sizes[dims - 1] <= 1; }
    bool contiguous() const {
        int64_t expected = 1;
        for (int64_t d = dims - 1; d >= 0; --d) {
            if (sizes[d] != 1 && strides[d] != expected) return false;
            expected *= sizes[d];
        }
        return true;
    }
};

const int64_t ITEM[] = {4, 8, 2, 2};  // bytes, by hfi_dtype

Tensor describe(Call& call, void* handle) {
    Tensor t;
    t.handle = handle;
    int32_t dtype = -1;
    int64_t *sizes = nullptr, *strides = nullptr;
    call.done(host.get_dim(handle, &t.dims));
    call.done(host.get_sizes(handle, &sizes));
    call.done(host.get_strides(handle, &strides));
    call.done(host.get_dtype(handle, &dtype));
    call.done(host.get_data(handle, &t.data));
    t.sizes = sizes;
    t.strides = strides;
    t.dtype = -1;
    for (int i = 0; i < 4; ++i)
        if (dtype == host.dtypes[i]) t.dtype = i;
    t.elements = 1;
    for (int64_t d = 0; d < t.dims; ++d) t.elements *= sizes[d];
    return t;
}

// Argument i, in the memory of this process: one of the dtypes given (a bit each), with `dims` dimensions.
Tensor argument(Call& call, int i, const char* name, unsigned dtypes, int64_t dims) {
    void* handle = call.handle(i);
    Tensor t = describe(call, handle);
    int32_t device;
    int64_t bytes, offset;
    call.done(host.get_device(handle, &device));
    call.done(host.get_storage_size(handle, &bytes));
    call.done(host.get_storage_offset(handle, &offset));
    if (device != host.cpu) call.fail("%s is elsewhere, expected on the CPU as others of its call are", name);
    if (t.dtype < 0 || !(dtypes >> t.dtype & 1)) call.fail("%s has a dtype that is not the one expected", name);
    if (t.dims != dims) call.fail("%s has %lld dimensions, expected %lld", name, (long long)t.dims, (long long)dims);
    if (t.elements) {
        int64_t last = offset;
        for (int64_t d = 0; d < dims; ++d) last += (t.sizes[d] - 1) * t.strides[d];
        if ((last + 1) * ITEM[t.dtype] > bytes) call.fail("the memory of %s was freed, expected all of it", name);
    }
    return t;
}

void expect(Call& call, const Tensor& t, const char* name, const int64_t* sizes) {
    for (int64_t d = 0; d < t.dims; ++d)
        if (t.sizes[d] != sizes[d])
            call.fail("%s has size %lld in dimension %lld, expected %lld", name, (long long)t.sizes[d], (long long)d,
                      (long long)sizes[d]);
}

Tensor vector(Call& call, int i, const char* name, unsigned dtypes, int64_t length) {
    Tensor t = argument(call, i, name, dtypes, 1);
    expect(call, t, name, &length);
    return t;
}

Tensor empty(Call& call, int64_t dims, const int64_t* sizes, int64_t dtype) {
    int64_t strides[8], step = 1;
    for (int64_t d = dims - 1; d >= 0; --d) {
        strides[d] = step;
        step *= sizes[d] > 1 ? sizes[d] : 1;
    }
    void* handle = nullptr;
    call.done(host.empty_strided(dims, sizes, strides, host.dtypes[dtype], host.cpu, 0, &handle));
    return describe(call, call.own(handle));
}

// The tensor, or a copy of it without gaps.
Tensor gapless(Call& call, const Tensor& t, bool fine) {
    if (fine) return t;
    Tensor copy = empty(call, t.dims, t.sizes, t.dtype);
    call.done(host.copy(copy.handle, t.handle, 0));
    return copy;
}

Tensor contiguous(Call& call, const Tensor& t) { return gapless(call, t, t.contiguous()); }

int64_t threads() {
    uint32_t count = 1;
    if (host.num_threads && !host.num_threads(&count)) return count;
    return host.max_threads ? host.max_threads() : 1;
}

void enough(Call& call, int status) {
    if (status) call.fail("Not enough memory for the working space of hf_internimage's CPU library.");
}

const unsigned FLOATS = 1u << HFI_FLOAT32 | 1u << HFI_BFLOAT16 | 1u << HFI_FLOAT16, ALL = FLOATS | 1u << HFI_FLOAT64;

// value, offset, mask from argument `first` on, and what follows them in the schema.
hfi_dcnv3 dcnv3_arguments(Call& call, int first, Tensor& value, Tensor& offset, Tensor& mask, int64_t* output) {
    value = argument(call, first, "value", ALL, 4);
    const unsigned others = 1u << value.dtype | 1u << (value.dtype == HFI_FLOAT64 ? HFI_FLOAT64 : HFI_FLOAT32);
    offset = argument(call, first + 1, "offset", others, 4);
    mask = argument(call, first + 2, "mask", others, 4);
    const int at = first + 3;
    hfi_dcnv3 c = {};
    c.groups = call.integer(at);
    int64_t* pairs = &c.kernel_h;
    for (int i = 0; i < 8; ++i) pairs[i] = call.integer(at + 1 + i);
    c.offset_scale = call.number(at + 9);
    c.remove_center = call.flag(at + 10);
    c.softmax = call.flag(at + 11);
    c.value.dtype = value.dtype;
    char why[256];
    if (!complete(c, value.sizes, offset.sizes, mask.sizes, why, sizeof why)) call.fail("%s", why);
    value = gapless(call, value, value.dense_features());
    offset = gapless(call, offset, offset.dense_features());
    mask = gapless(call, mask, mask.dense_features());
    c.value = value.layout();
    c.offset = offset.layout();
    c.mask = mask.layout();
    output[0] = c.batch;
    output[1] = c.out_height;
    output[2] = c.out_width;
    output[3] = value.sizes[3];
    return c;
}

void dcnv3_forward(uint64_t* stack, uint64_t, uint64_t) {
    Call call(stack, 3);
    Tensor value, offset, mask;
    int64_t sizes[4];
    const hfi_dcnv3 c = dcnv3_arguments(call, 0, value, offset, mask, sizes);
    Tensor output = empty(call, 4, sizes, value.dtype);
    enough(call, hfi_dcnv3_forward(&c, value.data, offset.data, mask.data, output.data, threads()));
    call.give(&output.handle, 1);
}

void dcnv3_backward(uint64_t* stack, uint64_t, uint64_t) {
    Call call(stack, 4);
    Tensor grad = argument(call, 0, "grad_output", ALL, 4), value, offset, mask;
    int64_t sizes[4];
    const hfi_dcnv3 c = dcnv3_arguments(call, 1, value, offset, mask, sizes);
    if (grad.dtype != value.dtype) call.fail("grad_output has another dtype than expected, that of value");
    expect(call, grad, "grad_output", sizes);
    grad = contiguous(call, grad);
    void* results[3];
    void* data[3];
    const Tensor* inputs[] = {&value, &offset, &mask};
    for (int i = 0; i < 3; ++i) {
        Tensor made = empty(call, 4, inputs[i]->sizes, inputs[i]->dtype);
        results[i] = made.handle;
        data[i] = made.data;
    }
    enough(call, hfi_dcnv3_backward(&c, grad.data, value.data, offset.data, mask.data, data[0], data[1], data[2],
                                    threads()));
    call.give(results, 3);
}

// states (N, H, W, C), weight (C, 1, K, K), bias, gamma, beta (C) from argument `first` on, then epsilon.
hfi_depthwise depthwise_arguments(Call& call, int first, Tensor* t) {
    t[0] = argument(call, first, "states", FLOATS, 4);
    const unsigned same = 1u << t[0].dtype;
    t[1] = argument(call, first + 1, "weight", same, 4);
    const int64_t channels = t[0].sizes[3], kernel = t[1].sizes[3];
    const int64_t weight[] = {channels, 1, kernel, kernel};
    expect(call, t[1], "weight", weight);
    if (kernel % 2 == 0) call.fail("the kernel has the side %lld, expected an odd one", (long long)kernel);
    t[2] = vector(call, first + 2, "bias", same, channels);
    t[3] = vector(call, first + 3, "gamma", same, channels);
    t[4] = vector(call, first + 4, "beta", same, channels);
    t[0] = gapless(call, t[0], t[0].dense_features());
    for (int i = 1; i < 5; ++i) t[i] = contiguous(call, t[i]);
    return {t[0].dtype,      t[0].sizes[0],   t[0].sizes[1],   t[0].sizes[2],          channels, kernel,
            t[0].strides[0], t[0].strides[1], t[0].strides[2], call.number(first + 5)};
}

void depthwise_norm_gelu(uint64_t* stack, uint64_t, uint64_t) {
    Call call(stack, 5);
    Tensor t[5];
    const hfi_depthwise shape = depthwise_arguments(call, 0, t);
    Tensor output = empty(call, 4, t[0].sizes, t[0].dtype);
    enough(call, hfi_depthwise_norm_gelu(&shape, t[0].data, t[1].data, t[2].data, t[3].data, t[4].data, output.data,
                                         threads()));
    call.give(&output.handle, 1);
}

// The gradient of the states, and float32 rows (K * K + 3, C) of those of weight, bias, gamma and beta.
void depthwise_norm_gelu_backward(uint64_t* stack, uint64_t, uint64_t) {
    const int64_t parts = 32;  // partial sums over pixels, independent of the number of threads
    Call call(stack, 6);
    Tensor grad = argument(call, 0, "grad_output", FLOATS, 4), t[5];
    const hfi_depthwise shape = depthwise_arguments(call, 1, t);
    if (grad.dtype != t[0].dtype) call.fail("grad_output has another dtype than expected, that of the states");
    expect(call, grad, "grad_output", t[0].sizes);
    grad = contiguous(call, grad);
    const int64_t channels = t[0].sizes[3], count = shape.kernel * shape.kernel + 3, row = hfi_row(channels);
    const int64_t sums_sizes[] = {parts, count, row}, rows_sizes[] = {count, channels};
    Tensor grad_states = empty(call, 4, t[0].sizes, t[0].dtype), slope = empty(call, 4, t[0].sizes, HFI_FLOAT32);
    Tensor sums = empty(call, 3, sums_sizes, HFI_FLOAT32), rows = empty(call, 2, rows_sizes, HFI_FLOAT32);
    enough(call, hfi_depthwise_norm_gelu_backward(&shape, grad.data, t[0].data, t[1].data, t[2].data, t[3].data,
                                                  t[4].data, grad_states.data, (float*)slope.data, (float*)sums.data,
                                                  parts, threads()));
    for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < channels; ++c) {
            float total = 0;
            for (int64_t p = 0; p < parts; ++p) total += ((const float*)sums.data)[(p * count + r) * row + c];
            ((float*)rows.data)[r * channels + c] = total;
        }
    void* results[] = {grad_states.handle, rows.handle};
    call.give(results, 2);
}

// states, gamma, beta, scale, residual, epsilon, activate, has_scale, has_residual; states stand for what is not there.
void norm(uint64_t* stack, uint64_t, uint64_t) {
    Call call(stack, 5);
    int64_t dims;
    call.done(host.get_dim(call.handle(0), &dims));
    Tensor states = argument(call, 0, "states", FLOATS, dims < 1 ? 1 : dims);
    const unsigned same = 1u << states.dtype;
    const int64_t channels = states.sizes[dims - 1];
    const bool has_scale = call.flag(7), has_residual = call.flag(8);
    Tensor gamma = contiguous(call, vector(call, 1, "gamma", same, channels));
    Tensor beta = contiguous(call, vector(call, 2, "beta", same, channels));
    Tensor scale = has_scale ? vector(call, 3, "scale", same, channels) : argument(call, 3, "scale", ALL, dims);
    Tensor residual = argument(call, 4, "residual", same, dims);
    if (has_scale) scale = contiguous(call, scale);
    if (has_residual) expect(call, residual, "residual", states.sizes);
    states = contiguous(call, states);
    residual = has_residual ? contiguous(call, residual) : residual;
    Tensor output = empty(call, dims, states.sizes, states.dtype);
    enough(call, hfi_norm(states.dtype, channels ? states.elements / channels : 0, channels, call.flag(6),
                          call.number(5), states.data, gamma.data, beta.data, has_scale ? scale.data : nullptr,
                          has_residual ? residual.data : nullptr, output.data, threads()));
    call.give(&output.handle, 1);
}

void gelu(uint64_t* stack, uint64_t, uint64_t) {
    Call call(stack, 1);
    int64_t dims;
    call.done(host.get_dim(call.handle(0), &dims));
    Tensor states = contiguous(call, argument(call, 0, "states", FLOATS, dims));
    Tensor output = empty(call, dims, states.sizes, states.dtype);
    enough(call, hfi_gelu(states.dtype, states.elements, states.data, output.data, threads()));
    call.give(&output.handle, 1);
}

// grad_output and states; the gradient of the states, and their GELU, are written into the last two arguments.
void gelu_backward(uint64_t* stack, uint64_t, uint64_t) {
    static const char* const names[] = {"grad_output", "states", "grad_states", "activated"};
    Call call(stack, 4);
    int64_t dims;
    call.done(host.get_dim(call.handle(0), &dims));
    Tensor t[4];
    for (int i = 0; i < 4; ++i) {
        t[i] = argument(call, i, names[i], i ? 1u << t[0].dtype : FLOATS, dims);
        expect(call, t[i], names[i], t[0].sizes);
        if (i < 2)
            t[i] = contiguous(call, t[i]);
        else if (!t[i].contiguous())
            call.fail("%s has gaps or another order in memory, expected it contiguous", names[i]);
    }
    enough(call, hfi_gelu_backward(t[0].dtype, t[0].elements, t[0].data, t[1].data, t[2].data, t[3].data, threads()));
    call.end();
}

}  // namespace

// Registers the operators for the CPU, in PyTorch's object for them, which deletes them with itself. Null: it refused.
HFI_EXPORT void* hfi_register(const hfi_torch* torch) {
    host = *torch;
    static const struct {
        const char* name;
        void (*run)(uint64_t*, uint64_t, uint64_t);
    } operators[] = {
        {"dcnv3", dcnv3_forward},
        {"dcnv3_backward", dcnv3_backward},
        {"depthwise_norm_gelu", depthwise_norm_gelu},
        {"depthwise_norm_gelu_backward", depthwise_norm_gelu_backward},
        {"norm", norm},
        {"gelu", gelu},
        {"gelu_backward", gelu_backward},
    };
    void* library = nullptr;
    if (host.library_init_impl("hf_internimage", "CPU", "operators.cpp", 0, &library)) return nullptr;
    for (const auto& each : operators)
        if (host.library_impl(library, each.name, each.run)) return nullptr;
    return library;
}
