# SPDX-License-Identifier: MIT
"""Anchors, box coding and the region proposal network of mmdet, derived from those of torchvision."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import rpn
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder
from torchvision.models.detection.image_list import ImageList

from ..configuration_internimage_mask_rcnn import InternImageMaskRCNNConfig
from ..precision import at_least_float32

STRIDES = (4, 8, 16, 32, 64)
_ANCHOR_SCALE = 8.0
_ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width
_MAX_LOG_RATIO = math.log(1000 / 16)


class BoxCoder(TorchvisionBoxCoder):
    """Encode boxes xyxy as (dx, dy, dw, dh) relative to other boxes, in units of `stds`, and decode them.

    Sides grow or shrink by a factor of at most 1000/16; torchvision limits growth only.

    Source: `DeltaXYWHBBoxCoder` of mmdet 2.28.
    """

    def __init__(self, stds: Sequence[float]) -> None:
        super().__init__((1 / stds[0], 1 / stds[1], 1 / stds[2], 1 / stds[3]), _MAX_LOG_RATIO)

    def decode_single(self, rel_codes: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode rel_codes (K, C*4) relative to boxes (K, 4) -> boxes (K, C*4)."""
        least = rel_codes.new_tensor([-math.inf, -math.inf, *(-_MAX_LOG_RATIO * weight for weight in self.weights[2:])])
        codes = rel_codes.unflatten(1, (-1, 4)).clamp(min=least).flatten(1)
        return super().decode_single(codes, boxes)


class AnchorGrid(nn.Module):
    """Anchors of sides 8 times the stride and aspect ratios 1/2, 1, 2, centred on the first pixel of each stride.

    torchvision's generator differs: it rounds corners to pixels and computes the stride as image size / map size.

    Source: `AnchorGenerator` of mmdet 2.28.
    """

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return anchors (A, 4) xyxy in pixels, the same for each image, ordered by level, y, x, aspect ratio."""
        levels = []
        for stride, feature in zip(STRIDES, feature_maps, strict=True):
            exact = at_least_float32(feature.new_empty(0))
            roots = exact.new_tensor(_ASPECT_RATIOS).sqrt()
            heights, widths = stride * _ANCHOR_SCALE * roots, stride * _ANCHOR_SCALE / roots
            base = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
            rows, columns = (torch.arange(size).to(exact) * stride for size in feature.shape[-2:])
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            levels.append((shifts + base).reshape(-1, 4))
        return [torch.cat(levels)] * len(image_list.image_sizes)


class ProposalNetwork(rpn.RegionProposalNetwork):
    """torchvision's region proposal network with the original's anchors, box limits and loss.

    Source: `RPNHead` of mmdet 2.28 and its settings in OpenGVLab/InternImage@31c962d, detection/configs/_base_.
    """

    def __init__(self, config: InternImageMaskRCNNConfig) -> None:
        super().__init__(
            anchor_generator=AnchorGrid(),
            head=rpn.RPNHead(config.fpn_channels, len(_ASPECT_RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": config.rpn_train_proposals, "testing": config.rpn_test_proposals},
            nms_thresh=config.rpn_nms_threshold,
        )
        self.box_coder = BoxCoder((1, 1, 1, 1))
        self.min_size = torch.finfo(torch.float32).tiny  # any box with an area
        self.smooth_l1_beta = config.rpn_smooth_l1_beta

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        targets: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Return proposals (P, 4) xyxy of each image, best first, and the losses if `targets` (with `boxes`) are given.

        Unlike in torchvision, losses depend on `targets` only and not on the mode, so that evaluation can have both.
        """
        maps = list(features.values())
        level_logits, level_deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        counts = [level[0].numel() for level in level_logits]
        logits, deltas = map(at_least_float32, rpn.concat_box_prediction_layers(level_logits, level_deltas))
        boxes = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        proposals, _ = self.filter_proposals(boxes, logits, images.image_sizes, counts)
        if targets is None:
            return proposals, {}
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        objectness, regression = self.compute_loss(logits, deltas, labels, self.box_coder.encode(matched, anchors))
        return proposals, {"loss_rpn_objectness": objectness, "loss_rpn_boxes": regression}

    def compute_loss(
        self,
        objectness: torch.Tensor,
        pred_bbox_deltas: torch.Tensor,
        labels: list[torch.Tensor],
        regression_targets: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return binary cross entropy and smooth L1 loss of a random sample of anchors, both per sampled anchor."""
        positive, negative = (torch.cat(chosen).nonzero().squeeze(1) for chosen in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        box_loss = F.smooth_l1_loss(
            pred_bbox_deltas[positive],
            torch.cat(regression_targets)[positive],
            beta=self.smooth_l1_beta,
            reduction="sum",
        )
        logits = objectness.flatten()[sampled]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(labels)[sampled].to(logits.dtype)), (
            box_loss / max(len(sampled), 1)
        )


__all__ = ["STRIDES", "AnchorGrid", "BoxCoder", "ProposalNetwork"]
