# SPDX-License-Identifier: MIT
"""Compare an exported file with its model, and measure both."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from .errors import ExportError
from .options import Options
from .query_choice import QueryChoice
from .report import Comparison
from .system import QUERY_POSITIONS, System, random_pixels

Run = Callable[[torch.Tensor], Sequence[torch.Tensor]]
_LEAST_EXAMPLE_SIDE = 192  # pixels; DINO's coarsest map is 64 times smaller
LEAST_COSINE = 0.99  # of 8-bit files
_QUERY_TOLERANCE = 0.05  # of 8-bit files; 0.01 to 0.02 is what was measured
_ROUNDS, _MOST_SECONDS = 7, 5.0


def example_pixels(system: System, options: Options) -> torch.Tensor:
    """Return pixels for an exporter: one image, or for free sizes two that give no map a side of 1.

    Exporters take a 1 for a constant.
    """
    number, least = (2, _LEAST_EXAMPLE_SIDE) if options.dynamic else (1, 0)
    return random_pixels((number, system.num_channels, *(max(side, least) for side in options.image_size)))


def example_mask(pixels: torch.Tensor) -> torch.Tensor:
    """Return a mask (N, H, W) int64 for an exporter, with padding at the right and bottom."""
    mask = torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.int64)
    mask[:, -32:, :] = mask[:, :, -32:] = 0
    return mask


@torch.no_grad()
def compare(
    system: System, run: Run, batches: Iterable[torch.Tensor], tolerance: float, *, by_cosine: bool = False
) -> tuple[Comparison, ...]:
    """Run the model and the file on batches of pixels (N, C, H, W).

    With `by_cosine`, the tolerance is the least cosine of each image's tensors and the model's, see `_least_cosine`.

    A detector makes its queries of the positions that the file has chosen, see `query_choice`. Their scores may differ
    from the best ones by the tolerance, with `by_cosine` by a twentieth of the scores' range.

    Raises:
        ExportError: if the file cannot run a batch, returns another number of tensors or another shape, or one that
            differs by more than `tolerance` times the greatest absolute value of the model's.
    """
    comparisons = []
    for pixels in batches:
        text = "x".join(map(str, pixels.shape))
        actual = run_file(run, pixels, f"pixels of {text}")
        positions = dict(zip(system.output_names, actual, strict=True)).get(QUERY_POSITIONS)
        choice = QueryChoice(positions, _QUERY_TOLERANCE if by_cosine else tolerance)
        expected = system(pixels) if positions is None else system.on_queries(pixels, choice)
        errors, relative, cosine, same_class = {}, {}, {}, None
        for name, tensor, result in zip(system.output_names, expected, actual, strict=True):
            if tensor.shape != result.shape:
                raise ExportError(
                    f"for pixels of {text}, {name} of the file has shape {tuple(result.shape)}, the model's "
                    f"{tuple(tensor.shape)}."
                )
            errors[name] = float((tensor - result).abs().max())
            relative[name] = errors[name] / max(float(tensor.abs().max()), 1e-12)
            if by_cosine and name != QUERY_POSITIONS:  # these are the file's in both
                cosine[name] = _least_cosine(tensor, result)
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
        comparisons.append(Comparison(tuple(pixels.shape), errors, relative, cosine, same_class, choice.agreement))
    return tuple(comparisons)


def _least_cosine(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the least cosine of the tensors of an image, (N, ...).

    Of maps and queries the mean is subtracted first: their values lie far from zero, all on one side, and what differs
    between pixels or queries would hardly count.
    """
    first, second = (tensor.flatten(1).double() for tensor in (expected, actual))
    if expected.dim() > 2:
        first, second = (tensor - tensor.mean(1, keepdim=True) for tensor in (first, second))
    return float(torch.cosine_similarity(first, second).min())


def run_file(run: Run, pixels: torch.Tensor, text: str) -> Sequence[torch.Tensor]:
    """Return the file's results; raise ExportError, with the text that says what `pixels` are, if it cannot run."""
    try:
        return run(pixels)
    except Exception as error:  # each runtime has errors of its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"the file cannot run {text}: {reason[-1].rstrip('.')}.") from error


def measure(system: Run, run: Run, pixels: torch.Tensor) -> tuple[float, float]:
    """Return the medians of the milliseconds of the file and of the model, which take turns."""
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


__all__ = ["LEAST_COSINE", "Run", "compare", "example_mask", "example_pixels", "measure", "run_file"]
