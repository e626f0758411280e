# SPDX-License-Identifier: MIT
"""The body of the command `hf-internimage predict`."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..ops.dcnv3 import backend_for
from ..plain_text import count_of, show
from .output import Files, files_for, new_folder
from .predictor import Predictor, progress_bar
from .sources import list_inputs


def predict_to_folder(model: str, images: list[str], output: str | None = None, **settings: Any) -> int:
    """Predict images, and write what is predicted to a new folder; print a few lines about it.

    After an interruption the folder holds what was predicted until then.

    Args:
        model: folder or repository.
        images: files, folders and patterns.
        output: folder, which must not exist or be empty; None for "predictions", "predictions-2" and so on.
        settings: of `predictor.predict`.

    Returns:
        The exit status: 0, or 1 if files could not be used.

    Raises:
        ValueError: as `predictor.predict`, and for an output folder that is not empty.
    """
    inputs, folder = list_inputs(images), new_folder(output)
    logging.disable_progress_bar()  # of loading the weights
    predictor = Predictor(model, **settings)
    device, dtype = predictor.model.device, str(predictor.model.dtype).removeprefix("torch.")
    show(
        f"{type(predictor.model).__name__} from {model}: {len(predictor.label_names):,} classes, "
        f"{predictor.model.num_parameters() / 1e6:.1f} M parameters, on {device} in {dtype}"
    )
    files: Files | None = None
    left_out: list[str] = []
    start, written = time.perf_counter(), []
    try:
        with progress_bar(inputs, disable=None) as bar:
            for source, prediction in predictor.predict_inputs(inputs):
                bar.update()
                if prediction is None:
                    left_out.append(source.problem or "")
                    tqdm.write(f"left out: {source.problem}", file=sys.stderr)
                    continue
                if files is None:
                    kind = settings.get("segmentation", "semantic")
                    files = files_for(predictor.task, kind)(folder, model, predictor.label_names)
                files.add(source, prediction)
    finally:
        seconds = time.perf_counter() - start
        if files is not None:
            written = files.finish(left_out)
    if files is None:
        raise ValueError(
            f"No image could be read of {count_of(len(left_out), 'file')}, named above; nothing was written."
        )
    show(
        f"{count_of(files.count, 'image')} in {seconds:.1f} s: {files.count / seconds:.1f} images/s, "
        f"with backend {backend_for(device.type, dtype)} of the operator"
    )
    show(files.summary())
    if left_out:
        show(f"left out: {count_of(len(left_out), 'file')} that could not be used, named above")
    show(f"written to {folder}: {', '.join(written)}")
    return 1 if left_out else 0


__all__ = ["predict_to_folder"]
