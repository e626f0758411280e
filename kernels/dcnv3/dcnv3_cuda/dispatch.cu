// SPDX-License-Identifier: MIT
// The operators on PyTorch's tensors: checks, copies of what the kernels cannot read, choice of the kernel, launch.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../torch-ext/torch_binding.h"
#include "dispatch.cuh"

// Weak, for a PyTorch without CUDA lacks it and shall yet load this library. Its header has it only under USE_CUDA.
extern "C" AOTI_TORCH_EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream)
    __attribute__((weak));

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t LARGEST = int64_t(1) << 30;  // what the kernels count in 32 bits, with room for sums of two
constexpr int64_t MOST_IMAGES = 65535;         // of a grid's second dimension; kernels go on to the others themselves

template <class... Parts>
void require(bool condition, const Parts&... parts) {
    if (condition) return;
    std::ostringstream text;
    text << "dcnv3: ";
    ((text << parts), ...);
    throw std::runtime_error(text.str());
}

std::string shape(const Tensor& tensor) {
    std::ostringstream text;
    text << "(";
    for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
    text << ")";
    return text.str();
}

void require_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
    bool same = tensor.dim() == (int64_t)expected.size();
    for (size_t i = 0; same && i < expected.size(); ++i) same = tensor.size(i) == expected.begin()[i];
    if (same) return;
    std::ostringstream text;
    for (size_t i = 0; i < expected.size(); ++i) text << (i ? ", " : "") << expected.begin()[i];
    require(false, name, " has shape ", shape(tensor), ", expected (", text.str(), ")");
}

bool is_floating(ScalarType type) {
    return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
           type == ScalarType::BFloat16;
}

int64_t output_length(int64_t length, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t room = length + 2 * padding - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
}

// A contiguous, aligned copy in another type.
Tensor copied(const Tensor& tensor, ScalarType type) {
    Tensor copy = torch::stable::new_empty(tensor, tensor.sizes(), type);
    torch::stable::copy_(copy, tensor);
    return copy;
}

// How far two neighbours are apart; 0 if there is but one.
int64_t step(const Tensor& tensor, int64_t dim) { return tensor.size(dim) > 1 ? tensor.stride(dim) : 0; }

// Whether a pixel's features lie side by side, in whole vectors.
bool readable(const Tensor& tensor, int64_t vector) {
    bool whole = tensor.size(3) <= 1 || tensor.stride(3) == 1;
    for (int64_t dim = 0; dim < 3; ++dim) whole = whole && step(tensor, dim) % vector == 0;
    return whole && reinterpret_cast<uintptr_t>(tensor.data_ptr()) % (vector * tensor.element_size()) == 0;
}

Tensor prepared(const Tensor& tensor, ScalarType type, int64_t vector) {
    return tensor.scalar_type() == type && readable(tensor, vector) ? tensor : copied(tensor, type);
}

hfi::View view(const Tensor& tensor) {
    return {tensor.data_ptr(), step(tensor, 0), step(tensor, 1), step(tensor, 2)};
}

hfi::Kernel find(hfi::Pass pass, const hfi::Call& call, ScalarType value, ScalarType point) {
    const bool float_offsets = point == ScalarType::Float;
    switch (value) {
#ifndef HFI_NO_FLOAT
        case ScalarType::Float:
            return hfi::find_float(pass, call);
#endif
#ifndef HFI_NO_DOUBLE
        case ScalarType::Double:
            return hfi::find_double(pass, call);
#endif
#ifndef HFI_NO_HALF
        case ScalarType::Half:
            return hfi::find_half(pass, call, float_offsets);
#endif
#ifndef HFI_NO_BFLOAT
        case ScalarType::BFloat16:
            return hfi::find_bfloat(pass, call, float_offsets);
#endif
        default:
            require(false, "this build has no kernels for values of type ", toString(value));
            return {};
    }
}

// A call, checked; its tensors as the kernels read them.
class Work {
public:
    Work(hfi::Pass pass, const Tensor& value, const Tensor& offset, const Tensor& mask, const hfi::Call& geometry)
        : value_(value), offset_(offset), mask_(mask), call_(geometry), device_(value.get_device_index()) {
        const char* names[] = {"value", "offset", "mask"};
        const Tensor* tensors[] = {&value, &offset, &mask};
        for (int i = 0; i < 3; ++i) {
            require(tensors[i]->is_cuda() && tensors[i]->get_device_index() == device_, names[i],
                    " must be on the CUDA device of value");
            require(is_floating(tensors[i]->scalar_type()), names[i], " has type ",
                    toString(tensors[i]->scalar_type()), ", expected Float, Double, Half or BFloat16");
            require(tensors[i]->dim() == 4, names[i], " has shape ", shape(*tensors[i]), ", expected 4 dimensions");
        }
        complete();
        // The kernels take offsets and masks of one type: that of value, or the one that value is summed in.
        const ScalarType type = value.scalar_type();
        const bool same = offset.scalar_type() == type && mask.scalar_type() == type;
        point_ = same ? type : type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
        call_.value = view(value);  // a copy's strides are no longer
        kernel_ = find(pass, call_, type, point_);
        value_ = prepared(value, type, kernel_.vector);
        offset_ = prepared(offset, point_, 2);
        mask_ = prepared(mask, point_, 1);
        call_.value = view(value_);
        call_.offset = view(offset_);
        call_.mask = view(mask_);
        check_counts();
    }

    hfi::Call& call() { return call_; }
    ScalarType point() const { return point_; }

    // The output, or its gradient.
    void set_output(const Tensor& tensor) { call_.output = view(tensor); }

    void launch() {
        const int64_t pairs = call_.out_height * call_.out_width * call_.groups;
        if (!pairs || !call_.batch) return;
        require(aoti_torch_get_current_cuda_stream, "this PyTorch is built without CUDA");
        void* stream = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
        const dim3 grid((unsigned)((pairs * kernel_.lanes + hfi::THREADS - 1) / hfi::THREADS),
                        (unsigned)std::min(call_.batch, (hfi::i64)MOST_IMAGES));
        void* arguments[] = {&call_};
        // The CUDA runtime linked in here is not PyTorch's own; this joins it to the device's one context.
        cudaError_t status = cudaSetDevice(device_);
        if (status == cudaSuccess)
            status = cudaLaunchKernel(kernel_.function, grid, dim3(hfi::THREADS), arguments, 0, (cudaStream_t)stream);
        if (status != cudaSuccess) cudaGetLastError();
        require(status == cudaSuccess, "the kernel could not be launched: ", cudaGetErrorString(status));
    }

private:
    // Sizes, and whether they agree.
    void complete() {
        hfi::Call& c = call_;
        require(c.groups >= 1 && value_.size(3) % c.groups == 0, "value has ", value_.size(3), " channels and groups is ",
                c.groups, ", expected a multiple");
        require(c.kernel_h >= 1 && c.kernel_w >= 1 && c.stride_h >= 1 && c.stride_w >= 1 && c.dilation_h >= 1 &&
                    c.dilation_w >= 1 && c.padding_h >= 0 && c.padding_w >= 0,
                "kernel_size, stride and dilation must be at least 1, padding at least 0");
        for (hfi::i64 number : {c.kernel_h, c.kernel_w, c.stride_h, c.stride_w, c.dilation_h, c.dilation_w, c.padding_h,
                                c.padding_w, (hfi::i64)value_.size(1), (hfi::i64)value_.size(2)})
            check_count(number);
        check_count(c.kernel_h * c.dilation_h);
        check_count(c.kernel_w * c.dilation_w);
        c.batch = value_.size(0);
        c.height = value_.size(1);
        c.width = value_.size(2);
        c.channels = value_.size(3) / c.groups;
        c.out_height = output_length(c.height, c.kernel_h, c.stride_h, c.padding_h, c.dilation_h);
        c.out_width = output_length(c.width, c.kernel_w, c.stride_w, c.padding_w, c.dilation_w);
        const int64_t taps = c.groups * (c.kernel_h * c.kernel_w - c.remove_center);
        require_shape("offset", offset_, {c.batch, c.out_height, c.out_width, taps * 2});
        require_shape("mask", mask_, {c.batch, c.out_height, c.out_width, taps});
    }

    void check_count(int64_t number) const {
        require(number < LARGEST, "takes up to ", LARGEST - 1, " pixels and groups in an image, features in a line and ",
                "so on, but value has shape ", shape(value_), " and offset ", shape(offset_));
    }

    // What the kernels count in 32 bits.
    void check_counts() const {
        const hfi::Call& c = call_;
        for (hfi::i64 number :
             {c.out_height * c.out_width, c.out_height * c.out_width * c.groups, c.width * c.groups * c.channels,
              c.value.stride_h, c.value.stride_w, c.offset.stride_h, c.offset.stride_w, c.mask.stride_h,
              c.mask.stride_w, c.out_height * c.stride_h + c.padding_h + c.kernel_h * c.dilation_h,
              c.out_width * c.stride_w + c.padding_w + c.kernel_w * c.dilation_w})
            check_count(number);
    }

    Tensor value_, offset_, mask_;
    hfi::Call call_;
    int32_t device_;
    ScalarType point_;
    hfi::Kernel kernel_;
};

hfi::Call geometry(int64_t groups, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                   int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w, double offset_scale,
                   bool remove_center, bool softmax) {
    hfi::Call call = {};
    call.groups = groups;
    call.kernel_h = kernel_h;
    call.kernel_w = kernel_w;
    call.stride_h = stride_h;
    call.stride_w = stride_w;
    call.padding_h = padding_h;
    call.padding_w = padding_w;
    call.dilation_h = dilation_h;
    call.dilation_w = dilation_w;
    call.offset_scale = offset_scale;
    call.remove_center = remove_center;
    call.softmax = softmax;
    return call;
}

Tensor in_type(const Tensor& tensor, ScalarType type) {
    return tensor.scalar_type() == type ? tensor : copied(tensor, type);
}

}  // namespace

Tensor dcnv3_forward(const Tensor& value, const Tensor& offset, const Tensor& mask, int64_t groups, int64_t kernel_h,
                     int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
                     int64_t dilation_h, int64_t dilation_w, double offset_scale, bool remove_center, bool softmax) {
    require(value.is_cuda(), "value must be on a CUDA device");
    const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
    Work work(hfi::Pass::forward, value, offset, mask,
              geometry(groups, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
                       offset_scale, remove_center, softmax));
    const hfi::Call& call = work.call();
    const int64_t sizes[] = {call.batch, call.out_height, call.out_width, value.size(3)};
    Tensor output = torch::stable::new_empty(value, {sizes, 4});
    work.set_output(output);
    work.launch();
    return output;
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward(const Tensor& grad_output, const Tensor& value, const Tensor& offset,
                                                  const Tensor& mask, int64_t groups, int64_t kernel_h,
                                                  int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                                                  int64_t padding_h, int64_t padding_w, int64_t dilation_h,
                                                  int64_t dilation_w, double offset_scale, bool remove_center,
                                                  bool softmax, std::optional<Tensor> fixed_point) {
    require(value.is_cuda(), "value must be on a CUDA device");
    const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
    const hfi::Pass pass = fixed_point ? hfi::Pass::backward_in_fixed_point : hfi::Pass::backward;
    Work work(pass, value, offset, mask,
              geometry(groups, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
                       offset_scale, remove_center, softmax));
    hfi::Call& call = work.call();
    require_shape("grad_output", grad_output, {call.batch, call.out_height, call.out_width, value.size(3)});
    require(grad_output.scalar_type() == value.scalar_type() && grad_output.is_cuda() &&
                grad_output.get_device_index() == value.get_device_index(),
            "grad_output must have the type and the device of value");
    const bool ready = grad_output.is_contiguous() && reinterpret_cast<uintptr_t>(grad_output.data_ptr()) % 16 == 0;
    const Tensor gradient = ready ? grad_output : copied(grad_output, grad_output.scalar_type());
    const ScalarType wide = value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    Tensor grad_value = torch::stable::new_zeros(value, value.sizes(), fixed_point ? ScalarType::Long : wide);
    Tensor grad_offset = torch::stable::new_empty(offset, offset.sizes(), work.point());
    Tensor grad_mask = torch::stable::new_empty(mask, mask.sizes(), work.point());
    work.set_output(gradient);
    call.grad_value = grad_value.data_ptr();
    call.grad_offset = grad_offset.data_ptr();
    call.grad_mask = grad_mask.data_ptr();
    if (fixed_point) {
        require(fixed_point->is_cuda() && fixed_point->get_device_index() == value.get_device_index() &&
                    fixed_point->scalar_type() == ScalarType::Double && fixed_point->numel() == 1,
                "fixed_point must be one number of type Double on the device of value");
        call.fixed_point = static_cast<double*>(fixed_point->data_ptr());
    }
    work.launch();
    if (!fixed_point) grad_value = in_type(grad_value, value.scalar_type());
    return {grad_value, in_type(grad_offset, offset.scalar_type()), in_type(grad_mask, mask.scalar_type())};
}
