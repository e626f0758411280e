# SPDX-License-Identifier: MIT
"""`hf-internimage export`: write a model for another runtime."""

import argparse
import re
from pathlib import Path

from .names import EXPORT_TARGETS
from .settings import check_model_name, check_new_folder
from .usage import UsageError, require_package

HELP = "write a model for ONNX Runtime and other runtimes, and compare the file with the model"
INTERRUPTED = "; nothing was written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the folder and the options."""
    parser.usage = f"{parser.prog} MODEL OUT [options]"
    parser.epilog = f"""targets:
  onnx         model.onnx of standard operators (opset 20), for ONNX Runtime from version 1.25 on
  onnxruntime  model.onnx with operators of its own, and the library of these, for ONNX Runtime from
               version 1.20 on: faster, on CPUs
  web          a folder for transformers.js, with a page that classifies in the browser; float32 and int8
  openvino     model.xml and model.bin of standard operators, for OpenVINO
  torchscript  model.pt, which PyTorch loads without this package
  aoti         model.pt2, compiled for this machine's processor; PyTorch's C++ library runs it, without Python
  tensorrt     model.onnx within the limits of TensorRT's parser; not yet run with TensorRT

The folder gets the file, config.json, preprocessor_config.json and export.json. It appears only
if the file computes what the model does.

examples:
  {parser.prog} internimage-t exported
  {parser.prog} upernet-t exported --size 512x1024 --static
  {parser.prog} internimage-t exported --with-processing
  {parser.prog} internimage-t page --target web"""
    parser.add_argument("model", metavar="MODEL", help="folder of a model, or a repository on the Hub")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder to make; must not exist, or be empty")
    parser.add_argument("--target", choices=EXPORT_TARGETS, default="onnx", help="what to write")
    size_help = "height x width in pixels, such as 512x1024, or one side; default: the image processor's"
    parser.add_argument("--size", type=_size, metavar="HxW", help=size_help)
    parser.add_argument("--static", action="store_true", help="for one image of --size, not for any size and batch")
    processing_help = (
        "the file takes an 8-bit image of any size and returns what predict does; for onnx and onnxruntime"
    )
    parser.add_argument("--with-processing", action="store_true", help=processing_help)
    points_help = "the file also returns the offsets and masks of the last block of each stage"
    parser.add_argument("--with-sampling-points", action="store_true", help=points_help)
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="weights in float16; for onnx and openvino")
    precision.add_argument("--int8", action="store_true", help="linear layers in 8 bits; for onnx and openvino")
    calibration_help = "images that tell the ranges of 8-bit numbers; default: none, see the documentation"
    parser.add_argument("--calibration", type=Path, metavar="DIR", help=calibration_help)
    evaluate_help = "images in a folder for each class, to report the accuracy of the file and of the model"
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help=evaluate_help)


def run(args: argparse.Namespace) -> int:
    """Export, and print the report."""
    check_model_name(args.model)
    check_new_folder(args.output, "OUT")
    if args.calibration is not None and not args.int8:
        raise UsageError("--calibration is for --int8; add it, or leave --calibration out.")
    for option in ("calibration", "evaluate"):
        folder = getattr(args, option)
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--{option} {folder}: there is no such folder.")
    if args.target not in ("torchscript", "aoti"):
        require_package("openvino" if args.target == "openvino" else "onnx")
    from hf_internimage.exporting import export

    report = export(
        args.model,
        args.output,
        target=args.target,
        size=args.size,
        static=args.static,
        with_processing=args.with_processing,
        with_sampling_points=args.with_sampling_points,
        half=args.half,
        int8=args.int8,
        calibration=args.calibration,
        evaluate=args.evaluate,
    )
    print(report)
    return 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    sides = tuple(int(side or match[1]) for side in match.groups()) if match else (0,)
    if min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give height x width, such as 512x1024, or one side")
    return sides[0], sides[-1]
