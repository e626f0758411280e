# SPDX-License-Identifier: MIT
"""Write the folder that NVIDIA Triton or OpenVINO Model Server serves, from an exported one.

    python model_repository.py exported models

A folder of `--target onnx` is for Triton, one of `--target openvino` for OpenVINO Model Server. Needs onnxruntime.
"""

import json
import shutil
import sys
from pathlib import Path

import onnxruntime

NAME = "internimage"
MOST_IMAGES = 8  # of a batch that Triton makes of requests
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
ENTRY = '  {{ name: "{name}" data_type: {kind} dims: [ {sizes} ] }}'
CONFIGURATION = """name: "{name}"
backend: "onnxruntime"
max_batch_size: {most_images}
input [
{inputs}
]
output [
{outputs}
]
{batching}instance_group [
  {{ kind: KIND_CPU count: 1 }}
]
"""
BATCHING = "dynamic_batching { max_queue_delay_microseconds: 5000 }\n"


def write_triton(file, folder):
    """Write folder/internimage with a config.pbtxt for an ONNX file."""
    session = onnxruntime.InferenceSession(file)
    dynamic = not isinstance(session.get_inputs()[0].shape[0], int)

    def entries(tensors):
        lines = []
        for tensor in tensors:
            sizes = [size if isinstance(size, int) else -1 for size in tensor.shape[dynamic:]]  # without the batch
            lines.append(ENTRY.format(name=tensor.name, kind=TYPES[tensor.type], sizes=", ".join(map(str, sizes))))
        return ",\n".join(lines)

    text = CONFIGURATION.format(
        name=NAME,
        most_images=MOST_IMAGES if dynamic else 0,
        inputs=entries(session.get_inputs()),
        outputs=entries(session.get_outputs()),
        batching=BATCHING if dynamic else "",
    )
    (folder / NAME / "1").mkdir(parents=True)
    (folder / NAME / "config.pbtxt").write_text(text)
    for part in file.parent.glob(f"{file.name}*"):  # the weights are beside the file above 2 GB
        shutil.copyfile(part, folder / NAME / "1" / part.name)


def write_openvino(file, folder):
    """Write folder/internimage and folder/config.json for an OpenVINO file; the server sees the folder as /models."""
    (folder / NAME / "1").mkdir(parents=True)
    for part in (file, file.with_suffix(".bin")):
        shutil.copyfile(part, folder / NAME / "1" / part.name)
    model = {"name": NAME, "base_path": f"/models/{NAME}"}
    (folder / "config.json").write_text(json.dumps({"model_config_list": [{"config": model}]}, indent=2) + "\n")


def main(exported, folder):
    exported, folder = Path(exported), Path(folder)
    if (exported / "model.xml").exists():
        write_openvino(exported / "model.xml", folder)
    elif (exported / "model.onnx").exists():
        write_triton(exported / "model.onnx", folder)
    else:
        sys.exit(f"{exported} has no model.onnx and no model.xml; export with --target onnx or openvino.")


if __name__ == "__main__":
    main(*sys.argv[1:])
