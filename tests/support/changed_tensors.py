# SPDX-License-Identifier: MIT
"""Ways in which a saved tensor or a parameter can come back as something else than native code expects."""

import torch


class Elsewhere(torch.Tensor):
    """A tensor without memory of its own, at address 0."""

    @staticmethod
    def __new__(cls, tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, tensor.shape, strides=tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        if function is torch.ops.aten.detach.default:
            return cls(arguments[0])
        raise NotImplementedError


def freed(tensor):
    """The tensor in a storage without memory, as FSDP leaves them."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


# None of these keeps what kernels read.
CHANGES = {
    "half": torch.Tensor.half,
    "double": torch.Tensor.double,
    "fewer images": lambda tensor: tensor[:1].clone(),
    "flat": torch.Tensor.flatten,
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": torch.Tensor.to_sparse,
    "elsewhere": Elsewhere,
    "negated": lambda tensor: torch._neg_view(tensor),
    "freed": freed,
    "lazy zeros": lambda tensor: torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype),
}


def changed_saved_tensor(position, change):
    """A context in which the tensor saved at `position`, counted over the forward pass, comes back changed."""
    count = 0

    def pack(tensor):
        nonlocal count
        count += 1
        return count - 1, tensor

    def unpack(packed):
        index, tensor = packed
        return CHANGES[change](tensor) if index == position else tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
