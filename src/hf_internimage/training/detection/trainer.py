# SPDX-License-Identifier: MIT
"""Training and evaluation of detectors with Trainer: batches of images of any size, detections in place of outputs."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ...models.resizing import multiple_size
from ..system_trainer import DenseTrainer
from .coco_map import stack_detections


@dataclass(frozen=True)
class Collate:
    """Examples of `detection_data.ReadObjects` -> a batch.

    `pixel_values` (N, 3, H, W), images padded with 0 to the right and below to the largest, rounded up to a multiple of
    `size_divisor`; `pixel_mask` (N, H, W) int64, 1 on the image; `labels`, a list of dicts.
    """

    size_divisor: int = 32

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        images = [example["pixel_values"] for example in examples]
        sides = [max(image.shape[axis] for image in images) for axis in (1, 2)]
        height, width = multiple_size(sides[0], sides[1], self.size_divisor)
        pads = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
        masks = [torch.ones(image.shape[1:], dtype=torch.int64) for image in images]
        return {
            "pixel_values": torch.stack([F.pad(image, pad) for image, pad in zip(images, pads, strict=True)]),
            "pixel_mask": torch.stack([F.pad(mask, pad) for mask, pad in zip(masks, pads, strict=True)]),
            "labels": [example["labels"] for example in examples],
        }


class DetectionTrainer(DenseTrainer):
    """Trains detectors by the original's recipes: any model of transformers for object detection.

    In evaluation the image processor turns a model's outputs into detections, in pixels of the images as they are in
    their files. The predictions are these, in the form of `coco_map.stack_detections`, and `label_ids` are the images'
    `image_id`: tensors that several processes can gather. `compute_metrics` has to be a `CocoMap`.

    Args:
        Everything is DenseTrainer's.

    Raises:
        ValueError: for several GPUs in one process.
    """

    def __init__(self, model: PreTrainedModel | nn.Module, args: TrainingArguments, **kwargs: Any) -> None:
        # RT-DETR and its descendants have no use for this embedding in a batch without an object: without this, DDP
        # fails at the next one.
        if any("denoising_class_embed" in name for name, _ in model.named_parameters()):
            args.ddp_find_unused_parameters = True
        super().__init__(model=model, args=args, **kwargs)
        self.refuse_data_parallel()

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            with self.compute_loss_context_manager():
                outputs = model(**inputs)
            loss = outputs.loss.detach().mean()
            if prediction_loss_only:
                return loss, None, None
            processor: Any = self.processing_class
            sizes = torch.stack([label["orig_size"] for label in inputs["labels"]])
            found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
            image_ids = torch.cat([label["image_id"] for label in inputs["labels"]])
        return loss, stack_detections(found), image_ids


__all__ = ["Collate", "DetectionTrainer"]
