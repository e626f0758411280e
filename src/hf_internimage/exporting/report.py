# SPDX-License-Identifier: MIT
"""What an export has written, and how it compares with the model."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """Results of the file beside those of the model, for one batch of random pixels, or one image.

    Attributes:
        shape: (N, C, H, W) of the pixels, or (H, W, 3) of the image.
        error: name of an output -> greatest absolute difference.
        relative_error: the same over the greatest absolute value of the model's output.
        cosine: name of an output -> least cosine of an image's tensor and the model's, for maps and queries after
            their mean is subtracted; of 8-bit files only.
        same_class: share of images with the model's greatest logit; of classifiers' 8-bit files only.
        same_queries: share of the file's queries that the model makes of the same positions; of detectors only that
            choose positions, such as DINO.
    """

    shape: tuple[int, ...]
    error: dict[str, float]
    relative_error: dict[str, float]
    cosine: dict[str, float] = field(default_factory=dict)
    same_class: float | None = None
    same_queries: float | None = None

    def __str__(self) -> str:
        parts = [
            f"{name} differs by {self.error[name]:.1e} (relative {self.relative_error[name]:.1e})"
            for name in self.error
        ]
        parts += [f"least cosine of {name} {value:.5f}" for name, value in self.cosine.items()]
        shares = {"same class": self.same_class, "queries of the same positions": self.same_queries}
        parts += [f"{name} {share:.1%}" for name, share in shares.items() if share is not None]
        return f"compared with the model on {'x'.join(map(str, self.shape))}: {', '.join(parts)}"


@dataclass(frozen=True)
class Accuracy:
    """How many of `images` labelled images a classifier gives the `right` class."""

    right: int
    images: int

    def __str__(self) -> str:
        return f"{self.right} of {self.images} ({self.right / max(self.images, 1):.2%})"


@dataclass(frozen=True)
class ExportReport:
    """An exported model.

    Attributes:
        model: name of the model's class.
        target: name of the target.
        precision: "float32", "half" or "int8".
        file: the file to load.
        megabytes: of all files of the model, 10^6 bytes.
        float_megabytes: of the same files in float32; of 8-bit files only.
        dynamic: whether batches and images may have any size; else they have `image_size`, and one image a batch.
        size_divisor: height and width are multiples of it.
        image_size: (height, width) in pixels of the export.
        with_processing: whether the file takes one image (H, W, 3) uint8, and returns the results of `predict`.
        tolerance: greatest relative error that was allowed, or least cosine of an 8-bit file.
        comparisons: one or more.
        accuracy: of the file on labelled images; None if there are none.
        eager_accuracy: of the model in PyTorch on the same.
        milliseconds: of one image of `image_size` in the file's runtime, the median.
        eager_milliseconds: of the model in PyTorch, in turns with the file.
        threads: that both used.
        details: more about the file, such as the number of nodes.
        notes: what the user should know.
    """

    model: str
    target: str
    precision: str
    file: Path
    megabytes: float
    float_megabytes: float | None
    dynamic: bool
    size_divisor: int
    image_size: tuple[int, int]
    with_processing: bool
    tolerance: float
    comparisons: tuple[Comparison, ...]
    accuracy: Accuracy | None
    eager_accuracy: Accuracy | None
    milliseconds: float
    eager_milliseconds: float
    threads: int
    details: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def relative_error(self) -> float:
        """Greatest relative error of all outputs and comparisons."""
        return max(error for comparison in self.comparisons for error in comparison.relative_error.values())

    def write_json(self, path: Path) -> None:
        """Write all of it to a file."""
        fields = {**asdict(self), "file": self.file.name}
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        height, width = self.image_size
        sizes = f"one image of {height}x{width}"
        if self.with_processing:
            sizes = "one image of any size, 8 bits"
        elif self.dynamic:
            multiples = f" of multiples of {self.size_divisor}" if self.size_divisor > 1 else ""
            sizes = f"any size{multiples} and batch"
        ratio = ""
        if self.float_megabytes is not None:
            ratio = f" ({self.megabytes / self.float_megabytes:.2f} of {self.float_megabytes:.1f} MB in float32)"
        details = ", ".join(f"{name} {value}" for name, value in self.details.items())
        lines = [
            f"{self.model} for {self.target} in {self.precision}: {self.file}, {self.megabytes:.1f} MB{ratio}, {sizes}",
            *([details] if details else []),
            *map(str, self.comparisons),
            *([f"right class: {self.accuracy}, PyTorch {self.eager_accuracy}"] if self.accuracy else []),
            f"one image of {height}x{width}: {self.milliseconds:.4g} ms, PyTorch {self.eager_milliseconds:.4g} ms "
            f"({self.threads} thread{'s' if self.threads != 1 else ''})",
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


__all__ = ["Comparison", "ExportReport"]
