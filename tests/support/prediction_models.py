# SPDX-License-Identifier: MIT
"""Folders of tiny models of every task, with random weights and their image processors, and images for them."""

import io

import numpy as np
import torch
from PIL import Image
from transformers import Mask2FormerImageProcessorPil, UperNetForSemanticSegmentation

from hf_internimage import (
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageSegmentationImageProcessor,
)
from hf_internimage.heads import head_config
from hf_internimage.models.image_processing_pil_internimage import image_processor_for
from support.detection_scenes import scene
from support.golden_data import awaken, tiny_config
from support.golden_detectors import tiny_dino

NAMES = ["ant", "bee", "cat", "dog", "eel"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}


def save(model, processor, folder):
    """Write a model and its image processor; return the folder."""
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def classifier(folder, **fields):
    torch.manual_seed(1)
    model = awaken(InternImageForImageClassification(tiny_config(image_size=32, **{**LABELS, **fields})))
    return save(model, image_processor_for(32, 32), folder)


def upernet(folder, names=NAMES):
    """A UperNet whose bias is such that it sees several classes."""
    torch.manual_seed(2)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    config = head_config("upernet", tiny_config(), hidden_size=16, auxiliary_channels=8, **labels)
    model = awaken(UperNetForSemanticSegmentation(config)).eval()
    processor = InternImageSegmentationImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})
    with torch.no_grad():
        pixels = processor(scene(0)[0], return_tensors="pt").pixel_values
        model.decode_head.classifier.weight *= 20
        model.decode_head.classifier.bias -= model(pixels).logits.mean(dim=(0, 2, 3))
    return save(model, processor, folder)


def mask2former(folder):
    """A Mask2Former with transformers' image processor, which makes instances and panoptic segments."""
    from transformers import Mask2FormerForUniversalSegmentation

    torch.manual_seed(3)
    small = {
        "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_feedforward_dim": 32, "dim_feedforward": 32, "num_attention_heads": 4, "num_queries": 6,
    }  # fmt: skip
    model = awaken(Mask2FormerForUniversalSegmentation(head_config("mask2former", tiny_config(), **small, **LABELS)))
    with torch.no_grad():
        model.class_predictor.weight *= 20
        model.class_predictor.bias[-1] -= 30  # no query is of "no object"
        for layer in model.model.transformer_module.decoder.mask_predictor.mask_embedder.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight *= 5  # masks with clear borders
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    return save(model, processor, folder)


def dino(folder):
    model = tiny_dino(**LABELS)
    return save(model, InternImageDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}), folder)


def picture(seed=0, width=48, height=40):
    """An image with a square and a disc."""
    return scene(seed, width, height)[0]


def write_pictures(folder, count, first=0):
    """Write images of several sizes; return their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(first, first + count):
        path = folder / f"{index:02d}.png"
        picture(index, 48 + 4 * index, 40).save(path)
        paths.append(str(path))
    return paths


def cut_jpeg():
    """The first half of a JPEG."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()[: buffer.tell() // 2]


def write_video(path, frames, rate=5, size=(48, 40)):
    """Write a video of plain frames whose grey levels are given, exactly (FFV1)."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "bgr0"
        for level in frames:
            image = Image.new("RGB", size, (level, level, level))
            for packet in stream.encode(av.VideoFrame.from_image(image)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
