// SPDX-License-Identifier: MIT
// The library's operator for ONNX Runtime, hf_internimage::DCNv3 on the CPU. ONNX Runtime calls RegisterCustomOps when a
// session's options name this library, and then the functions below, from several threads at once.
//
// Its C interface is a table of functions whose places never change. Declared here is what this file calls, by the
// places and layouts of version 17, so that no header of ONNX Runtime is needed to build the library.
#include <stddef.h>
#include <stdlib.h>

#include "geometry.h"
#include "library.h"

namespace {

const uint32_t VERSION = 17;  // the first with parallel_for
const int64_t MOST_THREADS = 64;  // of a call; ONNX Runtime does not tell how many it has
enum { FAILED = 1, INVALID_ARGUMENT = 2 };  // OrtErrorCode
enum { FLOAT = 1, FLOAT16 = 10 };  // ONNXTensorElementDataType
enum Input { VALUE, OFFSET, MASK, INPUTS };

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

    int value_type, other_type;  // of offset and mask
};

// A node of a graph: its attributes.
struct Kernel {
    const Api* api;
    hfi_dcnv3 call;
};

int64_t dtype(int type) { return type == FLOAT16 ? HFI_FLOAT16 : HFI_FLOAT32; }

Status* create(const Operator* op, const Api* api, const void* node, void** made) {
    static const char* const pairs[] = {"kernel_size", "stride", "padding", "dilation"};
    hfi_dcnv3 call = {};
    float scale;
    if (Status* failed = api->integer_attribute(node, "groups", &call.groups)) return failed;
    for (int i = 0; i < 4; ++i) {
        size_t count = 2;
        Status* failed = api->integers_attribute(node, pairs[i], &call.kernel_h + 2 * i, &count);
        if (!failed && count == 2) continue;
        if (failed) api->release_status(failed);  // it does not name the attribute
        char text[64];
        snprintf(text, sizeof text, "DCNv3: the attribute %s must be two integers", pairs[i]);
        return api->create_status(INVALID_ARGUMENT, text);
    }
    if (Status* failed = api->float_attribute(node, "offset_scale", &scale)) return failed;
    if (Status* failed = api->integer_attribute(node, "remove_center", &call.remove_center)) return failed;
    if (Status* failed = api->integer_attribute(node, "softmax", &call.softmax)) return failed;
    call.offset_scale = scale;
    call.value.dtype = dtype(op->value_type);
    call.offset.dtype = call.mask.dtype = dtype(op->other_type);
    Kernel* kernel = (Kernel*)malloc(sizeof(Kernel));
    if (!kernel) return api->create_status(FAILED, "DCNv3: not enough memory");
    *kernel = {api, call};
    *made = kernel;
    return nullptr;
}

Status* read(const Api* api, void* tensor, int64_t* sizes, void** data) {
    void* shape = nullptr;
    size_t dims = 0;
    if (Status* failed = api->tensor_shape(tensor, &shape)) return failed;
    Status* failed = api->count_dimensions(shape, &dims);
    if (!failed && dims != 4)
        failed = api->create_status(INVALID_ARGUMENT, "DCNv3: value, offset and mask must have four dimensions");
    if (!failed) failed = api->dimensions(shape, sizes, dims);
    api->release_shape(shape);
    return failed ? failed : api->tensor_data(tensor, data);
}

hfi_tensor layout(int64_t dtype, const int64_t* sizes) {
    return {dtype, sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3]};
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

Status* compute(void* pointer, Context* context) {
    const Api* api = ((Kernel*)pointer)->api;
    hfi_dcnv3 call = ((Kernel*)pointer)->call;
    int64_t sizes[INPUTS][4];
    void *tensor, *data[INPUTS], *result;
    for (int i = 0; i < INPUTS; ++i) {
        if (Status* failed = api->input(context, i, &tensor)) return failed;
        if (Status* failed = read(api, tensor, sizes[i], &data[i])) return failed;
    }
    char why[256] = "DCNv3: ";
    if (!complete(call, sizes[VALUE], sizes[OFFSET], sizes[MASK], why + 7, sizeof why - 7))
        return api->create_status(INVALID_ARGUMENT, why);
    call.value = layout(call.value.dtype, sizes[VALUE]);
    call.offset = layout(call.offset.dtype, sizes[OFFSET]);
    call.mask = layout(call.mask.dtype, sizes[MASK]);
    const int64_t output[] = {call.batch, call.out_height, call.out_width, sizes[VALUE][3]};
    if (Status* failed = api->output(context, 0, output, 4, &tensor)) return failed;
    if (Status* failed = api->tensor_data(tensor, &result)) return failed;
    Threads threads = {api, context, nullptr, nullptr, nullptr};
    const Pool pool = {run_on_threads, &threads};
    if (dcnv3_forward(call, data[VALUE], data[OFFSET], data[MASK], result, MOST_THREADS, &pool))
        return api->create_status(FAILED, "DCNv3: not enough memory");
    return threads.failed;
}

Operator describe(int value_type, int other_type) {
    Operator op = {};
    op.version = VERSION;
    op.name = [](const Operator*) { return "DCNv3"; };
    op.provider = [](const Operator*) { return "CPUExecutionProvider"; };
    op.input_type = [](const Operator* op, size_t i) { return i == VALUE ? op->value_type : op->other_type; };
    op.count_inputs = [](const Operator*) { return (size_t)INPUTS; };
    op.output_type = [](const Operator* op, size_t) { return op->value_type; };
    op.count_outputs = [](const Operator*) { return (size_t)1; };
    op.destroy = free;
    op.input_kind = op.output_kind = [](const Operator*, size_t) { return 0; };  // required
    op.input_memory = [](const Operator*, size_t) { return 0; };  // the provider's own
    op.create = create;
    op.compute = compute;
    op.value_type = value_type;
    op.other_type = other_type;
    return op;
}

// ONNX Runtime takes the first whose types are those of the inputs.
const Operator operators[] = {describe(FLOAT, FLOAT), describe(FLOAT16, FLOAT16), describe(FLOAT16, FLOAT)};

}  // namespace

// Adds the operator to the options of a session. The domain must outlive the session, whose end nobody tells us: it stays
// until the process ends, some hundred bytes for each time that options name the library.
HFI_EXPORT Status* RegisterCustomOps(void* options, const ApiBase* base) {
    const Api* api = base->api(VERSION);
    if (!api) return base->api(1)->create_status(FAILED, "hf_internimage's operator needs ONNX Runtime 1.17 or newer");
    void* domain = nullptr;
    if (Status* failed = api->create_domain("hf_internimage", &domain)) return failed;
    for (const Operator& op : operators)
        if (Status* failed = api->add_operator(domain, &op)) return failed;
    return api->add_domain(options, domain);
}
