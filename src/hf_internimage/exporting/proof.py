# SPDX-License-Identifier: MIT
"""Compare an exported file with its model, and measure both."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from .errors import ExportError
from .options import Options
from .report import Comparison
from .system import QUERY_POSITIONS, System, random_pixels

Run = Callable[[torch.Tensor], Sequence[torch.Tensor]]
_LEAST_EXAMPLE_SIDE = 192  # pixels; DINO's coarsest map is 64 times smaller
LEAST_COSINE = 0.99  # of 8-bit files
_ROUNDS, _MOST_SECONDS = 7, 5.0


def example_pixels(system: System, options: Options) -> torch.Tensor:
    """Return pixels for an exporter: one image, or for free sizes two that give no map a side of 1.

    Exporters take a 1 for a constant.
    """
    number, least = (2, _LEAST_EXAMPLE_SIDE) if options.dynamic else (1, 0)
    return random_pixels((number, system.num_channels, *(max(side, least) for side in options.image_size)))


@torch.no_grad()
def compare(
    system: System, run: Run, batches: Iterable[torch.Tensor], tolerance: float, *, by_cosine: bool = False
) -> tuple[Comparison, ...]:
    """Run the model and the file on batches of pixels (N, C, H, W).

    With `by_cosine`, the tolerance is the least cosine of each image's tensors and the model's.

    A detector makes its queries of the positions that the file has chosen, see `query_choice`.

    Raises:
        ExportError: if the file cannot run a batch, returns another number of tensors or another shape, or one that
            differs by more than `tolerance` times the greatest absolute value of the model's.
    """
    comparisons = []
    for pixels in batches:
        text = "x".join(map(str, pixels.shape))
        try:
            actual = run(pixels)
        except Exception as error:  # each runtime has errors of its own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(f"the file cannot run pixels of {text}: {reason[-1].rstrip('.')}.") from error
        positions = dict(zip(system.output_names, actual, strict=True)).get(QUERY_POSITIONS)
        expected = system(pixels) if positions is None else system.on_queries(pixels, positions, tolerance)
        errors, relative, cosine, same_class = {}, {}, {}, None
        for name, tensor, result in zip(system.output_names, expected, actual, strict=True):
            if tensor.shape != result.shape:
                raise ExportError(
                    f"for pixels of {text}, {name} of the file has shape {tuple(result.shape)}, the model's "
                    f"{tuple(tensor.shape)}."
                )
            errors[name] = float((tensor - result).abs().max())
            relative[name] = errors[name] / max(float(tensor.abs().max()), 1e-12)
            if by_cosine:
                cosine[name] = float(torch.cosine_similarity(tensor.flatten(1), result.flatten(1)).min())
                if name == "logits" and tensor.dim() == 2:
                    same_class = float((tensor.argmax(1) == result.argmax(1)).float().mean())
                if not cosine[name] >= tolerance:
                    raise ExportError(
                        f"for pixels of {text}, the least cosine of {name} of the file and the model's is "
                        f"{cosine[name]:.4f}; the bound is {tolerance:g}."
                    )
            elif not relative[name] <= tolerance:  # NaN compares false
                raise ExportError(
                    f"for pixels of {text}, {name} of the file differs from the model's by {errors[name]:.2e} "
                    f"(relative {relative[name]:.2e}); the tolerance is {tolerance:g}."
                )
        comparisons.append(Comparison(tuple(pixels.shape), errors, relative, cosine, same_class))
    return tuple(comparisons)


def measure(system: System, run: Run, shape: Sequence[int]) -> tuple[float, float]:
    """Return the medians of the milliseconds of the file and of the model, which take turns."""
    pixels = random_pixels(shape)
    sides: list[tuple[Run, list[float]]] = [(run, []), (system, [])]
    end = time.perf_counter() + _MOST_SECONDS
    with torch.no_grad():
        for turn in range(_ROUNDS + 1):
            for function, times in sides:
                start = time.perf_counter()
                function(pixels)
                if turn:  # the first one warms up
                    times.append(1000 * (time.perf_counter() - start))
            if turn and time.perf_counter() > end:
                break
    (_, file_times), (_, model_times) = sides
    return statistics.median(file_times), statistics.median(model_times)


__all__ = ["LEAST_COSINE", "Run", "compare", "example_pixels", "measure"]
