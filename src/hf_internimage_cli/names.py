# SPDX-License-Identifier: MIT
"""Names of the library that command lines choose from. They are repeated here, since importing it imports torch.

`tests/cli/test_names.py` compares them with the library's.
"""

TASKS = ("classification", "segmentation", "detection")
SIZES = ("t", "s", "b", "l", "xl", "h", "g")
HEADS = {
    "segmentation": ("upernet", "mask2former"),
    "detection": (
        "dino",
        "detr",
        "conditional_detr",
        "dab_detr",
        "deformable_detr",
        "rt_detr",
        "rt_detr_v2",
        "d_fine",
        "deimv2",
    ),
}
DTYPES = ("float32", "bfloat16", "float16")
BACKENDS = ("hub", "cuda", "triton", "cpu", "torch")
EXPORT_TARGETS = ("onnx", "onnxruntime", "web", "openvino", "torchscript", "aoti", "tensorrt")

__all__ = ["BACKENDS", "DTYPES", "EXPORT_TARGETS", "HEADS", "SIZES", "TASKS"]
