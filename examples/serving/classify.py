# SPDX-License-Identifier: MIT
"""Classify images with a folder of `hf-internimage export MODEL exported`, without PyTorch.

    python classify.py exported cat.jpg dog.png

Needs onnxruntime, numpy and Pillow. A folder of `--target onnxruntime` works, too.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


class Classifier:
    """The model of an exported folder, and its preprocessing.

    Raises:
        ValueError: if the images would not all have one size, as a batch needs.
    """

    def __init__(self, folder, threads=0):
        folder = Path(folder)
        self.labels = json.loads((folder / "config.json").read_text())["id2label"]
        self.settings = json.loads((folder / "preprocessor_config.json").read_text())
        if not (self.settings.get("do_center_crop") and "shortest_edge" in self.settings["size"]):
            raise ValueError(f"{folder} is not preprocessed by resizing the shortest edge and a centre crop.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        for library in folder.glob("libdcnv3-*"):
            options.register_custom_ops_library(str(library))
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options)

    def pixels(self, image):
        """Return what the model takes, (3, height, width), of an image of Pillow of any size."""
        image, edge = image.convert("RGB"), self.settings["size"]["shortest_edge"]
        short = min(image.size)
        size = [edge if side == short else int(edge * side / short) for side in image.size]
        image = image.resize(size, self.settings["resample"])
        height, width = (self.settings["crop_size"][name] for name in ("height", "width"))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        values = np.asarray(image.crop((left, top, left + width, top + height)), np.float32)
        values = values * np.float32(self.settings["rescale_factor"])
        mean, deviation = (np.array(self.settings[name], np.float32) for name in ("image_mean", "image_std"))
        return ((values - mean) / deviation).transpose(2, 0, 1)

    def scores(self, pixels):
        """Return the scores of all classes, (N, classes), of pixels (N, 3, height, width)."""
        (logits,) = self.session.run(["logits"], {"pixel_values": pixels})
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def best(self, scores):
        """Return (label, score) of the best class of an image."""
        index = int(scores.argmax())
        return self.labels[str(index)], float(scores[index])


if __name__ == "__main__":
    classifier = Classifier(sys.argv[1])
    for name in sys.argv[2:]:
        label, score = classifier.best(classifier.scores(classifier.pixels(Image.open(name))[None])[0])
        print(f"{name}: {label} {score:.4f}")
