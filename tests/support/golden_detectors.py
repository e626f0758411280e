# SPDX-License-Identifier: MIT
"""The original's tiny DINO and composite backbone as models of this package, and detectors for tests of mechanics."""

import torch

from hf_internimage import (
    CBInternImageBackbone,
    CBInternImageConfig,
    InternImageConfig,
    InternImageDinoConfig,
    InternImageDinoForObjectDetection,
)
from hf_internimage.conversion import dino
from support.golden_data import awaken, tiny_config
from support.golden_heads import backbone_fields, document, pixel_values, weights

STAGES = ["stage2", "stage3", "stage4"]
TINY_TRANSFORMER = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 20,
    "num_labels": 5,
}


def golden_dino_config():
    """Of the released file that `dino_tiny` describes; the size is none that was released."""
    backbone = backbone_fields(document("dino_tiny")["config"]["backbone"])
    return InternImageDinoConfig(backbone_config=InternImageConfig(**backbone, out_features=STAGES), **TINY_TRANSFORMER)


def golden_dino(dtype=torch.float32):
    config = golden_dino_config()
    model = InternImageDinoForObjectDetection(config)
    model.load_state_dict(dino.convert(weights("dino_tiny"), config).tensors, strict=True)
    return model.to(dtype).eval()


def golden_images(dtype=torch.float32):
    """Two images, the second smaller, with their mask."""
    pixels, images = pixel_values("dino_tiny", dtype=dtype), document("dino_tiny")["images"]
    mask = torch.zeros(pixels.shape[0], *pixels.shape[-2:], dtype=torch.int64)
    for index, image in enumerate(images):
        height, width = image["img_shape"]
        mask[index, :height, :width] = 1
    return pixels * mask[:, None], mask


def golden_composite(dtype=torch.float32, **fields):
    backbone = backbone_fields(document("cb_internimage_tiny")["config"]["backbone"])
    model = CBInternImageBackbone(CBInternImageConfig(**backbone, out_features=STAGES, **fields))
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in weights("cb_internimage_tiny").items()
        if name.startswith("backbone.")
    }
    model.load_state_dict(tensors, strict=True)
    return model.to(dtype).eval()


def tiny_composite_config(**fields):
    plain = tiny_config().to_diff_dict()
    names = ("channels", "depths", "groups")
    return CBInternImageConfig(**{**{name: plain[name] for name in names}, "out_features": STAGES, **fields})


def tiny_dino_config(backbone_config=None, **fields):
    if backbone_config is None:
        backbone_config = tiny_config(out_features=STAGES)
    return InternImageDinoConfig(backbone_config=backbone_config, **{**TINY_TRANSFORMER, **fields})


def tiny_dino(backbone_config=None, **fields):
    """A detector whose parameters all matter, in evaluation mode."""
    torch.manual_seed(3)
    return awaken(InternImageDinoForObjectDetection(tiny_dino_config(backbone_config, **fields))).eval()


def objects(dtype=torch.float32):
    """Labels of two images."""
    labels = [
        {"class_labels": torch.tensor([1, 4]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.7, 0.4, 0.2]])},
        {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.6, 0.4, 0.5, 0.5]])},
    ]
    return [{**label, "boxes": label["boxes"].to(dtype)} for label in labels]
