# SPDX-License-Identifier: MIT
"""DCNv3 as one operator, hf_internimage::DCNv3, which the CPU library brings to ONNX Runtime."""

from collections.abc import Callable
from typing import Any

import torch
from onnx import defs
from onnxscript import values

DOMAIN, OPERATOR = "hf_internimage", "DCNv3"
_PAIRS = ("kernel_size", "stride", "padding", "dilation")
_INTEGERS = ("groups", "remove_center", "softmax")
_FLOATS = ["tensor(float)", "tensor(float16)"]

# As in kernels/dcnv3/dcnv3_cpu/onnxruntime.cpp.
_KINDS = defs.OpSchema.AttrType
_SCHEMA = defs.OpSchema(
    OPERATOR,
    DOMAIN,
    1,
    "Deformable convolution v3: see hf_internimage.dcnv3. Tensors are (N, H, W, features).",
    inputs=[defs.OpSchema.FormalParameter(*pair) for pair in (("value", "T"), ("offset", "S"), ("mask", "S"))],
    outputs=[defs.OpSchema.FormalParameter("output", "T")],
    type_constraints=[("T", _FLOATS, ""), ("S", _FLOATS, "")],
    attributes=[
        *(defs.OpSchema.Attribute(name, _KINDS.INT, "", required=True) for name in _INTEGERS),
        *(defs.OpSchema.Attribute(name, _KINDS.INTS, "height, width", required=True) for name in _PAIRS),
        defs.OpSchema.Attribute("offset_scale", _KINDS.FLOAT, "", required=True),
    ],
)
_dcnv3 = values.Op(values.Opset(DOMAIN, 1), OPERATOR, _SCHEMA)


def dcnv3_as_operator(value: Any, offset: Any, mask: Any, *arguments: Any) -> Any:
    """Write a call of hf_internimage::dcnv3 as one node; tensors are (N, H, W, features)."""
    groups, *numbers = arguments[:9]
    offset_scale, remove_center, softmax = arguments[9:12]
    pairs = {name: list(numbers[2 * i : 2 * i + 2]) for i, name in enumerate(_PAIRS)}
    return _dcnv3(
        value,
        offset,
        mask,
        groups=groups,
        **pairs,
        offset_scale=float(offset_scale),
        remove_center=int(remove_center),
        softmax=int(softmax),
    )


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.hf_internimage.dcnv3.default: dcnv3_as_operator,
    torch.ops.hf_internimage.dcnv3.backend: dcnv3_as_operator,
}

__all__ = ["DOMAIN", "OPERATOR", "TRANSLATIONS", "dcnv3_as_operator"]
