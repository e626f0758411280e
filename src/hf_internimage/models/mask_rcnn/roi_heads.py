# SPDX-License-Identifier: MIT
"""Box and mask heads on regions of interest, in one stage (Mask R-CNN) or several (Cascade Mask R-CNN)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, generalized_box_iou_loss, roi_align

from ..configuration_internimage_mask_rcnn import InternImageMaskRCNNConfig
from ..precision import at_least_float32
from .proposals import STRIDES, BoxCoder

_BOX_POOL, _MASK_POOL, MASK_SIZE = 7, 14, 28
_MASK_CONVS = 4
_FINEST_SCALE = 56  # regions of sides up to twice this go to the finest level


@dataclass(frozen=True)
class Detections:
    """Detections in one image, best first: boxes (K, 4) xyxy in pixels of the input, scores and labels (K,)."""

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class _Sample:
    """Sampled boxes of one image to train a stage, with the index of their object (-1: background)."""

    boxes: torch.Tensor
    objects: torch.Tensor
    labels: torch.Tensor
    is_target: torch.Tensor  # True for an annotated box that was added to the proposals


def _regions(boxes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate the boxes of all images as (K, 5): index of the image, xyxy."""
    return torch.cat([F.pad(per_image, (1, 0), value=index) for index, per_image in enumerate(boxes)])


def pool_regions(features: Sequence[torch.Tensor], regions: torch.Tensor, size: int) -> torch.Tensor:
    """Pool the features of each region by RoIAlign, at the pyramid level for its area.

    Samples are as dense as the feature map (`sampling_ratio=0`) and aligned with pixel centres.

    Shapes: features, finest first, (N, C, H, W) each with strides 4, 8, 16, 32; regions (K, 5), index of the image and
    xyxy in pixels of the input -> (K, C, size, size).
    Source: `SingleRoIExtractor` of mmdet 2.28.
    """
    sides = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
    levels = (sides / _FINEST_SCALE + 1e-6).log2().floor().clamp(0, len(features) - 1)
    pooled = features[0].new_zeros(len(regions), features[0].shape[1], size, size)
    for level, (stride, feature) in enumerate(zip(STRIDES[:-1], features, strict=True)):
        chosen = (levels == level).nonzero().squeeze(1)
        exact = at_least_float32(feature)  # the operator has no bfloat16
        part = roi_align(exact, regions[chosen].to(exact.dtype), size, 1 / stride, sampling_ratio=0, aligned=True)
        pooled[chosen] = part.to(pooled.dtype)
    return pooled


class BoxHead(nn.Module):
    """Class logits, background last, and box codes of each class, without background, for pooled regions."""

    def __init__(self, config: InternImageMaskRCNNConfig) -> None:
        super().__init__()
        self.layers = FastRCNNConvFCHead(
            (config.fpn_channels, _BOX_POOL, _BOX_POOL),
            [config.fpn_channels] * config.box_head_convs,
            [config.box_head_size] * config.box_head_linears,
            norm_layer=nn.BatchNorm2d,
        )
        num_labels = cast(int, config.num_labels)
        self.classifier = nn.Linear(config.box_head_size, num_labels + 1)
        self.regressor = nn.Linear(config.box_head_size, num_labels * 4)

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (K, num_labels + 1) and codes (K, num_labels * 4) for regions (K, C, 7, 7)."""
        hidden = self.layers(pooled)
        return at_least_float32(self.classifier(hidden)), at_least_float32(self.regressor(hidden))


class MaskHead(nn.Module):
    """Mask logits of each class for pooled regions."""

    def __init__(self, config: InternImageMaskRCNNConfig) -> None:
        super().__init__()
        self.layers = MaskRCNNHeads(config.fpn_channels, [config.fpn_channels] * _MASK_CONVS, dilation=1)
        self.predictor = MaskRCNNPredictor(config.fpn_channels, config.fpn_channels, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return mask logits (K, num_labels, 28, 28) for regions (K, C, 14, 14)."""
        return at_least_float32(self.predictor(self.layers(pooled)))


class RegionHeads(nn.Module):
    """Box and mask heads of all stages: each stage classifies and refines the boxes of the previous one.

    Source: `StandardRoIHead` and `CascadeRoIHead` of mmdet 2.28, and their settings in OpenGVLab/InternImage@31c962d,
    detection/configs/coco.
    """

    def __init__(self, config: InternImageMaskRCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.background = cast(int, config.num_labels)  # the class after all others
        self.box_heads = nn.ModuleList(BoxHead(config) for _ in range(config.num_stages))
        self.mask_heads = nn.ModuleList(MaskHead(config) for _ in range(config.num_stages))
        self.coders = [BoxCoder(stds) for stds in config.stage_box_stds]
        self.sampler = BalancedPositiveNegativeSampler(batch_size_per_image=512, positive_fraction=0.25)

    def _decode(
        self, stage: int, codes: torch.Tensor, boxes: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """Decode boxes for each class and clip them to the image: (K, num_labels, 4)."""
        moved = self.coders[stage].decode_single(codes, torch.cat(list(boxes))).unflatten(1, (-1, 4))
        parts = moved.split([len(per_image) for per_image in boxes])
        return torch.cat([clip_boxes_to_image(part, size) for part, size in zip(parts, sizes, strict=True)])

    def predict(
        self,
        features: Sequence[torch.Tensor],
        proposals: Sequence[torch.Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Return the detections of each image.

        Logits are means over the stages, boxes are those of the last stage, and NMS is per class.

        Args:
            features: levels of the pyramid, finest first, (N, C, H, W) each.
            proposals: boxes (P, 4) of each image.
            sizes: (height, width) of each image without its padding.
        """
        counts = [len(per_image) for per_image in proposals]
        boxes, last = list(proposals), self.config.num_stages - 1
        all_logits = []
        for stage, head in enumerate(self.box_heads):
            logits, codes = head(pool_regions(features, _regions(boxes), _BOX_POOL))
            all_logits.append(logits)
            moved = self._decode(stage, codes, boxes, sizes)
            if stage < last:
                boxes = list(_of_class(moved, logits[:, :-1].argmax(1)).split(counts))
        scores = torch.stack(all_logits).mean(0).softmax(1)[:, :-1]
        return [self._select(*pair) for pair in zip(moved.split(counts), scores.split(counts), strict=True)]

    def _select(self, boxes: torch.Tensor, scores: torch.Tensor) -> Detections:
        """Select detections from boxes (P, num_labels, 4) and scores (P, num_labels), by threshold and NMS."""
        index, labels = (scores > self.config.score_threshold).nonzero(as_tuple=True)
        boxes, scores = boxes[index, labels], scores[index, labels]
        keep = batched_nms(boxes, scores, labels, self.config.nms_threshold)[: self.config.max_detections]
        return Detections(boxes[keep], scores[keep], labels[keep])

    def predict_masks(self, features: Sequence[torch.Tensor], detections: Sequence[Detections]) -> list[torch.Tensor]:
        """Return mask probabilities (K, 28, 28) in the box of each detection, for its class: mean over the stages."""
        pooled = pool_regions(features, _regions([image.boxes for image in detections]), _MASK_POOL)
        labels = torch.cat([image.labels for image in detections])
        masks = [_of_class(head(pooled), labels).sigmoid() for head in self.mask_heads]
        return list(torch.stack(masks).mean(0).split([len(image.labels) for image in detections]))

    def losses(
        self,
        features: Sequence[torch.Tensor],
        proposals: Sequence[torch.Tensor],
        targets: Sequence[dict[str, torch.Tensor]],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, torch.Tensor]:
        """Return the losses of each stage.

        Arguments are those of `predict`, and targets per image: `boxes` (n, 4) xyxy in pixels, `class_labels` (n,)
        and, for a mask loss, `masks` (n, h, w) of the input.
        """
        losses: dict[str, torch.Tensor] = {}
        for stage, (box_head, mask_head) in enumerate(zip(self.box_heads, self.mask_heads, strict=True)):
            samples = [self._sample(stage, *pair) for pair in zip(proposals, targets, strict=True)]
            boxes = [sample.boxes for sample in samples]
            labels = torch.cat([sample.labels for sample in samples])
            logits, codes = box_head(pool_regions(features, _regions(boxes), _BOX_POOL))
            parts = {
                "classes": F.cross_entropy(logits, labels),
                "boxes": self._box_loss(stage, codes, samples, targets),
            }
            if "masks" in targets[0]:
                parts["masks"] = self._mask_loss(mask_head, features, samples, targets)
            for name, loss in parts.items():
                losses[f"loss_{name}_{stage + 1}"] = loss * self.config.stage_loss_weights[stage]
            with torch.no_grad():  # boxes for the next stage: of the true class, for background of the likeliest one
                classes = torch.where(labels == self.background, logits[:, :-1].argmax(1), labels)
                moved = _of_class(self._decode(stage, codes, boxes, sizes), classes)
                split = moved.split([len(per_image) for per_image in boxes])
                proposals = [part[~sample.is_target] for part, sample in zip(split, samples, strict=True)]
        return losses

    @torch.no_grad()
    def _sample(self, stage: int, proposals: torch.Tensor, target: dict[str, torch.Tensor]) -> _Sample:
        """Sample 512 boxes, up to a quarter of them objects, from the proposals and the annotated boxes."""
        objects, threshold = target["boxes"].to(proposals.dtype), self.config.stage_iou_thresholds[stage]
        boxes = torch.cat([objects, proposals])
        matched = boxes.new_full((len(boxes),), -1, dtype=torch.int64)
        if len(objects):
            matched = Matcher(threshold, threshold)(box_iou(objects, boxes))
        (positive,), (negative,) = self.sampler([(matched >= 0).long()])
        chosen = (positive | negative).nonzero().squeeze(1)
        matched = matched[chosen]
        labels = torch.full_like(matched, self.background)
        labels[matched >= 0] = target["class_labels"][matched[matched >= 0]]
        return _Sample(boxes[chosen], matched, labels, chosen < len(objects))

    def _box_loss(
        self,
        stage: int,
        codes: torch.Tensor,
        samples: Sequence[_Sample],
        targets: Sequence[dict[str, torch.Tensor]],
    ) -> torch.Tensor:
        """Return the loss of the boxes that belong to an object, per sampled box."""
        objects = torch.cat([sample.objects for sample in samples])
        positive = objects >= 0
        boxes = torch.cat([sample.boxes for sample in samples])[positive]
        labels = torch.cat([sample.labels for sample in samples])[positive]
        pairs = zip(samples, targets, strict=True)
        target_boxes = torch.cat([target["boxes"][sample.objects[sample.objects >= 0]] for sample, target in pairs])
        target_boxes = target_boxes.to(codes.dtype)
        coder = self.coders[stage]
        if self.config.box_loss == "giou":
            moved = coder.decode_single(codes[positive], boxes).unflatten(1, (-1, 4))
            loss = generalized_box_iou_loss(_of_class(moved, labels), target_boxes, reduction="sum")
        else:
            predicted = _of_class(codes[positive].unflatten(1, (-1, 4)), labels)
            loss = F.l1_loss(predicted, coder.encode_single(target_boxes, boxes), reduction="sum")
        return self.config.box_loss_weight * loss / max(len(objects), 1)

    def _mask_loss(
        self,
        head: nn.Module,
        features: Sequence[torch.Tensor],
        samples: Sequence[_Sample],
        targets: Sequence[dict[str, torch.Tensor]],
    ) -> torch.Tensor:
        """Return the binary cross entropy of masks of boxes that belong to an object, mean over all positions."""
        boxes = [sample.boxes[sample.objects >= 0] for sample in samples]
        logits = head(pool_regions(features, _regions(boxes), _MASK_POOL))
        labels = torch.cat([sample.labels[sample.objects >= 0] for sample in samples])
        target_masks = torch.cat(
            [
                crop_masks(target["masks"], sample.objects[sample.objects >= 0], per_image)
                for sample, target, per_image in zip(samples, targets, boxes, strict=True)
            ]
        )
        total = F.binary_cross_entropy_with_logits(
            _of_class(logits, labels), target_masks.to(logits.dtype), reduction="sum"
        )
        return total / max(target_masks.numel(), 1)


def crop_masks(masks: torch.Tensor, objects: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Crop the mask of each box's object to the box, resample it to 28 x 28 and round to 0 or 1.

    Shapes: masks (n, h, w), objects (K,) indices of masks, boxes (K, 4) xyxy in pixels of the masks -> (K, 28, 28).
    Source: `BitmapMasks.crop_and_resize` of mmdet 2.28.
    """
    if not len(objects):
        return boxes.new_zeros(0, MASK_SIZE, MASK_SIZE)
    regions = torch.cat([objects[:, None].to(boxes.dtype), boxes], dim=1)
    shown = roi_align(masks[:, None].to(boxes.dtype), regions, MASK_SIZE, 1.0, sampling_ratio=0, aligned=True)
    return (shown.squeeze(1) >= 0.5).to(boxes.dtype)


def _of_class(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Select values (K, num_labels, ...) at the label of each row: (K, ...)."""
    return values[torch.arange(len(labels), device=labels.device), labels]


__all__ = ["MASK_SIZE", "BoxHead", "Detections", "MaskHead", "RegionHeads", "crop_masks", "pool_regions"]
