# SPDX-License-Identifier: MIT
"""Make files with the names and shapes of released segmentation and detection checkpoints, and random values.

The names are written here a second time, independently of the conversion's rules; `tests/test_checkpoints.py` compares
those of the tiny systems with the original's.

    python tests/support/synthetic_checkpoints.py upernet_internimage_t_512_160k_ade20k t.pth --dtype float16
"""

import argparse
import json
import math
import sys
from functools import cache
from pathlib import Path

import torch
from transformers import AutoBackbone, AutoConfig

from hf_internimage import InternImageConfig
from hf_internimage.checkpoints.systems import SYSTEM_CHECKPOINTS, find_checkpoint


def linear(name, out, into, bias=True):
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def conv(name, out, into, kernel=1, bias=True):
    return {f"{name}.weight": (out, into, kernel, kernel), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name, width):
    statistics = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return {**norm(name, width), **statistics, f"{name}.num_batches_tracked": ()}


def conv_norm(name, out, into, kernel=1, kind="bn", bias=False):
    normalise = batch_norm if kind == "bn" else norm
    return {**conv(f"{name}.conv", out, into, kernel, bias), **normalise(f"{name}.{kind}", out)}


def feedforward(name, width, hidden):
    return {**linear(f"{name}.layers.0.0", hidden, width), **linear(f"{name}.layers.1", width, hidden)}


def deformable(name, width, heads, levels, points=4):
    return {
        **linear(f"{name}.sampling_offsets", heads * levels * points * 2, width),
        **linear(f"{name}.attention_weights", heads * levels * points, width),
        **linear(f"{name}.value_proj", width, width),
        **linear(f"{name}.output_proj", width, width),
    }


def attention(name, width):
    packed = {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
    return {**packed, **linear(f"{name}.attn.out_proj", width, width)}


@cache
def _backbone_shapes(fields):
    with torch.device("meta"):
        tensors = AutoBackbone.from_config(AutoConfig.for_model(**json.loads(fields))).state_dict()
    return {name.replace("layer_scale", "gamma"): tuple(tensor.shape) for name, tensor in tensors.items()}


def backbone(config, prefix="backbone."):
    """Return upstream's names and shapes of an InternImage of segmentation and detection."""
    return {prefix + name: shape for name, shape in _backbone_shapes(config.to_json_string()).items()}


def upernet(config, num_labels, channels=512, auxiliary_channels=256):
    widths = config.hidden_sizes
    head = {}
    for scale in range(4):
        head |= conv_norm(f"psp_modules.{scale}.1", channels, widths[-1])
    head |= conv_norm("bottleneck", channels, widths[-1] + 4 * channels, 3)
    for level, width in enumerate(widths[:-1]):
        head |= conv_norm(f"lateral_convs.{level}", channels, width) | conv_norm(
            f"fpn_convs.{level}", channels, channels, 3
        )
    head |= conv_norm("fpn_bottleneck", channels, 4 * channels, 3) | conv("conv_seg", num_labels, channels)
    auxiliary = conv_norm("convs.0", auxiliary_channels, widths[2], 3)
    auxiliary |= conv("conv_seg", num_labels, auxiliary_channels)
    return {
        **backbone(config),
        **{f"decode_head.{name}": shape for name, shape in head.items()},
        **{f"auxiliary_head.{name}": shape for name, shape in auxiliary.items()},
    }


def segformer(config, num_labels, channels=256):
    head = {}
    for level, width in enumerate(config.hidden_sizes):
        head |= conv_norm(f"convs.{level}", channels, width)
    head |= conv_norm("fusion_conv", channels, 4 * channels) | conv("conv_seg", num_labels, channels)
    return {**backbone(config), **{f"decode_head.{name}": shape for name, shape in head.items()}}


def mask2former(config, num_labels, width, heads, encoder_hidden, decoder_hidden, queries, encoder=6, decoder=9):
    widths = config.hidden_sizes
    head = {}
    for index, into in enumerate(reversed(widths[1:])):
        head |= conv_norm(f"pixel_decoder.input_convs.{index}", width, into, kind="gn", bias=True)
    for index in range(encoder):
        layer = f"pixel_decoder.encoder.layers.{index}"
        head |= deformable(f"{layer}.attentions.0", width, heads, 3)
        head |= feedforward(f"{layer}.ffns.0", width, encoder_hidden)
        head |= norm(f"{layer}.norms.0", width) | norm(f"{layer}.norms.1", width)
    head |= {"pixel_decoder.level_encoding.weight": (3, width)}
    head |= conv_norm("pixel_decoder.lateral_convs.0", width, widths[0], kind="gn")
    head |= conv_norm("pixel_decoder.output_convs.0", width, width, 3, kind="gn")
    head |= conv("pixel_decoder.mask_feature", width, width)
    for index in range(decoder):
        layer = f"transformer_decoder.layers.{index}"
        head |= attention(f"{layer}.attentions.0", width) | attention(f"{layer}.attentions.1", width)
        head |= feedforward(f"{layer}.ffns.0", width, decoder_hidden)
        for place in range(3):
            head |= norm(f"{layer}.norms.{place}", width)
    head |= norm("transformer_decoder.post_norm", width)
    head |= {"query_embed.weight": (queries, width), "query_feat.weight": (queries, width)}
    head |= {"level_embed.weight": (3, width)} | linear("cls_embed", num_labels + 1, width)
    for place in (0, 2, 4):
        head |= linear(f"mask_embed.{place}", width, width)
    return {**backbone(config), **{f"decode_head.{name}": shape for name, shape in head.items()}}


def channel_mapper(prefix, widths, out):
    neck = {}
    for index, into in enumerate(widths):
        neck |= conv_norm(f"{prefix}convs.{index}", out, into, kind="gn")
    return neck | conv_norm(f"{prefix}extra_convs.0", out, widths[-1], 3, kind="gn")


def composite(config, prefix="backbone."):
    """Return two InternImages, the second without a stem and with a scale for the input of each stage."""
    widths = config.hidden_sizes
    first, second = f"{prefix}cb_modules.0.", f"{prefix}cb_modules.1."
    tensors = backbone(config, first)
    tensors |= {name: shape for name, shape in backbone(config, second).items() if "patch_embed" not in name}
    tensors |= {f"{second}gamma{stage}": (width,) for stage, width in enumerate(widths)}
    for stage, width in enumerate(widths):
        for other in range(stage + 1, len(widths)):
            tensors |= conv(f"{prefix}cb_linears.{stage}.{other - stage}", width, widths[other])
    return tensors


def dino_head(num_labels, width=256, heads=8, hidden=2048, queries=900, layers=6):
    head = {"transformer.level_embeds": (4, width), "transformer.query_embed.weight": (queries, width)}
    for index in range(layers):
        layer = f"transformer.encoder.layers.{index}"
        head |= deformable(f"{layer}.attentions.0", width, heads, 4) | feedforward(f"{layer}.ffns.0", width, hidden)
        head |= norm(f"{layer}.norms.0", width) | norm(f"{layer}.norms.1", width)
        layer = f"transformer.decoder.layers.{index}"
        head |= attention(f"{layer}.attentions.0", width) | deformable(f"{layer}.attentions.1", width, heads, 4)
        head |= feedforward(f"{layer}.ffns.0", width, hidden)
        for place in range(3):
            head |= norm(f"{layer}.norms.{place}", width)
    head |= linear("transformer.decoder.ref_point_head.0", width, 2 * width)
    head |= linear("transformer.decoder.ref_point_head.2", width, width) | norm("transformer.decoder.norm", width)
    head |= linear("transformer.enc_output", width, width) | norm("transformer.enc_output_norm", width)
    for index in range(layers + 1):
        head |= linear(f"cls_branches.{index}", num_labels, width)
        head |= linear(f"reg_branches.{index}.0", width, width) | linear(f"reg_branches.{index}.2", width, width)
        head |= linear(f"reg_branches.{index}.4", 4, width)
    head |= {"label_embedding.weight": (num_labels, width)}
    return {f"bbox_head.{name}": shape for name, shape in head.items()}


def dino(config, num_labels, width=256, **head):
    neck = channel_mapper("neck.", config.hidden_sizes[1:], width)
    return {**backbone(config), **neck, **dino_head(num_labels, width, **head)}


def cb_dino(config, num_labels, width=256, **head):
    neck = channel_mapper("neck.0.", config.hidden_sizes[1:], width)
    return {**composite(config), **neck, **dino_head(num_labels, width, **head)}


def fpn(config, width):
    """The feature pyramid and the proposal network; with a FlashInternImage, the pyramid has norms."""
    tensors = {}
    normed = config.model_type == "flash_internimage"
    for level, into in enumerate(config.hidden_sizes):
        for name, channels, kernel in (("lateral_convs", into, 1), ("fpn_convs", width, 3)):
            layer = f"neck.{name}.{level}"
            tensors |= (
                conv_norm(layer, width, channels, kernel, "ln")
                if normed
                else conv(f"{layer}.conv", width, channels, kernel)
            )
    tensors |= conv("rpn_head.rpn_conv", width, width, 3)
    return tensors | conv("rpn_head.rpn_cls", 3, width) | conv("rpn_head.rpn_reg", 12, width)


def mask_head(prefix, num_labels, width):
    head = {}
    for index in range(4):
        head |= conv(f"{prefix}.convs.{index}.conv", width, width, 3)
    return head | conv(f"{prefix}.upsample", width, width, 2) | conv(f"{prefix}.conv_logits", num_labels, width)


def mask_rcnn(config, num_labels, width=256, hidden=1024):
    box = "roi_head.bbox_head"
    head = linear(f"{box}.shared_fcs.0", hidden, width * 49) | linear(f"{box}.shared_fcs.1", hidden, hidden)
    head |= linear(f"{box}.fc_cls", num_labels + 1, hidden) | linear(f"{box}.fc_reg", 4 * num_labels, hidden)
    return {**backbone(config), **fpn(config, width), **head, **mask_head("roi_head.mask_head", num_labels, width)}


def cascade_rcnn(config, num_labels, width=256, hidden=1024):
    head = {}
    for stage in range(3):
        box = f"roi_head.bbox_head.{stage}"
        for index in range(4):
            head |= conv_norm(f"{box}.shared_convs.{index}", width, width, 3)
        head |= linear(f"{box}.shared_fcs.0", hidden, width * 49)
        head |= linear(f"{box}.fc_cls", num_labels + 1, hidden) | linear(f"{box}.fc_reg", 4 * num_labels, hidden)
        head |= mask_head(f"roi_head.mask_head.{stage}", num_labels, width)
    return {**backbone(config), **fpn(config, width), **head}


def backbone_config(checkpoint):
    """Return the backbone of a row of the table, with layer scale if upstream's configuration sets it to 1."""
    scale = None if checkpoint.size in ("h", "g") else 1.0
    return InternImageConfig.from_size(checkpoint.size, layer_scale=scale, use_clip_projector=False)


def released_shapes(checkpoint):
    """Return {upstream's name: shape} of a row of the table."""
    config, labels = backbone_config(checkpoint), checkpoint.num_labels
    if checkpoint.system == "mask2former":
        if checkpoint.dataset.startswith(("ADE20K", "COCO-Stuff")):
            return mask2former(config, labels, 1024, 32, 4096, 4096, 200)
        return mask2former(config, labels, 256, 8, 1024, 2048, 100)
    return globals()[checkpoint.system](config, labels)


def count_parameters(shapes):
    """Return the number of trained values: all except the statistics of batch norms."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(statistics))


def state_dict(shapes, dtype=torch.float32, expanded=False):
    """Return tensors of these shapes with small random values, or with `expanded` views of one number."""
    generator = torch.Generator().manual_seed(0)
    result = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            result[name] = torch.tensor(7)
        elif expanded:
            result[name] = torch.full((), 0.5, dtype=dtype).expand(shape)
        else:
            result[name] = torch.empty(shape, dtype=dtype).uniform_(-0.05, 0.05, generator=generator)
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write a file like a released checkpoint, with random values.")
    parser.add_argument("name", help=f"one of {', '.join(row.name for row in SYSTEM_CHECKPOINTS)}")
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = parser.parse_args(argv)
    checkpoint = find_checkpoint(args.name)
    if checkpoint is None:
        parser.error(f"{args.name} is no published checkpoint")
    shapes = released_shapes(checkpoint)
    weights = state_dict(shapes, getattr(torch, args.dtype))
    classes = tuple(f"class {index}" for index in range(checkpoint.real_labels or checkpoint.num_labels))
    meta = {"mmcv_version": "1.5.0", "CLASSES": classes, "PALETTE": None, "config": "model = dict()"}
    torch.save({"meta": meta, "state_dict": weights}, args.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
