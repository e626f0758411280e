# SPDX-License-Identifier: MIT
"""Mask R-CNN and Cascade Mask R-CNN with an InternImage backbone, as a model of transformers."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration_internimage import InternImageConfig
from ..configuration_internimage_mask_rcnn import InternImageMaskRCNNConfig
from ..loading_report import LoadingReportMixin
from ..modeling_flash_internimage import FlashInternImageBackbone
from ..modeling_internimage import InternImageBackbone, InternImagePreTrainedModel
from ..precision import at_least_float32
from .proposals import STRIDES, ProposalNetwork
from .roi_heads import MASK_SIZE, Detections, RegionHeads

_BACKBONES = {"internimage": InternImageBackbone, "flash_internimage": FlashInternImageBackbone}
Targets = list[dict[str, torch.Tensor]]
# Initialisations of weights by the name that a layer has as its attribute `initialization`.
_INITIALIZATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "kaiming": partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "xavier": init.xavier_uniform_,
    "normal_0.01": partial(init.normal_, std=0.01),
    "normal_0.001": partial(init.normal_, std=0.001),
}


@dataclass
class InternImageMaskRCNNOutput(ModelOutput):
    """Detections in a batch of images, at most `max_detections` (Q) per image, best first, in the format of DETR.

    Args:
        loss: sum of all losses, if labels were given.
        loss_dict: the losses.
        logits: (N, Q, num_labels); the score of a detection is the sigmoid of its class. -inf for all other classes,
            and where there are fewer than Q detections. None in training.
        pred_boxes: (N, Q, 4) centre x, y, width, height, relative to the image without its padding. None in training.
        box_masks: (N, Q, 28, 28) probability of belonging to the object, over the box. None in training.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    box_masks: torch.Tensor | None = None


class InternImageMaskRCNNForInstanceSegmentation(LoadingReportMixin, PreTrainedModel):
    """Boxes, classes and masks of objects: InternImage, feature pyramid, proposals, heads in one or several stages.

    Source: https://arxiv.org/abs/1703.06870, https://arxiv.org/abs/1712.00726; OpenGVLab/InternImage@31c962d,
    detection/configs/coco, on mmdet 2.28.
    """

    config: InternImageMaskRCNNConfig
    config_class = InternImageMaskRCNNConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = [*InternImagePreTrainedModel._no_split_modules, "FlashInternImageLayer"]
    _classifier_modules = ("roi_heads.box_heads.classifier",)

    def __init__(self, config: InternImageMaskRCNNConfig) -> None:
        config.check_architecture()  # a field may have been set since the configuration was made
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        backbone_config = cast(InternImageConfig, config.backbone_config)
        self.backbone = _BACKBONES[backbone_config.model_type](backbone_config)
        norm_layer = LayerNorm2d if config.fpn_norm == "layer_norm" else None
        self.fpn = FeaturePyramidNetwork(
            self.backbone.channels, config.fpn_channels, LastLevelMaxPool(), norm_layer=norm_layer
        )
        self.rpn = ProposalNetwork(config)
        self.roi_heads = RegionHeads(config)
        # transformers calls `_init_weights` of custom models only with modules that have parameters of their own, so
        # the layers themselves carry the name of their initialisation.
        initializations = [(self.fpn, "xavier"), (self.rpn.head, "normal_0.01")]
        for head in self.roi_heads.box_heads:
            initializations += [(head.classifier, "normal_0.01"), (head.regressor, "normal_0.001")]
        for part, initialization in initializations:
            for layer in part.modules():
                layer.initialization = initialization
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as mmdet does; the backbone has its own initialisation."""
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            default = "xavier" if isinstance(module, nn.Linear) else "kaiming"
            _INITIALIZATIONS[getattr(module, "initialization", default)](module.weight)
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            init.ones_(module.weight)
            for name, buffer in module.named_buffers():
                init.constant_(buffer, float(name == "running_var"))
        if isinstance(bias := getattr(module, "bias", None), torch.Tensor):
            init.zeros_(bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def pyramid(self, pixel_values: torch.Tensor) -> "OrderedDict[str, torch.Tensor]":
        """Return the feature pyramid: five levels (N, fpn_channels, H, W) with strides 4 to 64, finest first."""
        maps = self.backbone(pixel_values, return_dict=True).feature_maps
        return self.fpn(OrderedDict((str(stride), level) for stride, level in zip(STRIDES[:-1], maps, strict=True)))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: Targets | None = None,
        **kwargs: Any,
    ) -> InternImageMaskRCNNOutput:
        """Detect objects in a batch of images, and compute the loss if labels are given.

        Args:
            pixel_values: normalised images (N, 3, H, W), padded on the right and at the bottom with zeros; the released
                models were made with sides that are multiples of 32.
            pixel_mask: (N, H, W), 1 on the image and 0 on its padding; no padding if None.
            labels: one dict per image with `class_labels` (n,), 0 to num_labels - 1, `boxes` (n, 4) centre x, y, width,
                height, relative to the image without its padding, and, in all or none of them, `masks` (n, h, w) in
                pixels of the input, at most as large. Without masks the mask heads are not trained.
            return_dict: False for a tuple.

        Returns:
            `loss` and `loss_dict` (if labels are given); `logits`, `pred_boxes` and `box_masks` in evaluation mode,
            for an image processor's `post_process_object_detection`, or, with masks, for
            `hf_internimage.models.mask_rcnn.post_process_instance_segmentation`.

        Raises:
            ValueError: for labels that do not fit, or training mode without labels.
        """
        if self.training and labels is None:
            raise ValueError("labels is None: training needs them; call eval() on the model to detect objects.")
        sizes = _image_sizes(pixel_values, pixel_mask)
        targets = None if labels is None else self._targets(labels, sizes, pixel_values)
        features = self.pyramid(pixel_values)
        proposals, losses = self.rpn(ImageList(pixel_values, sizes), features, targets)
        levels = list(features.values())[:-1]  # the coarsest is for proposals only
        output = InternImageMaskRCNNOutput()
        if targets is not None:
            losses.update(self.roi_heads.losses(levels, proposals, targets, sizes))
            output.loss, output.loss_dict = torch.stack(list(losses.values())).sum(), losses
        if not self.training:
            detections = self.roi_heads.predict(levels, proposals, sizes)
            masks = self.roi_heads.predict_masks(levels, detections)
            output.logits, output.pred_boxes, output.box_masks = self._gather(detections, masks, sizes)
        return output

    def _gather(
        self, detections: Sequence[Detections], masks: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pad the detections of each image to the same number: logits, relative boxes and masks, see the output."""
        batch, most = len(detections), self.config.max_detections
        logits = masks[0].new_full((batch, most, self.num_labels), -torch.inf)
        boxes = masks[0].new_zeros(batch, most, 4)
        box_masks = masks[0].new_zeros(batch, most, MASK_SIZE, MASK_SIZE)
        for index, (detected, mask, (height, width)) in enumerate(zip(detections, masks, sizes, strict=True)):
            count = len(detected.labels)
            logits[index, torch.arange(count, device=logits.device), detected.labels] = detected.scores.logit()
            relative = detected.boxes / detected.boxes.new_tensor([width, height, width, height])
            boxes[index, :count] = box_convert(relative, "xyxy", "cxcywh")
            box_masks[index, :count] = mask
        return logits, boxes, box_masks

    def _targets(self, labels: Targets, sizes: Sequence[tuple[int, int]], pixels: torch.Tensor) -> Targets:
        """Return the labels with boxes xyxy in pixels.

        Raises: ValueError for labels that do not fit the images, the classes or each other.
        """
        if len(labels) != len(sizes):
            raise ValueError(f"labels has {len(labels)} entries for {len(sizes)} images, expected one per image.")
        with_masks = ["masks" in label for label in labels]
        if any(with_masks) and not all(with_masks):
            raise ValueError(f"Only {sum(with_masks)} of {len(labels)} labels have masks; give them for all or none.")
        targets, exact = [], at_least_float32(pixels.new_empty(0))
        for index, (label, (height, width)) in enumerate(zip(labels, sizes, strict=True)):
            classes, relative = label["class_labels"].to(pixels.device), label["boxes"].reshape(-1, 4)
            if len(classes) != len(relative) or ("masks" in label and len(label["masks"]) != len(classes)):
                raise ValueError(
                    f"labels[{index}] has {len(classes)} class_labels, {len(relative)} boxes and "
                    f"{len(label.get('masks', classes))} masks, expected one of each per object."
                )
            if len(classes) and (int(classes.min()) < 0 or int(classes.max()) >= self.num_labels):
                raise ValueError(
                    f"labels[{index}] has classes {int(classes.min())} to {int(classes.max())}, but the model has 0 to "
                    f"{self.num_labels - 1}."
                )
            if not bool((relative[:, 2:] > 0).all()):
                raise ValueError(f"labels[{index}] has a box of no width or height; leave it out.")
            corners = box_convert(relative.to(exact), "cxcywh", "xyxy")
            target = {"class_labels": classes, "boxes": corners * exact.new_tensor([width, height, width, height])}
            if "masks" in label:
                masks = label["masks"].to(pixels.device)
                if masks.shape[1] > pixels.shape[2] or masks.shape[2] > pixels.shape[3]:
                    raise ValueError(
                        f"labels[{index}] has masks of size {tuple(masks.shape[1:])}, larger than the input of size "
                        f"{tuple(pixels.shape[2:])}; resize them with the image."
                    )
                target["masks"] = masks
            targets.append(target)
        return targets


def _image_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> list[tuple[int, int]]:
    """Return (height, width) of each image without its padding."""
    if pixel_mask is None:
        return [(pixel_values.shape[2], pixel_values.shape[3])] * len(pixel_values)
    heights, widths = pixel_mask.bool().any(2).sum(1), pixel_mask.bool().any(1).sum(1)
    return list(zip(heights.tolist(), widths.tolist(), strict=True))


__all__ = ["InternImageMaskRCNNForInstanceSegmentation", "InternImageMaskRCNNOutput"]
