# SPDX-License-Identifier: MIT
"""Show in TensorBoard, after each evaluation of a training, where the model samples."""

from collections import defaultdict
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..visualize import draw_offset_statistics, draw_receptive_fields, effective_receptive_field, offset_statistics
from ..visualize.blocks import samples_points

_IMAGES = 4
_LONGEST_SIDE = 512  # of the part of an image that is shown, to bound time and memory
_FIELDS = ("spread", "movement", "outside", "dead_taps")


class SamplingCallback(TrainerCallback):
    """Write statistics of the offsets and receptive fields over four validation images, as scalars and pictures.

    The first process alone does this, with the weights that were evaluated. It is left out without TensorBoard, without
    DCNv3 in the model, for streams, and where each process holds a part of the weights (FSDP, DeepSpeed).
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        writer, model, data = self._writer(), cast(nn.Module, self.trainer.model), self.trainer.eval_dataset
        if (
            writer is None
            or self.trainer.is_fsdp_enabled
            or self.trainer.is_deepspeed_enabled
            or not samples_points(model)
            or data is None
            or isinstance(data, (IterableDataset, datasets.IterableDataset))
        ):
            return
        parameter = next(model.parameters())
        pixel_values = _images(data).to(parameter.device, parameter.dtype)
        blocks = offset_statistics(model, pixel_values)
        by_stage = defaultdict(list)
        for block in blocks:
            by_stage[block.stage].append(block)
        for stage, members in by_stage.items():
            for field in _FIELDS:
                mean = float(np.mean([getattr(block, field) for block in members]))
                writer.add_scalar(f"sampling_{field}/stage_{stage}", mean, state.global_step)
        fields = {
            f"stage {stage}": effective_receptive_field(model, pixel_values, stage=stage, mixtures=1)
            for stage in by_stage
        }
        for name, receptive_field in fields.items():
            radius = receptive_field.radius_of(0.5)
            writer.add_scalar(f"receptive_field_radius/{name.replace(' ', '_')}", radius, state.global_step)
        writer.add_figure("receptive fields", draw_receptive_fields(fields), state.global_step, close=False)
        writer.add_figure("offsets", draw_offset_statistics(blocks), state.global_step, close=False)
        writer.flush()

    def _writer(self) -> Any:
        """Return the open writer of TensorBoard's own callback; None if there is none in this process."""
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                return callback.tb_writer
        return None


def _images(data: Any) -> torch.Tensor:
    """Return the centre of the first image, and of those of the next ones that have its size: (N, 3, H, W)."""
    images = [_centre(torch.as_tensor(data[index]["pixel_values"])) for index in range(min(_IMAGES, len(data)))]
    return torch.stack([image for image in images if image.shape == images[0].shape])


def _centre(image: torch.Tensor) -> torch.Tensor:
    for axis in (1, 2):
        length = min(image.shape[axis], _LONGEST_SIDE)
        image = image.narrow(axis, (image.shape[axis] - length) // 2, length)
    return image


__all__ = ["SamplingCallback"]
