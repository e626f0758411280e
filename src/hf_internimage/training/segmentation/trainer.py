# SPDX-License-Identifier: MIT
"""Train semantic segmentation with any head of transformers, scored by mean IoU in bounded memory."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import EvalPrediction
from transformers.utils import logging

from ...models.semantic_maps import label_map, semantic_scores
from ..metric_modules import load_metric_module
from ..system_trainer import SystemTrainer
from .augmentation import IGNORED_LABEL

logger = logging.get_logger(__name__)

MEAN_IOU = Path(__file__).with_name("mean_iou.py")


class SegmentationTrainer(SystemTrainer):
    """Train by the original's recipe on batches of `pixel_values` and `labels` (N, H, W), 255 being no class.

    Models that predict masks of queries (Mask2Former, MaskFormer) get masks made of the labels, one for each class in
    an image. Losses are the models' own.

    Evaluation within the training compares at the size that the image processor makes, with labels resized to it; the
    field's numbers are for the size of the images, see `evaluation.evaluate_and_report`.

    Args:
        Everything is SystemTrainer's. `compute_metrics` is `ComputeMeanIoU`, with `batch_eval_metrics`.

    Raises:
        ValueError: for several GPUs in one process, if masks of queries are predicted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.has_queries = "mask_labels" in inspect.signature(type(self.model).forward).parameters
        if self.has_queries:
            self.refuse_data_parallel()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self.has_queries:
            inputs = {"pixel_values": inputs["pixel_values"], **query_labels(inputs["labels"])}
        outputs = model(**inputs)
        loss = outputs.loss.mean()  # Mask2Former's is of shape (1,)
        if "labels" in inputs and (inputs["labels"] == IGNORED_LABEL).all():
            loss = torch.nan_to_num(loss)  # a mean over no pixel
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the loss, predicted classes (N, H, W) and labels (N, H, W); scores of all classes are not kept.

        Images of a batch that have one size go through the model together.
        """
        inputs: dict[str, Any] = self._prepare_inputs(inputs)  # type: ignore[no-redef]
        labels = inputs["labels"]
        classes, losses = torch.full_like(labels, IGNORED_LABEL), []
        for rows, height, width in self._images_of_one_size(inputs):
            part = {name: inputs[name][rows][..., :height, :width] for name in ("pixel_values", "labels")}
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, outputs = self.compute_loss(model, part, return_outputs=True)
            losses.append(loss.detach().float() * len(rows) / len(labels))
            if not prediction_loss_only:
                maps = [label_map(scores, [(height, width)]) for scores in semantic_scores(outputs)]
                classes[rows, :height, :width] = torch.stack(maps)
        loss = torch.stack(losses).sum()
        if prediction_loss_only:
            return loss, None, None
        for dimension in (1, 2):  # other processes may have images of another size; Trainer pads the first one only
            classes, labels = (
                self.accelerator.pad_across_processes(maps, dimension, pad_index=IGNORED_LABEL)
                for maps in (classes, labels)
            )
        return loss, classes, labels

    def _images_of_one_size(self, inputs: dict[str, torch.Tensor]) -> Iterator[tuple[list[int], int, int]]:
        """Yield the rows of a batch that have the same size, with their height and width.

        Processes that share one model have to call it equally often: there, each row comes by itself.
        """
        labels, sizes = inputs["labels"], inputs.get("sizes")
        if sizes is None:
            sizes = torch.tensor(labels.shape[1:]).expand(len(labels), 2)
        else:
            logger.warning_once("The images of the evaluation have several sizes: each size is evaluated by itself.")
        is_shared = self.is_fsdp_enabled or self.is_deepspeed_enabled
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, (height, width) in enumerate(sizes.tolist()):
            rows_of.setdefault((height, width, row if is_shared else 0), []).append(row)
        for (height, width, _), rows in rows_of.items():
            yield rows, height, width


def query_labels(labels: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Return what Mask2Former is trained with: the classes in each image (n,) and their masks (n, H, W).

    Shapes: labels (N, H, W) int64, 255 being no class -> N tensors `class_labels` int64 and `mask_labels` float32.
    """
    classes = [present[present != IGNORED_LABEL] for present in map(torch.unique, labels)]
    masks = [(image == present[:, None, None]).float() for image, present in zip(labels, classes, strict=True)]
    return {"class_labels": classes, "mask_labels": masks}


class ComputeMeanIoU:
    """Trainer's `compute_metrics` for `batch_eval_metrics`: adds batches up, then gives means over the classes.

    Args:
        num_labels: number of classes.
    """

    def __init__(self, num_labels: int) -> None:
        self.metric = load_metric_module(MEAN_IOU, num_labels=num_labels)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        classes, labels = (
            maps.cpu().numpy() if isinstance(maps, torch.Tensor) else maps
            for maps in (prediction.predictions, prediction.label_ids)
        )
        self.metric.add_batch(predictions=classes, references=labels)
        if not compute_result:
            return {}
        return {name: value for name, value in self.metric.compute().items() if isinstance(value, float)}


__all__ = ["ComputeMeanIoU", "SegmentationTrainer", "query_labels"]
