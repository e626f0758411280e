# SPDX-License-Identifier: MIT
"""Predict images of any source with a model of any task: `hf_internimage.predict`, and `Predictor` for one by one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from ..devices import find_device, find_dtype
from ..image_files import MAX_PIXELS, name_of, unlimited_short_side
from ..ops.dcnv3 import DCNV3
from ..ops.registry import demanded_backend
from ..segmentation import SemanticSegmenter
from . import loading
from .loading import CLASSIFICATION, DETECTION
from .results import Prediction
from .sources import Source, is_video, list_inputs, read_sources
from .tasks import (
    SEGMENTATIONS,
    SEMANTIC,
    Classifier,
    Detector,
    PredictBatch,
    SegmentPredictor,
    SemanticPredictor,
    label_names,
)

logger = logging.get_logger(__name__)

_TOP_K = 5  # classes of an image
_DETECTION_THRESHOLD, _SEGMENT_THRESHOLD = 0.3, 0.5
_BATCH_SIZE = {CLASSIFICATION: 8}  # other tasks have larger images: 1


class Predictor:
    """Predict images with one model: `for source, prediction in Predictor("out")("photos/")`.

    The arguments are those of `predict`.

    Attributes:
        model, image_processor: as they are used.
        task: "image-classification", "image-segmentation" or "object-detection".
        label_names: names of the classes by their numbers.
        name: folder or repository of the model; its class if it was made in memory.
    """

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel,
        *,
        image_processor: Any = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        backend: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        segmentation: str = SEMANTIC,
        crop_size: int | Sequence[int] | None = None,
        stride: int | Sequence[int] | None = None,
        scale_ratios: Sequence[float] = (1.0,),
        flip: bool = False,
        every: int = 1,
        max_image_pixels: int = MAX_PIXELS,
        revision: str | None = None,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("top_k", top_k), ("every", every)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}, expected at least 1.")
        if segmentation not in SEGMENTATIONS:
            raise ValueError(f"segmentation is {segmentation!r}, expected one of {', '.join(SEGMENTATIONS)}.")
        self.backend = DCNV3.requested(backend)
        self.every, self.max_image_pixels = every, max_image_pixels
        if isinstance(model, (str, os.PathLike)):
            self.name = os.fspath(model)
            place = find_device(device)
            new_dtype = find_dtype(torch.float32 if dtype is None else dtype)
            loaded: Any = loading.load(self.name, dtype=new_dtype, revision=revision)
            self.model: PreTrainedModel = loaded.to(place)
        else:
            self.name = model.name_or_path or type(model).__name__
            if model.training:
                raise ValueError("The model is in training mode; call its eval() first.")
            self.model = model
            module: Any = model
            if device is not None:
                module.to(find_device(device))
            if dtype is not None:
                module.to(find_dtype(dtype))
        self.task = loading.task_of(self.model)
        self.label_names = label_names(self.model)
        if not self.label_names:
            raise ValueError(f"{self.name}: has no classes; train it for a task.")
        self.image_processor = image_processor
        if image_processor is None:
            self.image_processor = loading.load_processor(self.model, self.model.name_or_path, revision=revision)
        self.batch_size = batch_size or _BATCH_SIZE.get(self.task, 1)
        scales = tuple(scale_ratios)
        segmenter_options = {"crop_size": crop_size, "stride": stride, "scale_ratios": scales, "flip": flip}
        self._predict_batch = self._prepare(top_k, threshold, segmentation, segmenter_options)

    def __call__(self, images: Any) -> Iterator[tuple[Source, Prediction | None]]:
        """Predict images one after the other; see `predict`.

        Yields:
            Each image and its prediction, in the order of the images. A file that cannot be used has the prediction
            None, and its source says why.
        """
        return self.predict_inputs(list_inputs(images))

    def predict_inputs(self, inputs: Sequence[Any]) -> Iterator[tuple[Source, Prediction | None]]:
        """Predict what `sources.list_inputs` returns, as a call does."""
        sources = read_sources(
            inputs,
            every=self.every,
            max_pixels=self.max_image_pixels,
            short_side=unlimited_short_side(self.image_processor),
        )
        while batch := list(islice(sources, self.batch_size)):
            readable = [source for source in batch if source.image is not None]
            predictions = iter(self._run(readable) if readable else [])
            for source in batch:
                yield source, None if source.image is None else next(predictions)

    def _prepare(
        self, top_k: int | None, threshold: float | None, segmentation: str, segmenter_options: dict[str, Any]
    ) -> PredictBatch:
        """Return what predicts a batch.

        Raises:
            ValueError: for settings that have no use in the task.
        """
        is_semantic = self.task == loading.SEGMENTATION and segmentation == SEMANTIC
        unused = {"segmentation": self.task != loading.SEGMENTATION and segmentation != SEMANTIC}
        unused |= {
            name: not is_semantic and value not in (None, False, (1.0,)) for name, value in segmenter_options.items()
        }
        unused |= {"top_k": is_semantic and top_k is not None, "threshold": is_semantic and threshold is not None}
        if names := [name for name, is_unused in unused.items() if is_unused]:
            kind = "semantic segmentation" if is_semantic else self.task
            raise ValueError(f"{', '.join(names)}: of no use for {kind} with {self.name}; leave out.")
        if self.task == CLASSIFICATION:
            return Classifier(self.model, self.image_processor, top_k or _TOP_K, threshold or 0.0)
        if self.task == DETECTION:
            least = _DETECTION_THRESHOLD if threshold is None else threshold
            return Detector(self.model, self.image_processor, top_k, least)
        if not is_semantic:
            least = _SEGMENT_THRESHOLD if threshold is None else threshold
            return SegmentPredictor(self.model, self.image_processor, segmentation, top_k, least)
        return SemanticPredictor(
            SemanticSegmenter(self.model, self.image_processor, window_batch_size=self.batch_size, **segmenter_options)
        )

    @torch.no_grad()
    def _run(self, sources: Sequence[Source]) -> list[Prediction]:
        try:
            with demanded_backend(self.backend), _refusing_nan(self.model):
                return self._predict_batch(sources)
        except ValueError as error:
            names = [name_of(source.path) for source in sources]
            raise ValueError(f"{' to '.join(dict.fromkeys([names[0], names[-1]]))}: {error}") from error


def predict(
    model: str | os.PathLike | PreTrainedModel,
    images: Any,
    *,
    image_processor: Any = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    backend: str | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    segmentation: str = SEMANTIC,
    crop_size: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    scale_ratios: Sequence[float] = (1.0,),
    flip: bool = False,
    every: int = 1,
    max_image_pixels: int = MAX_PIXELS,
    revision: str | None = None,
    progress: bool = False,
) -> list[Prediction]:
    """Classify, segment or detect in images, whatever the model is for.

    Images of any mode become upright 8-bit RGB as in training: the EXIF orientation is applied, transparency is put on
    white, and 16 bits lose the lower 8. A file that cannot be used is named in a warning and left out.

    Args:
        model: a folder or repository, or a loaded model in evaluation mode, of any classifier, segmenter or detector of
            this package and of transformers. Mask R-CNN needs torchvision.
        images: a path; a folder, for all images and videos below it; a pattern such as "photos/*.jpg"; a Pillow image;
            an array (H, W, 3), (H, W) or (N, H, W, 3) or tensor (3, H, W); or a list of these. Videos need PyAV (extra
            `video`).
        image_processor: the one saved with the model if None.
        batch_size: images that go through the model at once; 8 for classifiers and 1 for others if None. A segmenter
            takes one image at a time; for it, this is the number of windows.
        device: such as "cpu" or "cuda:1"; if None the best there is, or where a loaded model is. A loaded model is
            moved.
        dtype: "float32", "bfloat16" or "float16"; if None float32, or that of a loaded model. A loaded model is
            converted.
        backend: demand this backend of InternImage's operator, as HF_INTERNIMAGE_BACKEND does.
        top_k: most classes (5 if None) or objects of an image (the image processor's number if None).
        threshold: least probability of a class (0 if None), or least score of an object (0.3) or segment (0.5).
        segmentation: "semantic"; "instance" or "panoptic" for a model such as Mask2Former that was trained for it, with
            an image processor of transformers.
        crop_size, stride, scale_ratios, flip: sliding windows and averages over scales and mirrored images in semantic
            segmentation, see `hf_internimage.segmentation.SemanticSegmenter`.
        every: take every so many frames of a video.
        max_image_pixels: a JPEG of more is decoded at a reduced size, any other such image is left out.
        revision: branch, tag or commit of a repository.
        progress: show a progress bar.

    Returns:
        One `prediction.Classification`, `prediction.Segmentation` or `prediction.Detection` for each image or frame, in
        the order of the images.

    Raises:
        ValueError: for a model, image in memory or setting that cannot be used.
        ImportError: if a package is missing, with the command that installs it.
        BackendError: if the demanded backend cannot run.

    >>> from hf_internimage import predict  # doctest: +SKIP
    >>> predict("out", "photos/cat.jpg")[0].labels[0]  # doctest: +SKIP
    'cat'
    """
    inputs = list_inputs(images)
    predictor = Predictor(
        model,
        image_processor=image_processor,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        backend=backend,
        top_k=top_k,
        threshold=threshold,
        segmentation=segmentation,
        crop_size=crop_size,
        stride=stride,
        scale_ratios=scale_ratios,
        flip=flip,
        every=every,
        max_image_pixels=max_image_pixels,
        revision=revision,
    )
    predictions = []
    with progress_bar(inputs, disable=not progress) as bar:
        for source, prediction in predictor.predict_inputs(inputs):
            bar.update()
            if prediction is None:
                logger.warning(f"Left out {source.problem}")
            else:
                predictions.append(prediction)
    return predictions


def progress_bar(inputs: Sequence[Any], *, disable: bool | None) -> Any:
    """Return a bar over images; None hides it where the output is no terminal."""
    total = None if any(map(is_video, inputs)) else len(inputs)  # a video does not say how many frames it has
    return tqdm(total=total, unit=" images", disable=disable, dynamic_ncols=True)


@contextmanager
def _refusing_nan(model: PreTrainedModel) -> Iterator[None]:
    """Raise ValueError within this context for outputs that are not numbers: they would look like predictions."""

    def check(module: Any, inputs: Any, outputs: Any) -> None:
        for name in ("logits", "class_queries_logits", "masks_queries_logits"):
            values = getattr(outputs, name, None)
            if values is not None and bool(values.isnan().any()):
                raise ValueError(
                    f"The model's {name} are not numbers (NaN) in {str(model.dtype).removeprefix('torch.')}; "
                    "use float32, or check its weights."
                )

    handle = model.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


__all__ = ["Predictor", "predict", "progress_bar"]
