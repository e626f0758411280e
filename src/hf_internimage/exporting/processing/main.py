# SPDX-License-Identifier: MIT
"""The processing of one export: check, add to the file, compare."""

from pathlib import Path
from typing import Any

import torch

from ...models.image_processing_internimage import InternImageImageProcessor
from ...prediction.loading import load_processor
from ..proof import Run
from ..report import Comparison
from ..system import System
from .file import add_processing
from .images import supported
from .proof import ProcessedSystem, compare_images, random_image
from .results import check


class Processing:
    """Pre- and post-processing for the file of a model.

    Args:
        system: the model.
        processor: its image processor; None for that of the released classifiers, if it is one.

    Attributes:
        masked: whether the model's file must take `pixel_mask`.
        notes: what the user should know.

    Raises:
        ExportError: for an image processor, or a model, that files cannot have.
    """

    def __init__(self, system: System, processor: Any) -> None:
        if processor is None:
            processor = load_processor(system.model, system.model.name_or_path)
        self.processor = supported(processor)
        check(system.model, self.processor, system.num_channels)
        self.masked = bool(getattr(self.processor, "size_divisor", None) and getattr(self.processor, "do_pad", None))
        self.eager = ProcessedSystem(system, self.processor)
        self.notes: tuple[str, ...] = ()
        if isinstance(processor, InternImageImageProcessor):
            self.notes = ("the file resizes as Pillow; torchvision's pixels differ by a grey level at times",)
        self._names: tuple[str, ...] = ()

    def add(self, file: Path) -> None:
        """Add it to the model's file."""
        self._names = add_processing(file, self.eager.system, self.processor)

    def compare(self, run: Run, size: tuple[int, int], tolerance: float) -> tuple[Comparison, ...]:
        """Compare the file with Python on images of two sizes that nothing has seen, near the size of the export."""
        height, width = size
        images = [random_image(2 * height + 3, width - width // 8), random_image(height - height // 8, 2 * width + 1)]
        return compare_images(self.eager, run, self._names, images, tolerance)

    def example(self, size: tuple[int, int]) -> torch.Tensor:
        """Return an image (height, width, 3) uint8 to measure times with."""
        return random_image(*size)


__all__ = ["Processing"]
