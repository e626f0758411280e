// SPDX-License-Identifier: MIT
// The library's operators for ONNX Runtime, of the domain hf_internimage, on the CPU. ONNX Runtime calls
// RegisterCustomOps when a session's options name this library, and then the functions below, from several threads at
// once. Python declares the operators' schemas (hf_internimage/exporting/onnxruntime_operators.py).
//
// Its C interface is a table of functions whose places never change. Declared here is what this file calls, by the
// places and layouts of version 17, so that no header of ONNX Runtime is needed to build the library.
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include "geometry.h"
#include "library.h"

namespace {

const uint32_t VERSION = 17;  // the first with parallel_for
const int64_t MOST_THREADS = 64;  // of a call; ONNX Runtime does not tell how many it has
enum { FAILED = 1, INVALID_ARGUMENT = 2 };  // OrtErrorCode
enum { FLOAT = 1, FLOAT16 = 10 };  // ONNXTensorElementDataType

struct Status;  // null if all is well
struct Context;

// OrtApi
struct Api {
    Status* (*create_status)(int code, const char* message);
    void* unused_1[25];
    Status* (*create_domain)(const char* name, void** domain);
    Status* (*add_operator)(void* domain, const struct Operator* op);
    Status* (*add_domain)(void* options, void* domain);
    void* unused_29[22];
    Status* (*tensor_data)(void* tensor, void** data);
    void* unused_52[9];
    Status* (*count_dimensions)(const void* shape, size_t* count);
    Status* (*dimensions)(const void* shape, int64_t* sizes, size_t count);
    void* unused_63[2];
    Status* (*tensor_shape)(const void* tensor, void** shape);
    void* unused_66[19];
    Status* (*float_attribute)(const void* node, const char* name, float* number);
    Status* (*integer_attribute)(const void* node, const char* name, int64_t* number);
    void* unused_87[3];
    Status* (*input)(const Context* context, size_t index, void** tensor);
    Status* (*output)(Context* context, size_t index, const int64_t* sizes, size_t dims, void** tensor);
    void* unused_92;
    void (*release_status)(Status* status);
    void* unused_94[5];
    void (*release_shape)(void* shape);
    void* unused_100[63];
    Status* (*integers_attribute)(const void* node, const char* name, int64_t* numbers, size_t* count);
    void* unused_164[110];
    Status* (*parallel_for)(
        const Context* context, void (*run)(void* data, size_t index), size_t count, size_t batches, void* data);
};
static_assert(offsetof(Api, integers_attribute) == 163 * sizeof(void*) && sizeof(Api) == 275 * sizeof(void*));

// OrtApiBase
struct ApiBase {
    const Api* (*api)(uint32_t version);
};

// OrtCustomOp, followed by what this file needs itself
struct Operator {
    uint32_t version;
    void* (*create_1)(const Operator*, const Api*, const void*);
    const char* (*name)(const Operator*);
    const char* (*provider)(const Operator*);
    int (*input_type)(const Operator*, size_t);
    size_t (*count_inputs)(const Operator*);
    int (*output_type)(const Operator*, size_t);
    size_t (*count_outputs)(const Operator*);
    void (*compute_1)(void*, Context*);
    void (*destroy)(void*);
    int (*input_kind)(const Operator*, size_t);
    int (*output_kind)(const Operator*, size_t);
    int (*input_memory)(const Operator*, size_t);
    int (*variadic[4])(const Operator*);
    Status* (*create)(const Operator*, const Api*, const void* node, void** kernel);
    Status* (*compute)(void* kernel, Context*);
    Status* (*infer_shape)(const Operator*, void*);
    int (*first_version)(const Operator*);
    int (*last_version)(const Operator*);

    const char* title;
    size_t inputs;
    int type, other_type;  // of the first input and the output, and of the other inputs
};

// A node of a graph: its attributes, and of its tensors the dtypes.
struct Kernel {
    const Api* api;
    hfi_dcnv3 dcnv3;
    hfi_depthwise depthwise;
};

int64_t dtype(int type) { return type == FLOAT16 ? HFI_FLOAT16 : HFI_FLOAT32; }

Status* fail(const Api* api, int code, const char* format, ...) {
    char text[300];
    va_list rest;
    va_start(rest, format);
    vsnprintf(text, sizeof text, format, rest);
    va_end(rest);
    return api->create_status(code, text);
}

Status* no_memory(const Api* api) { return fail(api, FAILED, "hf_internimage: not enough memory"); }

Status* keep(const Kernel& kernel, void** made) {
    *made = malloc(sizeof(Kernel));
    if (!*made) return no_memory(kernel.api);
    *(Kernel*)*made = kernel;
    return nullptr;
}

Status* create_dcnv3(const Operator* op, const Api* api, const void* node, void** made) {
    static const char* const pairs[] = {"kernel_size", "stride", "padding", "dilation"};
    hfi_dcnv3 call = {};
    float scale;
    if (Status* failed = api->integer_attribute(node, "groups", &call.groups)) return failed;
    for (int i = 0; i < 4; ++i) {
        size_t count = 2;
        Status* failed = api->integers_attribute(node, pairs[i], &call.kernel_h + 2 * i, &count);
        if (!failed && count == 2) continue;
        if (failed) api->release_status(failed);  // it does not name the attribute
        return fail(api, INVALID_ARGUMENT, "DCNv3: the attribute %s must be two integers", pairs[i]);
    }
    if (Status* failed = api->float_attribute(node, "offset_scale", &scale)) return failed;
    if (Status* failed = api->integer_attribute(node, "remove_center", &call.remove_center)) return failed;
    if (Status* failed = api->integer_attribute(node, "softmax", &call.softmax)) return failed;
    call.offset_scale = scale;
    call.value.dtype = dtype(op->type);
    call.offset.dtype = call.mask.dtype = dtype(op->other_type);
    return keep({api, call, {}}, made);
}

Status* create_depthwise(const Operator* op, const Api* api, const void* node, void** made) {
    hfi_depthwise shape = {};
    float epsilon;
    if (Status* failed = api->float_attribute(node, "epsilon", &epsilon)) return failed;
    shape.epsilon = epsilon;
    shape.dtype = dtype(op->type);
    return keep({api, {}, shape}, made);
}

// A tensor without gaps, of at most four dimensions.
struct Tensor {
    int64_t sizes[4];
    void* data;

    hfi_tensor layout(int64_t dtype) const {
        return {dtype, sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3]};
    }
};

Status* read(const Api* api, const Context* context, size_t index, const char* name, size_t dims, Tensor& t) {
    void *tensor = nullptr, *shape = nullptr;
    size_t count = 0;
    if (Status* failed = api->input(context, index, &tensor)) return failed;
    if (Status* failed = api->tensor_shape(tensor, &shape)) return failed;
    Status* failed = api->count_dimensions(shape, &count);
    if (!failed && count != dims)
        failed = fail(api, INVALID_ARGUMENT, "%s has %d dimensions, expected %d", name, (int)count, (int)dims);
    if (!failed) failed = api->dimensions(shape, t.sizes, dims);
    api->release_shape(shape);
    return failed ? failed : api->tensor_data(tensor, &t.data);
}

Status* make(const Api* api, Context* context, const int64_t* sizes, void** data) {
    void* tensor = nullptr;
    if (Status* failed = api->output(context, 0, sizes, 4, &tensor)) return failed;
    return api->tensor_data(tensor, data);
}

// The threads of a session, for one call.
struct Threads {
    const Api* api;
    const Context* context;
    void (*join)(void* team);
    void* team;
    Status* failed;
};

void run_on_threads(void* pointer, void (*join)(void* team), void* team, int64_t count) {
    Threads& t = *(Threads*)pointer;
    t.join = join;
    t.team = team;
    auto run = [](void* data, size_t) { ((Threads*)data)->join(((Threads*)data)->team); };
    t.failed = t.api->parallel_for(t.context, run, (size_t)count, 0, &t);
}

Status* compute_dcnv3(void* pointer, Context* context) {
    const Api* api = ((Kernel*)pointer)->api;
    hfi_dcnv3 call = ((Kernel*)pointer)->dcnv3;
    Tensor value, offset, mask;
    if (Status* failed = read(api, context, 0, "value", 4, value)) return failed;
    if (Status* failed = read(api, context, 1, "offset", 4, offset)) return failed;
    if (Status* failed = read(api, context, 2, "mask", 4, mask)) return failed;
    char why[256];
    if (!complete(call, value.sizes, offset.sizes, mask.sizes, why, sizeof why))
        return fail(api, INVALID_ARGUMENT, "%s", why);
    call.value = value.layout(call.value.dtype);
    call.offset = offset.layout(call.offset.dtype);
    call.mask = mask.layout(call.mask.dtype);
    const int64_t sizes[] = {call.batch, call.out_height, call.out_width, value.sizes[3]};
    void* result;
    if (Status* failed = make(api, context, sizes, &result)) return failed;
    Threads threads = {api, context, nullptr, nullptr, nullptr};
    const Pool pool = {run_on_threads, &threads};
    if (dcnv3_forward(call, value.data, offset.data, mask.data, result, MOST_THREADS, &pool)) return no_memory(api);
    return threads.failed;
}

Status* compute_depthwise(void* pointer, Context* context) {
    static const char* const vectors[] = {"bias", "gamma", "beta"};
    const Api* api = ((Kernel*)pointer)->api;
    hfi_depthwise shape = ((Kernel*)pointer)->depthwise;
    Tensor states, weight, vector[3];
    if (Status* failed = read(api, context, 0, "states", 4, states)) return failed;
    if (Status* failed = read(api, context, 1, "weight", 4, weight)) return failed;
    const int64_t channels = states.sizes[3], kernel = weight.sizes[3];
    const bool square = weight.sizes[2] == kernel && kernel % 2;
    if (channels < 1 || !square || weight.sizes[0] != channels || weight.sizes[1] != 1)
        return fail(api, INVALID_ARGUMENT, "weight has shape %lldx%lldx%lldx%lld, expected %lldx1xKxK with an odd K",
                    (long long)weight.sizes[0], (long long)weight.sizes[1], (long long)weight.sizes[2],
                    (long long)kernel, (long long)channels);
    for (int i = 0; i < 3; ++i) {
        if (Status* failed = read(api, context, 2 + i, vectors[i], 1, vector[i])) return failed;
        if (vector[i].sizes[0] != channels)
            return fail(api, INVALID_ARGUMENT, "%s has size %lld, expected %lld", vectors[i],
                        (long long)vector[i].sizes[0], (long long)channels);
    }
    const hfi_tensor layout = states.layout(shape.dtype);
    shape = {shape.dtype, states.sizes[0],  states.sizes[1],  states.sizes[2],  channels,
             kernel,      layout.stride_n, layout.stride_h, layout.stride_w, shape.epsilon};
    void* result;
    if (Status* failed = make(api, context, states.sizes, &result)) return failed;
    Threads threads = {api, context, nullptr, nullptr, nullptr};
    const Pool pool = {run_on_threads, &threads};
    if (depthwise_norm_gelu(shape, states.data, weight.data, vector[0].data, vector[1].data, vector[2].data, result,
                            MOST_THREADS, &pool))
        return no_memory(api);
    return threads.failed;
}

Operator describe(bool dcnv3, int type, int other_type) {
    Operator op = {};
    op.version = VERSION;
    op.name = [](const Operator* op) { return op->title; };
    op.provider = [](const Operator*) { return "CPUExecutionProvider"; };
    op.input_type = [](const Operator* op, size_t i) { return i ? op->other_type : op->type; };
    op.count_inputs = [](const Operator* op) { return op->inputs; };
    op.output_type = [](const Operator* op, size_t) { return op->type; };
    op.count_outputs = [](const Operator*) { return (size_t)1; };
    op.destroy = free;
    op.input_kind = op.output_kind = [](const Operator*, size_t) { return 0; };  // required
    op.input_memory = [](const Operator*, size_t) { return 0; };  // the provider's own
    op.create = dcnv3 ? create_dcnv3 : create_depthwise;
    op.compute = dcnv3 ? compute_dcnv3 : compute_depthwise;
    op.title = dcnv3 ? "DCNv3" : "DepthwiseNormGelu";
    op.inputs = dcnv3 ? 3 : 5;
    op.type = type;
    op.other_type = other_type;
    return op;
}

// Of those with one name, ONNX Runtime takes the first whose types are those of the inputs.
const Operator operators[] = {
    describe(true, FLOAT, FLOAT),   describe(true, FLOAT16, FLOAT16),  describe(true, FLOAT16, FLOAT),
    describe(false, FLOAT, FLOAT), describe(false, FLOAT16, FLOAT16),
};

}  // namespace

// Adds the operators to the options of a session. The domain must outlive the session, whose end nobody tells: it stays
// until the process ends, some hundred bytes for each time that options name the library.
HFI_EXPORT Status* RegisterCustomOps(void* options, const ApiBase* base) {
    const Api* api = base->api(VERSION);
    if (!api) return base->api(1)->create_status(FAILED, "hf_internimage's operators need ONNX Runtime 1.17 or newer");
    void* domain = nullptr;
    if (Status* failed = api->create_domain("hf_internimage", &domain)) return failed;
    for (const Operator& op : operators)
        if (Status* failed = api->add_operator(domain, &op)) return failed;
    return api->add_domain(options, domain);
}
