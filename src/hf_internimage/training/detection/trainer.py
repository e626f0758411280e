# SPDX-License-Identifier: MIT
"""Train and evaluate detectors with Trainer, with detections in place of the model's outputs."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ..system_trainer import SystemTrainer
from .coco_map import stack_detections


class DetectionTrainer(SystemTrainer):
    """Train detectors by the original's recipes: any model of transformers for object detection.

    In evaluation the image processor turns a model's outputs into detections, in pixels of the images as they are in
    their files. The predictions are these, in the form of `coco_map.stack_detections`, and `label_ids` are the images'
    `image_id`: tensors that several processes can gather. `compute_metrics` has to be a `CocoMap`.

    Args:
        Everything is SystemTrainer's.

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
            detections = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
            image_ids = torch.cat([label["image_id"] for label in inputs["labels"]])
        return loss, stack_detections(detections), image_ids


__all__ = ["DetectionTrainer"]
